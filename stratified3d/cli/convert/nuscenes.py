"""Prepare a nuScenes-format dataset, wherever it lies on disk: its info files and its ground-truth
database."""

from __future__ import annotations

import argparse
import sys

from stratified3d.cli import short_name
from stratified3d.commands import command_parser
from stratified3d.resumable import describe_error

EXAMPLES = """examples:
  {prog} data/simulated
  {prog} /datasets/nuscenes --version v1.0-trainval --workers 8
  {prog} /datasets/nuscenes --version v1.0-test
  {prog} data/simulated --no-database      without ground-truth sampling

Interrupted, it resumes when the same command is rerun. What is finished is kept; delete a file to
have it written again.
"""


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = command_parser(prog, __doc__, EXAMPLES)
    parser.add_argument('root', help='folder that contains v1.0-*/, samples/ and sweeps/')
    parser.add_argument(
        '--version',
        default='v1.0-mini',
        help='v1.0-mini, v1.0-trainval or v1.0-test (default: mini)',
    )
    parser.add_argument(
        '--max-sweeps', type=int, default=10, help='sweeps listed per keyframe (default: 10)'
    )
    parser.add_argument(
        '--sweeps',
        type=int,
        default=9,
        help='sweeps added to a keyframe in the database, as in the config (default: 9)',
    )
    parser.add_argument('--no-database', action='store_true', help='write the info files only')
    parser.add_argument(
        '--workers', type=int, default=1, help='processes that cut the database (default: 1)'
    )
    return parser


def main(arguments: list[str], prog: str) -> int:
    args = make_parser(prog).parse_args(arguments)
    from stratified3d.datasets.nuscenes.database import create_database
    from stratified3d.datasets.nuscenes.infos import create_infos

    try:
        paths = create_infos(args.root, args.version, args.max_sweeps)
        if not args.no_database and args.version != 'v1.0-test':
            paths.append(create_database(args.root, args.sweeps, args.workers))
    except (OSError, ValueError) as error:
        sys.exit(f'{short_name(prog)}: {describe_error(error)}')
    print(*paths, sep='\n')
    return 0
