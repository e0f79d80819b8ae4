#!/usr/bin/env python
"""Simulate a LiDAR dataset in nuScenes' or Waymo's format; `--help` tells how."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stratified3d.simulation import (
    NuScenesSettings,
    WaymoSettings,
    simulate_dataset,
    simulate_waymo,
)

EXAMPLES = """examples:
  python tools/simulate.py data/simulated                          8 + 2 scenes, 1.4 GB
  python tools/simulate.py data/tiny --scenes 1+1 --keyframes 4    a set for trying things out
  python tools/simulate.py data/large --version v1.0-trainval --scenes 160+40 --keyframes 40 --workers 16
  python tools/simulate.py data/waymo_v2 --format waymo --scenes 6+2 --keyframes 20     parquet, as Waymo's v2

Interrupted, it goes on where it stopped when the same command is given again; a finished set is left as it is.
The same options give the same bytes for any --workers."""


def _scenes(text: str) -> tuple[int, int]:
    """'8+2' -> (8, 2); '10' -> the same, four training scenes to one validation scene."""
    try:
        parts = [int(part) for part in text.split('+')]
        if min(parts) < 0 or len(parts) > 2:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is neither TRAIN+VAL, e.g. 8+2, nor a number of scenes"
        ) from None
    if len(parts) == 1:
        parts = [
            parts[0] - max(parts[0] // 5, min(parts[0] - 1, 1)),
            max(parts[0] // 5, min(parts[0] - 1, 1)),
        ]
    return parts[0], parts[1]


def main() -> int:
    """Parse, simulate, report."""
    parser = argparse.ArgumentParser(
        description='Simulate a LiDAR dataset in the format of nuScenes, or of Waymo (perception v2).',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = NuScenesSettings()
    parser.add_argument(
        'out', help='folder of the dataset: new, empty, or begun with the same options'
    )
    parser.add_argument(
        '--format', choices=('nuscenes', 'waymo'), default='nuscenes', help='default %(default)s'
    )
    parser.add_argument(
        '--scenes',
        type=_scenes,
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
        help='stored per keyframe interval, the keyframe included; 10 is all of 20 Hz (default %(default)s)',
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
    args = parser.parse_args()
    simulate, settings = (
        simulate_dataset,
        NuScenesSettings(args.version, *args.scenes, args.keyframes, args.sweeps, args.seed),
    )
    if args.format == 'waymo':
        if (args.version, args.sweeps) != (default.version, default.sweeps):
            parser.error("--version and --sweeps are nuScenes'; Waymo has neither")
        simulate, settings = simulate_waymo, WaymoSettings(*args.scenes, args.keyframes, args.seed)
    try:
        from tqdm import tqdm
    except ImportError:  # a bare training machine has numpy and numba only
        tqdm = None
    bar = tqdm(unit='frame', dynamic_ncols=True) if tqdm else None

    def progress(done: int, total: int) -> None:
        if bar is None:
            print(f'\r{done}/{total} frames', end='', file=sys.stderr, flush=True)
            return
        bar.total = total
        if not bar.n:
            bar.initial = done
        bar.update(done - bar.n)

    try:
        fresh = simulate(args.out, settings, workers=args.workers, progress=progress)
    except (ValueError, OSError, ImportError) as error:
        print(
            f'\nsimulate.py: {error.strerror if isinstance(error, OSError) and not error.filename else error}',
            file=sys.stderr,
        )
        return 1
    finally:
        if bar is not None:
            bar.close()
    print(
        f'{args.out}: {"complete" if fresh else "was complete already"} ({settings.train} + {settings.val} '
        f'scenes of {args.keyframes} frames)'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
