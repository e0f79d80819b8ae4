#!/usr/bin/env python
"""Measure time and peak memory of tools/waymo_eval.py on Objects files of synthetic boxes."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from stratified3d.commands import begin_command

begin_command('benchmark_waymo.py')

from tqdm import tqdm

from stratified3d.evaluation.waymo.files import make_messages, write_objects
from stratified3d.evaluation.waymo.synthetic_boxes import synthetic_frames

EXAMPLES = """examples:
  python tools/benchmark_waymo.py                 the size of Waymo's validation set, 0.7 GB on disk
  python tools/benchmark_waymo.py --frames 2000 --keep /tmp/boxes
"""
CHUNK = 500  # frames that are made at a time


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default, of in (
        ('frames', 40_000, 'in total'),
        ('predictions', 100, 'per frame'),
        ('ground-truths', 40, 'per frame'),
        ('seed', 0, 'of the boxes'),
    ):
        parser.add_argument(
            f'--{name}', type=int, default=default, help=f'{of} (default: %(default)s)'
        )
    parser.add_argument('--keep', type=Path, metavar='FOLDER', help='write the files there')
    return parser.parse_args()


def synthesize(args: argparse.Namespace, which: int, name: str) -> Iterator:
    """Messages of the predictions (0) or ground truths (1)."""
    starts = range(0, args.frames, CHUNK)
    for first in tqdm(starts, f'synthesizing {name}', unit=f'{CHUNK} frames'):
        count = min(CHUNK, args.frames - first)
        objects = synthetic_frames(
            count, args.predictions, args.ground_truths, args.seed, first=first
        )
        yield from make_messages(objects[which])


def main() -> int:
    args = parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f'{name}.bin' for name in ('predictions', 'ground_truths')]
        for which, path in enumerate(paths):
            write_objects(path, synthesize(args, which, path.stem))

        tool = Path(__file__).with_name('waymo_eval.py')
        start = time.perf_counter()
        subprocess.run([sys.executable, tool, *paths], check=True)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f'{args.frames} frames of {args.predictions} predictions and {args.ground_truths} ground '
        f'truths: {seconds:.1f} s ({used.ru_utime + used.ru_stime:.1f} s of CPU time), '
        f'{used.ru_maxrss / 2**20:.2f} GB'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
