"""Simulate a LiDAR dataset in the format of nuScenes, or of Waymo (perception v2)."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import TYPE_CHECKING

from stratified3d.cli import short_name
from stratified3d.commands import command_parser
from stratified3d.resumable import describe_error
from stratified3d.simulation import (
    NuScenesSettings,
    WaymoSettings,
    simulate_dataset,
    simulate_waymo,
)
from stratified3d.simulation.physics.scanners import MIXED, MOUNTINGS

if TYPE_CHECKING:
    from tqdm import tqdm

EXAMPLES = """examples:
  {prog} data/simulated                          8 + 2 scenes, 1.4 GB
  {prog} data/tiny --scenes 1+1 --keyframes 4    a dataset for trying things out
  {prog} data/large --version v1.0-trainval --scenes 160+40 --keyframes 40
  {prog} data/kitti_like --sensor kitti --scenes 2+1
  {prog} data/mixed --sensor mixed --version v1.0-trainval --scenes 72+12
  {prog} data/waymo_v2 --format waymo --scenes 6+2 --keyframes 20    parquet

Interrupted, it resumes when the same command is rerun; a finished dataset is left as it is. The
same options give the same bytes for any --workers."""


def parse_scenes(text: str) -> tuple[int, int]:
    """'8+2' -> (8, 2); '10' -> the same, four training scenes to one validation scene."""
    try:
        parts = [int(part) for part in text.split('+')]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 2 or min(parts) < 0:
        raise argparse.ArgumentTypeError(
            f"'{text}' is neither TRAIN+VAL, e.g. 8+2, nor a number of scenes"
        )
    if len(parts) == 2:
        return parts[0], parts[1]
    total = parts[0]
    val = max(total // 5, min(total - 1, 1))
    return total - val, val


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = command_parser(prog, __doc__, EXAMPLES)
    default = NuScenesSettings()
    parser.add_argument(
        'out', help='folder of the dataset: new, empty, or begun with the same options'
    )
    parser.add_argument(
        '--format', choices=('nuscenes', 'waymo'), default='nuscenes', help='default %(default)s'
    )
    parser.add_argument(
        '--scenes',
        type=parse_scenes,
        default=(default.train, default.val),
        metavar='T+V',
        help='training + validation scenes, or their sum (then a fifth is validation); default 8+2',
    )
    parser.add_argument(
        '--keyframes',
        type=int,
        default=default.keyframes,
        help='per scene, 2 Hz; of Waymo frames, 10 Hz (default %(default)s)',
    )
    parser.add_argument(
        '--sweeps',
        type=int,
        default=default.sweeps,
        help='stored per keyframe interval, the keyframe included; 10 is all of 20 Hz '
        '(default %(default)s)',
    )
    parser.add_argument('--workers', type=int, help='processes (default: all cores)')
    parser.add_argument(
        '--seed',
        type=int,
        default=default.seed,
        help='of every random number (default %(default)s)',
    )
    parser.add_argument(
        '--version',
        default=default.version,
        help='v1.0-mini or v1.0-trainval (default %(default)s)',
    )
    parser.add_argument(
        '--sensor',
        default=default.sensor,
        metavar='NAME',
        help=f'which LiDAR: {", ".join(MOUNTINGS)}, or {MIXED}: each scene draws another one, '
        'another mount and brightness, in steeper streets with more clutter '
        '(default %(default)s)',
    )
    return parser


def parse_args(arguments: list[str], prog: str) -> argparse.Namespace:
    parser = make_parser(prog)
    args = parser.parse_args(arguments)
    default = NuScenesSettings()
    own = ('version', 'sweeps', 'sensor')
    if args.format == 'waymo' and any(getattr(args, key) != getattr(default, key) for key in own):
        parser.error(
            "--version, --sweeps and --sensor are nuScenes'; Waymo has its own five lasers"
        )
    return args


class Progress:
    """Progress on standard error; a training machine with numpy and numba alone has no tqdm."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        if importlib.util.find_spec('tqdm'):
            from tqdm import tqdm

            self._bar = tqdm(unit='frame', dynamic_ncols=True)

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            print(f'\r{done}/{total} frames', end='', file=sys.stderr, flush=True)
            return
        self._bar.total = total
        if not self._bar.n:
            self._bar.initial = done
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def simulate(args: argparse.Namespace, progress: Progress) -> bool:
    """Whether anything was left to do."""
    train, val = args.scenes
    if args.format == 'waymo':
        waymo = WaymoSettings(train, val, args.keyframes, args.seed)
        return simulate_waymo(args.out, waymo, workers=args.workers, progress=progress)
    nuscenes = NuScenesSettings(
        args.version, train, val, args.keyframes, args.sweeps, args.seed, sensor=args.sensor
    )
    return simulate_dataset(args.out, nuscenes, workers=args.workers, progress=progress)


def main(arguments: list[str], prog: str) -> int:
    """Parse, simulate, report."""
    args = parse_args(arguments, prog)
    progress = Progress()
    try:
        is_new = simulate(args, progress)
    except (ValueError, OSError, ImportError) as error:
        print(f'\n{short_name(prog)}: {describe_error(error)}', file=sys.stderr)
        return 1
    finally:
        progress.close()
    train, val = args.scenes
    print(
        f'{args.out}: {"complete" if is_new else "was complete already"} ({train} + {val} scenes '
        f'of {args.keyframes} frames)'
    )
    return 0
