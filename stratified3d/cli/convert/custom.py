"""Convert point files and a table of boxes to a dataset that mmdet3d's scripts train with."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stratified3d.cli import short_name
from stratified3d.commands import command_parser
from stratified3d.datasets.custom.box_files import read_box_table
from stratified3d.resumable import describe_error
from stratified3d.sensor_options import add_sensor_options, read_sensor_options
from stratified3d.sensors import MODEL_SENSOR, SENSORS

if TYPE_CHECKING:
    from stratified3d.datasets.custom.infos import Conversion

EXAMPLES = """examples:
  {prog} raw/points --boxes raw/boxes.csv --out data/custom \\
      --split train --frames train.txt
  {prog} raw/points --boxes raw/boxes.csv --out data/custom \\
      --split val --frames val.txt
  {prog} new/points --out data/custom --split test    without annotations
  {prog} training/velodyne --sensor kitti --out data/custom --split test

docs/own_data.md describes the files. Interrupted, it resumes when the same command is rerun.
"""


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = command_parser(prog, __doc__, EXAMPLES)
    parser.add_argument(
        'points', help='folder of point files (.bin, .npy, .pcd, .ply, ...), one per frame'
    )
    parser.add_argument('--boxes', type=Path, help='.csv or .json file of the boxes of all frames')
    parser.add_argument('--out', type=Path, required=True, help="the new dataset's folder")
    parser.add_argument('--split', required=True, help='name of the info file: train, val, test')
    parser.add_argument('--frames', type=Path, help='text file, one frame per line; default: all')
    parser.add_argument('--classes', nargs='+', help='boxes of others are left out; default: all')
    parser.add_argument(
        '--origin',
        choices=('center', 'bottom'),
        default='center',
        help='what z refers to (default: center of the box)',
    )
    parser.add_argument('--degrees', action='store_true', help='yaw is in degrees, not radians')
    add_sensor_options(parser, detects=False)
    parser.add_argument(
        '--load-dim',
        type=int,
        help='columns of .bin files (default: 4, 5 for .pcd.bin, or what the numbers show)',
    )
    return parser


def report(done: Conversion) -> None:
    """Print numbers that show mistakes of units and axes."""
    total = sum(done.boxes.values())
    print(f'{done.path}: {done.frames} frames, {total} boxes')
    for name, count in done.boxes.items():
        size = ' x '.join(f'{side:.2f}' for side in done.sizes[name]) if count else '-'
        print(f'  {name:<24}{count:>7}   mean size {size} m (dx, dy, dz)')

    ranges = [
        f'{axis} {low:.1f} to {high:.1f}'
        for axis, low, high in zip('xyz', done.extent[:3], done.extent[3:])
    ]
    print(f'  points lie in {", ".join(ranges)} m: choose point_cloud_range accordingly')
    for name in done.sideways:
        print(
            f'  CAUTION: every {name} is wider than long (dx < dy): dx is the length along the '
            'heading. Exchange dx and dy, or turn yaw by a quarter if the outlines are right '
            '(of barriers and the like this may be as it should)'
        )
    if 2 * done.empty > total:
        print(
            f'  CAUTION: {done.empty} of {total} boxes contain no points: are boxes and points in '
            'one frame? See --origin and --degrees'
        )


def main(arguments: list[str], prog: str) -> int:
    args = make_parser(prog).parse_args(arguments)
    from stratified3d.datasets.custom.infos import create_custom_infos, list_frames

    boxes = chosen = None
    try:
        if args.boxes is not None:
            boxes = read_box_table(args.boxes, args.origin, args.degrees)
        if args.frames is not None:
            chosen = args.frames.read_text().split()
        done = create_custom_infos(
            list_frames(args.points),
            boxes,
            args.out,
            args.split,
            chosen=chosen,
            classes=args.classes,
            sensor=read_sensor_options(args) or SENSORS[MODEL_SENSOR],
            load_dim=args.load_dim,
        )
    except (OSError, ValueError) as error:
        sys.exit(f'{short_name(prog)}: {describe_error(error)}')
    report(done)
    return 0
