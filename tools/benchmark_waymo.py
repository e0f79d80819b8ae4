#!/usr/bin/env python
"""Time tools/waymo_eval.py, reading and scoring, on Objects files of simulated boxes, and take its
peak memory."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from stratified3d.evaluation.waymo.files import make_messages, write_objects
from stratified3d.evaluation.waymo.random_boxes import random_frames

EXAMPLES = """examples:
  python tools/benchmark_waymo.py                                  the size of Waymo's validation set: 0.7 GB on disk
  python tools/benchmark_waymo.py --frames 2000 --keep /tmp/boxes
"""
_FRAMES = 500  # simulated at a time


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (('frames', 40_000), ('predictions', 100), ('truths', 40), ('seed', 0)):
        parser.add_argument(
            f'--{name}',
            type=int,
            default=default,
            help=f'default: {default}'
            + (', in each frame' if name in ('predictions', 'truths') else ''),
        )
    parser.add_argument('--keep', type=Path, metavar='FOLDER', help='let the files lie there')
    return parser.parse_args()


def simulate(args: argparse.Namespace, which: int, name: str) -> Iterator:
    """Messages of the predictions (0) or truths (1)."""
    for first in tqdm(
        range(0, args.frames, _FRAMES), f'simulating {name}', unit=f'{_FRAMES} frames'
    ):
        count = min(_FRAMES, args.frames - first)
        yield from make_messages(
            random_frames(count, args.predictions, args.truths, args.seed, first=first)[which]
        )


def main() -> int:
    args = parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f'{name}.bin' for name in ('predictions', 'ground_truths')]
        for which, path in enumerate(paths):
            write_objects(path, simulate(args, which, path.stem))
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, Path(__file__).with_name('waymo_eval.py'), *paths], check=True
        )
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f'{args.frames} frames of {args.predictions} predictions and {args.truths} truths: {seconds:.1f} s '
        f'({used.ru_utime + used.ru_stime:.1f} s of CPU time), {used.ru_maxrss / 2**20:.2f} GB'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
