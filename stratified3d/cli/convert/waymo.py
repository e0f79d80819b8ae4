"""Convert Waymo's perception v2 (parquet) to points, info files and a ground-truth database;
without TensorFlow."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from stratified3d.cli import short_name
from stratified3d.commands import command_parser

if TYPE_CHECKING:
    from stratified3d.datasets.waymo.conversion import Outcome
    from stratified3d.datasets.waymo.ranks import Rank

SPLITS = ('training', 'validation', 'testing')

EXAMPLES = """examples:
  {prog} /datasets/waymo_v2 data/waymo --workers 8
  {prog} /datasets/waymo_v2 data/waymo --splits validation
  python -m torch.distributed.run --nproc_per_node 8 -m stratified3d.cli convert waymo \\
      /datasets/waymo_v2 data/waymo
  srun --ntasks 64 {prog} /datasets/waymo_v2 data/waymo     on a cluster

SRC contains <split>/<component>/<segment>.parquet of the components lidar, lidar_pose,
lidar_calibration, vehicle_pose and lidar_box. After an interruption the same command resumes. A
damaged segment is named, the others are converted, and the exit status is 1. Frames that lack some
LiDARs' rows are reported and have the points of the others. OUT may be filled from several SRC, one
after the other. docs/waymo.md describes what is written.
"""


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = command_parser(prog, __doc__, EXAMPLES)
    parser.add_argument('source', metavar='SRC', help='folder of the downloaded dataset')
    parser.add_argument(
        'out',
        metavar='OUT',
        help="the new dataset's folder: new, empty, or begun with these options",
    )
    parser.add_argument('--splits', nargs='+', choices=SPLITS, help='default: those that SRC has')
    parser.add_argument(
        '--workers', type=int, default=1, help='segments converted at a time (default: 1)'
    )
    parser.add_argument(
        '--database-every',
        type=int,
        default=10,
        metavar='N',
        help='objects of every N-th training frame go into the ground-truth database '
        '(default: %(default)s; 0: none)',
    )
    parser.add_argument(
        '--max-sweeps',
        type=int,
        default=10,
        help='earlier frames listed with each (default: %(default)s)',
    )
    parser.add_argument(
        '--keep-no-label-zones', action='store_true', help='keep points where nothing is annotated'
    )
    parser.add_argument(
        '--launcher',
        choices=('auto', 'none', 'pytorch', 'slurm'),
        default='auto',
        help='what started the processes that share the segments (default: what the environment '
        'says)',
    )
    return parser


def report(name: str, source: str, rank: Rank, outcome: Outcome) -> None:
    """Print the files that were written, and on standard error what is missing in them."""
    print(*outcome.files, sep='\n', flush=True)
    if outcome.pending:
        print(
            f'process {rank.index} of {rank.size} is done; other processes still convert '
            f'{outcome.pending} segments. The last one writes the info files'
        )
    if outcome.earlier:
        print(
            f'{outcome.earlier} of the segments in the info files were converted earlier and are '
            f'not in {source}'
        )
    for segment, gaps in outcome.gaps.items():
        print(f'{name}: {segment} is incomplete, {gaps}', file=sys.stderr)
    for segment, problem in outcome.failed.items():
        print(
            f'{name}: {segment} could not be converted and is left out: {problem}',
            file=sys.stderr,
        )
    if outcome.abandoned:
        print(
            f'{name}: {", ".join(outcome.abandoned)}: not converted, and no process is '
            'working on them, so no info files were written; rerun the same command to resume',
            file=sys.stderr,
        )


def main(arguments: list[str], prog: str) -> int:
    args = make_parser(prog).parse_args(arguments)
    from stratified3d.datasets.waymo.conversion import ConversionSettings, convert_waymo
    from stratified3d.datasets.waymo.ranks import find_rank
    from stratified3d.memory import keep_large_blocks

    keep_large_blocks()
    settings = ConversionSettings(args.keep_no_label_zones, args.max_sweeps, args.database_every)
    try:
        rank = find_rank(args.launcher)
        outcome = convert_waymo(args.source, args.out, args.splits, settings, args.workers, rank)
    except (OSError, ValueError) as error:
        sys.exit(f'{short_name(prog)}: {error}')
    report(short_name(prog), args.source, rank, outcome)
    return 1 if outcome.failed or outcome.abandoned else 0
