#!/usr/bin/env python
"""Write the weights of a training's checkpoint as .safetensors; `--help` tells how."""

import argparse
import sys

from stratified3d.commands import begin_command

begin_command('export_weights.py')

from stratified3d.checkpoints import load_checkpoint_file, save_weights, trained_classes

EXAMPLES = """examples:
  python tools/export_weights.py work_dirs/quickstart/epoch_8.pth quickstart.safetensors
  python tools/export_weights.py work_dirs/quickstart/epoch_8.pth quickstart.safetensors --half

The file names the classes, and loading compares them with the config's. tools/test.py, load_from
and init_detector take the file; --resume needs the checkpoint itself."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description='Write the weights of a checkpoint as .safetensors.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('checkpoint', help='epoch_N.pth of a training')
    parser.add_argument('out', help='the .safetensors file')
    parser.add_argument('--half', action='store_true', help='as fp16, in half the room')
    args = parser.parse_args()
    try:
        content = load_checkpoint_file(args.checkpoint, 'cpu')
        state = content.get('state_dict', content)
        classes = trained_classes(content)
        save_weights(args.out, state, classes, args.half)
    except (ValueError, OSError) as error:
        sys.exit(f'export_weights.py: {error}')
    numbers = sum(value.numel() for value in state.values())
    names = ', '.join(classes or ['not named'])
    print(f'{args.out}: {len(state)} tensors, {numbers:,} numbers, classes {names}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
