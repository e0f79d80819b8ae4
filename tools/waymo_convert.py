#!/usr/bin/env python
"""Convert Waymo's perception v2 (parquet) to points, info files and a ground-truth database;
without TensorFlow."""

from __future__ import annotations

import argparse
import sys

from stratified3d.datasets.waymo.conversion import SPLITS, ConversionSettings, convert_waymo
from stratified3d.datasets.waymo.processes import find_rank
from stratified3d.memory import keep_large_blocks

EXAMPLES = """examples:
  python tools/waymo_convert.py /datasets/waymo_v2 data/waymo --workers 8
  python tools/waymo_convert.py /datasets/waymo_v2 data/waymo --splits validation
  python -m torch.distributed.run --nproc_per_node 8 tools/waymo_convert.py /datasets/waymo_v2 data/waymo
  srun --ntasks 64 python tools/waymo_convert.py /datasets/waymo_v2 data/waymo       over the nodes of a cluster

SRC holds <split>/<component>/<segment>.parquet of the components lidar, lidar_pose, lidar_calibration, vehicle_pose and
lidar_box. Interrupted, the same command goes on where it stopped. A damaged segment is named, the others are converted,
and the exit status is 1. Frames that lack some LiDARs' rows are reported and have the points of the others. OUT may be
filled from several SRC, one after the other. docs/waymo.md describes what is written.
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
        help='of every N-th '
        'training frame, objects go into the ground-truth database (default: %(default)s; 0: none)',
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
        help='who started '
        'the processes that share the segments (default: what the environment says)',
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    keep_large_blocks()
    try:
        rank = find_rank(args.launcher)
        done = convert_waymo(
            args.source,
            args.out,
            args.splits,
            ConversionSettings(args.keep_no_label_zones, args.max_sweeps, args.database_every),
            args.workers,
            rank,
        )
    except (OSError, ValueError) as error:
        sys.exit(f'waymo_convert.py: {error}')
    print(*done.files, sep='\n', flush=True)
    if done.pending:
        print(
            f'process {rank.index} of {rank.size} is done; {done.pending} segments are left to others that are at '
            'work. The last one writes the info files'
        )
    if done.earlier:
        print(
            f'{done.earlier} of the segments in the info files were converted earlier and are not in {args.source}'
        )
    for segment, gaps in done.gaps.items():
        print(f'waymo_convert.py: {segment} is incomplete, {gaps}', file=sys.stderr)
    for segment, problem in done.failed.items():
        print(
            f'waymo_convert.py: {segment} could not be converted and is left out: {problem}',
            file=sys.stderr,
        )
    if done.abandoned:
        print(
            f'waymo_convert.py: {", ".join(done.abandoned)}: not converted, and no process is at work on them, so no '
            'info files were written; run the same command again to go on',
            file=sys.stderr,
        )
    return 1 if done.failed or done.abandoned else 0


if __name__ == '__main__':
    sys.exit(main())
