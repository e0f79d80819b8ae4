"""Detect objects in point files, with the weights that come with the package or with your own."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from stratified3d.cli import short_name
from stratified3d.commands import command_parser
from stratified3d.resumable import atomic_write, describe_error
from stratified3d.sensor_options import add_sensor_options, read_sensor_options

if TYPE_CHECKING:
    from stratified3d.apis import Detections

CONFIG = 'stratified3d::quickstart/any_sensor.py'
WEIGHTS = 'stratified3d::quickstart/any-sensor.safetensors'
EXAMPLES = """examples:
  {prog} sweep.pcd.bin                                 a table of what is there
  {prog} sweep.pcd.bin --draw                          pictures from above and in perspective, too
  {prog} 000008.bin --sensor kitti --draw              another sensor's frame
  {prog} *.pcd --sensor auto --json boxes.json         many files, for other programs
  {prog} sweep.pcd.bin --config my_config.py --checkpoint epoch_20.pth

The weights that come with the package were trained in simulation only; their model card says what
they are good for (projects/quickstart/MODEL_CARD.md).
"""


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = command_parser(prog, __doc__, EXAMPLES)
    parser.add_argument(
        'files',
        nargs='+',
        type=Path,
        metavar='FILE',
        help='point files: .bin, .npy, .npz, .pcd, .ply, .txt, .csv, .feather, .las, .laz',
    )
    parser.add_argument('--config', default=CONFIG, help='default: %(default)s')
    parser.add_argument(
        '--checkpoint', help=f'a .pth or .safetensors file (default: {WEIGHTS} without --config)'
    )
    parser.add_argument(
        '--score', type=float, default=0.41, help='what is below is left out (default: %(default)s)'
    )
    add_sensor_options(parser)
    parser.add_argument(
        '--load-dim',
        type=int,
        help='columns of .bin files (default: 4, 5 for .pcd.bin, or what the numbers show)',
    )
    parser.add_argument(
        '--json',
        type=Path,
        metavar='OUT',
        help='write boxes, scores and classes of each file there',
    )
    parser.add_argument('--draw', action='store_true', help='draw pictures into --out')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/detections'),
        help='folder of the pictures (default: %(default)s)',
    )
    parser.add_argument(
        '--no-perspective', action='store_true', help='draw from above only: needs no Open3D'
    )
    parser.add_argument('--device', help='default: the GPU where there is one')
    return parser


def main(arguments: list[str], prog: str) -> int:
    parser = make_parser(prog)
    args = parser.parse_args(arguments)
    if args.checkpoint is None:
        if args.config != CONFIG:
            parser.error('--config needs --checkpoint, the weights of that model')
        args.checkpoint = WEIGHTS
    try:
        run(args)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f'{short_name(prog)}: {describe_error(error)}')
    return 0


def run(args: argparse.Namespace) -> None:
    """Detect, print, write and draw."""
    from stratified3d.apis import detect, init_detector
    from stratified3d.cli.drawing import draw_detections, keep_above
    from stratified3d.datasets.io.point_files import read_points
    from stratified3d.sensors import model_sensor

    warnings.showwarning = _print_warning  # type: ignore[assignment]
    model = init_detector(args.config, args.checkpoint, args.device)
    sensor = read_sensor_options(args, model_sensor(model.cfg))
    frames = []
    for path in args.files:
        points = read_points(path, args.load_dim)
        found = keep_above(detect(model, points, sensor), args.score)
        print(f'{path}: {len(points)} points, {len(found.scores)} objects', flush=True)
        print_table(found)
        frames.append((path, points, found))
    if args.json:
        content = {str(path): _to_json(found) for path, _, found in frames}
        atomic_write(args.json, (json.dumps(content, indent=1) + '\n').encode())
        print(args.json)
    if args.draw:
        draw_detections(args, model.cfg, sensor, frames)


def print_table(found: Detections) -> None:
    """One line per object: its class and score, where it is, its size and its heading."""
    if not len(found.scores):
        return
    heads = ('score', 'x', 'y', 'z', 'dx', 'dy', 'dz', 'yaw')
    print(f'  {"class":<22}' + ''.join(f'{head:>8}' for head in heads))
    for box, score, name in zip(found.boxes, found.scores, found.names):
        numbers = ''.join(f'{number:8.2f}' for number in (score, *box[:7]))
        print(f'  {name:<22}{numbers}')


def _to_json(found: Detections) -> dict:
    return dict(
        boxes=found.boxes.round(4).tolist(),
        scores=found.scores.round(4).tolist(),
        names=found.names,
    )


def _print_warning(message, *_) -> None:
    """What looks wrong about a file, in one line, without the place in the code that said so."""
    print(f'CAUTION: {message}', file=sys.stderr)
