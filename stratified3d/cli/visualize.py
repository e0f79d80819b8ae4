"""Draw detections of a config's dataset or of point files: from above, in perspective, as a video,
in a window."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stratified3d.cli import short_name
from stratified3d.commands import command_parser
from stratified3d.config_options import ConfigOptions
from stratified3d.sensor_options import add_sensor_options
from stratified3d.visualization.drawing import COLORINGS

EXAMPLES = """examples:
  {prog} CONFIG CHECKPOINT --dataset --out pictures            four frames
  {prog} CONFIG CHECKPOINT --dataset --index 0-19 --video mp4  a scene as a video
  {prog} CONFIG CHECKPOINT sweep.pcd.bin --color intensity     a file of points
  {prog} CONFIG CHECKPOINT 000008.bin --sensor kitti           another sensor's
  {prog} CONFIG CHECKPOINT --dataset --strata 1 --show         strata tokens
"""


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = command_parser(prog, __doc__, EXAMPLES)
    parser.add_argument(
        'config', help='a path, or a name such as stratified3d::quickstart/any_sensor.py'
    )
    parser.add_argument('checkpoint', help='a .pth or .safetensors file, or such a name')
    parser.add_argument(
        'files',
        nargs='*',
        type=Path,
        metavar='FILE',
        help='point files: .bin, .npy, .npz, .pcd, .ply, .txt, .csv, .feather, .las, .laz',
    )
    parser.add_argument(
        '--load-dim',
        type=int,
        help='columns of .bin files (default: 4, 5 for .pcd.bin, or what the numbers show)',
    )
    parser.add_argument(
        '--dataset', action='store_true', help="frames of the config's test set, with ground truth"
    )
    parser.add_argument(
        '--index', nargs='+', type=_indices, metavar='I', help='which: numbers, or ranges like 0-9'
    )
    parser.add_argument(
        '--count', type=int, help='without --index: so many, evenly spread (default: 4)'
    )
    add_sensor_options(parser)
    add_drawing_options(parser)
    parser.add_argument('--device', help='default: the GPU where there is one')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, help='overrides of the config, key=value'
    )
    return parser


def parse_args(arguments: list[str], prog: str) -> argparse.Namespace:
    parser = make_parser(prog)
    args = parser.parse_intermixed_args(arguments)
    chooses = args.index is not None or args.count is not None
    for is_wrong, message in (
        (args.dataset == bool(args.files), 'give either --dataset or point files'),
        (args.files and chooses, '--index and --count are for --dataset'),
        (args.index and args.count is not None, 'give either --index or --count'),
        (args.dataset and args.load_dim is not None, '--load-dim is for point files'),
        (args.show and args.video, '--video joins pictures, and --show writes none'),
        (args.token is not None and args.strata is None, '--token is for --strata'),
        (args.token is not None and args.show, '--token is for pictures; press K in the window'),
        (args.rate <= 0, f'--rate is above 0, not {args.rate}'),
        (args.count is not None and args.count < 1, f'--count is at least 1, not {args.count}'),
        (len(args.camera) > 4, f'--camera is at most four numbers, not {len(args.camera)}'),
    ):
        if is_wrong:
            parser.error(message)
    return args


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    """Options of what is drawn and how."""
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/pictures'), help='folder of the pictures'
    )
    parser.add_argument(
        '--score', type=float, default=0.3, help='predictions below are not drawn (default: 0.3)'
    )
    parser.add_argument(
        '--color', choices=COLORINGS, default='height', help='of the points (default: height)'
    )
    parser.add_argument(
        '--camera',
        nargs='+',
        type=float,
        default=[],
        metavar='N',
        help='of the perspective: azimuth and elevation (degrees), distance, meters ahead '
        '(default: 90 36 62 12, 90 being along y; with --sensor where its front is)',
    )
    parser.add_argument(
        '--strata',
        type=int,
        nargs='?',
        const=0,
        metavar='STAGE',
        help='draw the strata tokens of the last block of a stage (default: stage 0)',
    )
    parser.add_argument(
        '--token', type=int, help='which token the strata map shows (default: the most read one)'
    )
    parser.add_argument(
        '--no-perspective', action='store_true', help='only from above: needs no Open3D'
    )
    parser.add_argument(
        '--video', nargs='?', const='mp4', choices=('mp4', 'gif'), help='join the pictures'
    )
    parser.add_argument(
        '--rate', type=float, default=2.0, help='pictures per second of the video (default: 2)'
    )
    parser.add_argument(
        '--show', action='store_true', help='open a window instead; its keys are printed'
    )


def _indices(text: str) -> list[int]:
    first, _, last = text.partition('-')
    return list(range(int(first), int(last or first) + 1))


def main(arguments: list[str], prog: str) -> int:
    args = parse_args(arguments, prog)
    from stratified3d.cli.drawing import visualize

    try:
        visualize(args)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f'{short_name(prog)}: {error}')
    return 0
