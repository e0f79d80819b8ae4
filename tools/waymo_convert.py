#!/usr/bin/env python
"""Convert Waymo's perception v2 (parquet) to points, info files and a ground-truth database;
without TensorFlow."""

from __future__ import annotations

import argparse
import sys

from stratified3d.commands import begin_command

begin_command('waymo_convert.py', 'rerun the same command to resume')

from stratified3d.datasets.waymo.conversion import (
    SPLITS,
    ConversionSettings,
    Outcome,
    convert_waymo,
)
from stratified3d.datasets.waymo.ranks import Rank, find_rank
from stratified3d.memory import keep_large_blocks

EXAMPLES = """examples:
  python tools/waymo_convert.py /datasets/waymo_v2 data/waymo --workers 8
  python tools/waymo_convert.py /datasets/waymo_v2 data/waymo --splits validation
  python -m torch.distributed.run --nproc_per_node 8 tools/waymo_convert.py \\
      /datasets/waymo_v2 data/waymo
  srun --ntasks 64 python tools/waymo_convert.py /datasets/waymo_v2 data/waymo     on a cluster

SRC contains <split>/<component>/<segment>.parquet of the components lidar, lidar_pose,
lidar_calibration, vehicle_pose and lidar_box. After an interruption the same command resumes. A
damaged segment is named, the others are converted, and the exit status is 1. Frames that lack some
LiDARs' rows are reported and have the points of the others. OUT may be filled from several SRC, one
after the other. docs/waymo.md describes what is written.
"""


def parse_args() -> argparse.Namespace:
    default = ConversionSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', metavar='SRC', help='folder of the downloaded dataset')
    parser.add_argument(
        'out',
        metavar='OUT',
        help="the new dataset's folder: new, empty, or begun with these options",
    )
    parser.add_argument(
        '--splits', nargs='+', choices=list(SPLITS), help='default: those that SRC has'
    )
    parser.add_argument(
        '--workers', type=int, default=1, help='segments converted at a time (default: 1)'
    )
    parser.add_argument(
        '--database-every',
        type=int,
        default=default.database_every,
        metavar='N',
        help='objects of every N-th training frame go into the ground-truth database '
        '(default: %(default)s; 0: none)',
    )
    parser.add_argument(
        '--max-sweeps',
        type=int,
        default=default.max_sweeps,
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
    return parser.parse_args()


def report(source: str, rank: Rank, outcome: Outcome) -> None:
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
        print(f'waymo_convert.py: {segment} is incomplete, {gaps}', file=sys.stderr)
    for segment, problem in outcome.failed.items():
        print(
            f'waymo_convert.py: {segment} could not be converted and is left out: {problem}',
            file=sys.stderr,
        )
    if outcome.abandoned:
        print(
            f'waymo_convert.py: {", ".join(outcome.abandoned)}: not converted, and no process is '
            'working on them, so no info files were written; rerun the same command to resume',
            file=sys.stderr,
        )


def main() -> int:
    args = parse_args()
    keep_large_blocks()
    settings = ConversionSettings(args.keep_no_label_zones, args.max_sweeps, args.database_every)
    try:
        rank = find_rank(args.launcher)
        outcome = convert_waymo(args.source, args.out, args.splits, settings, args.workers, rank)
    except (OSError, ValueError) as error:
        sys.exit(f'waymo_convert.py: {error}')
    report(args.source, rank, outcome)
    return 1 if outcome.failed or outcome.abandoned else 0


if __name__ == '__main__':
    sys.exit(main())
