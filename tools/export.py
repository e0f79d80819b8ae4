#!/usr/bin/env python
"""Write a trained detector as one file that runs without OpenMMLab; `--help` tells how."""

import argparse
import sys

from stratified3d.commands import begin_command

begin_command('export.py')

from stratified3d.apis import init_detector
from stratified3d.deploy.export import OVERFLOWS, export_detector

EXAMPLES = """examples:
  quickstart=projects/quickstart
  python tools/export.py $quickstart/configs/pretrained.py $quickstart/quickstart.safetensors \\
    detector.pt2
  python tools/export.py CONFIG CHECKPOINT detector.pt2 --device cuda
  python tools/export.py CONFIG CHECKPOINT detector.pt2 --capacity 40000 --overflow drop

It takes minutes. The file runs with the same version of torch, on the kind of device and processor
that it was compiled on:
  boxes, scores, names = stratified3d.deploy.load('detector.pt2')(points)
docs/deploy.md has the rest: C++, ROS 2, ONNX."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description='Compile a detector, from points to boxes, into one file.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='of the detector')
    parser.add_argument('checkpoint', help='.pth of a training, or .safetensors')
    parser.add_argument('out', help='the .pt2 file')
    parser.add_argument('--device', help='cpu or cuda; default: the GPU where there is one')
    parser.add_argument(
        '--bev-dtype',
        default='auto',
        choices=('fp32', 'bf16', 'auto'),
        help='of the convolutions on the BEV feature map (default: as the config says)',
    )
    parser.add_argument('--capacity', type=int, help='largest number of voxels (default: any)')
    parser.add_argument(
        '--overflow',
        default='error',
        choices=OVERFLOWS,
        help='a frame with more voxels is an error, or its farthest voxels are dropped',
    )
    args = parser.parse_args()
    try:
        model = init_detector(args.config, args.checkpoint, args.device)
        info = export_detector(
            model,
            args.out,
            bev_dtype=args.bev_dtype,
            capacity=args.capacity,
            overflow=args.overflow,
        )
    except (ValueError, OSError) as error:
        sys.exit(f'export.py: {error}')
    print(
        f'{args.out}: {len(info["classes"])} classes, {info["device"]}, {info["bev_dtype"]}, '
        f'torch {info["versions"]["torch"]}'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
