"""Detect objects in point files, with the weights that come with the package or with your own."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stratified3d.cli import short_name
from stratified3d.commands import command_parser
from stratified3d.resumable import atomic_write, describe_error
from stratified3d.sensor_options import add_sensor_options, read_sensor_options

if TYPE_CHECKING:
    from mmdet3d.models.detectors import Base3DDetector

    from stratified3d.apis import Detections
    from stratified3d.sensors import Sensor
    from stratified3d.visualization.pictures import PictureFolder

CONFIG = 'stratified3d::quickstart/any_sensor.py'
WEIGHTS = 'stratified3d::quickstart/any-sensor.safetensors'
PICTURES = Path('work_dirs/detections')
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
        '--score', type=float, default=0.45, help='what is below is left out (default: %(default)s)'
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
        help=f'folder of the pictures (default: {PICTURES})',
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
    if not args.draw and (args.out is not None or args.no_perspective):
        parser.error('--out and --no-perspective are for pictures: add --draw')
    args.out = args.out or PICTURES
    try:
        return 0 if run(args, short_name(prog)) else 1
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f'{short_name(prog)}: {describe_error(error)}')


def run(args: argparse.Namespace, name: str) -> bool:
    """Detect, print, write and draw; whether nothing was wrong with any file.

    Args:
        args: parsed options.
        name: of the command, in messages.
    """
    from stratified3d.apis import init_detector
    from stratified3d.cli.drawing import open_pictures
    from stratified3d.sensors import model_sensor

    warnings.showwarning = _print_caution  # type: ignore[assignment]
    model = init_detector(args.config, args.checkpoint, args.device)
    sensor = read_sensor_options(args, model_sensor(model.cfg))
    pictures = open_pictures(args, model.cfg, sensor) if args.draw else None
    with pictures or nullcontext():
        results, num_failed = detect_files(args, name, model, sensor, pictures)
    if args.json:
        atomic_write(args.json, (json.dumps(results, indent=1) + '\n').encode())
        print(args.json)
    for paths in pictures.written.values() if pictures else ():
        print(*paths, sep='\n')
    if num_failed and len(args.files) > 1:
        print(f'{name}: {num_failed} of {len(args.files)} files failed, see above', file=sys.stderr)
    return not num_failed


def detect_files(
    args: argparse.Namespace,
    name: str,
    model: Base3DDetector,
    sensor: Sensor | None,
    pictures: PictureFolder | None,
) -> tuple[dict[str, dict], int]:
    """Detect in one file after the other, and print and draw what is found.

    Returns:
        What was found in JSON's types, by file; and the number of files that failed, which are
        named on standard error.
    """
    from stratified3d.apis import detect
    from stratified3d.cli.drawing import keep_above, name_pictures
    from stratified3d.datasets.io.point_files import read_points
    from stratified3d.visualization.drawing import Drawing

    results = {}
    num_failed = 0
    with warnings.catch_warnings():
        # by default the second file with the same mistake would cause no warning
        warnings.filterwarnings('always', module='stratified3d')
        for path, picture in zip(args.files, name_pictures(args.files)):
            warnings.showwarning = partial(_print_caution, path=path)
            try:
                points = read_points(path, args.load_dim)
                found = keep_above(detect(model, points, sensor), args.score)
                print(f'{path}: {len(points)} points, {len(found.scores)} objects', flush=True)
                print_table(found)
                results[str(path)] = _to_json(found)
                if pictures is not None:
                    objects = f'{len(found.scores)} objects with score \u2265 {args.score}'
                    title = f'{path.name}: {objects}'
                    pictures.write(picture, Drawing(points, *found, None, title))
            except (OSError, ValueError, RuntimeError) as error:
                num_failed += 1
                print(f'{name}: {_name_file(path, describe_error(error))}', file=sys.stderr)
    return results, num_failed


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


def _print_caution(message: Warning, *_: object, path: Path | None = None, **__: object) -> None:
    """What looks wrong about a file, in one line, without the place in the code that said so."""
    print(f'CAUTION: {_name_file(path, str(message))}', file=sys.stderr)


def _name_file(path: Path | None, message: str) -> str:
    """The message with the file that it is about, unless it names it."""
    return message if path is None or str(path) in message else f'{path}: {message}'
