"""Compare a packaged detector with the model it was made from: time, memory, boxes.

python -m benchmarks.detectors.deployed CONFIG CHECKPOINT detector.pt2 sweep.pcd.bin
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks.measure import spread, timed
from stratified3d.apis import detect, init_detector
from stratified3d.datasets.io.point_files import read_points
from stratified3d.deploy import load
from stratified3d.deploy.export import describe
from stratified3d.deploy.package import PackagedDetector
from stratified3d.deploy.program import DetectorProgram
from stratified3d.detections import Detections
from stratified3d.simulation import simulate_frame


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('package', type=Path)
    parser.add_argument('points', type=Path, help='a file of points')
    parser.add_argument('--runs', type=int, default=10, help='rounds that are timed (default: 10)')
    parser.add_argument('--frames', type=int, default=100, help='simulated, to compare boxes')
    parser.add_argument('--score', type=float, default=0.0, help='of the boxes that are compared')
    parser.add_argument('--limit', type=float, default=1e-3, help='within which boxes are equal')
    parser.add_argument('--repeat', type=int, default=200, help='frames in a row, for memory')
    args = parser.parse_args()
    packaged = load(args.package)
    points = read_points(args.points)[:, :4]
    print(f'{torch.get_num_threads()} threads, torch {torch.__version__}, {len(points)} points')
    watch_memory(packaged, points, args.repeat)
    time_all(args, packaged, points)
    if args.frames:
        compare_all(args, packaged)
    return 0


def watch_memory(packaged: PackagedDetector, points: np.ndarray, repeat: int) -> None:
    """Print the resident memory while frames of several sizes follow each other."""
    process = psutil.Process()
    print(f'resident memory after loading: {process.memory_info().rss / 2**20:.0f} MiB')
    for i in range(repeat):
        packaged(points[:: 1 + i % 4])
        if (i + 1) % max(repeat // 10, 1) == 0:
            print(f'after {i + 1} frames: {process.memory_info().rss / 2**20:.0f} MiB', flush=True)


def time_all(args: argparse.Namespace, packaged: PackagedDetector, points: np.ndarray) -> None:
    """Print milliseconds per frame, measured in turn."""
    model = init_detector(args.config, args.checkpoint, packaged.info['device'])
    exact = init_detector(args.config, args.checkpoint, packaged.info['device'])
    exact.bev_dtype = 'fp32'
    dtype = getattr(torch, packaged.info['bev_dtype'])
    with torch.no_grad():
        program = PackagedDetector(
            DetectorProgram(model, dtype), describe(model, dtype, None, 'error')
        )
        ways: dict[str, Callable[[], Detections]] = {
            f'model, BEV part in {model.bev_dtype}': lambda: detect(model, points),
            'model, BEV part in fp32': lambda: detect(exact, points),
            f'program, not compiled, {packaged.info["bev_dtype"]}': lambda: program(points),
            f'package, {packaged.info["bev_dtype"]}': lambda: packaged(points),
        }
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for i in range(args.runs + 2):
            for name, way in ways.items():
                time = timed(way, torch.device(packaged.info['device']), runs=1, warmup=0).median
                spent[name] += [time] if i >= 2 else []
    for name, times in spent.items():
        print(f'{name:<36} {"{:.0f} ms ({:.0f}-{:.0f})".format(*spread(times))}')


def compare_all(args: argparse.Namespace, packaged: PackagedDetector) -> None:
    """Print how far boxes and scores of simulated frames are from the model's in fp32.

    For a package in bf16, how far those of the model in bf16 are, too.
    """
    exact = init_detector(args.config, args.checkpoint, packaged.info['device'])
    exact.bev_dtype = 'fp32'
    ways: dict[str, Callable[[np.ndarray], Detections]] = {'package': packaged}
    if packaged.info['bev_dtype'] == 'bfloat16':
        rounded = init_detector(args.config, args.checkpoint, packaged.info['device'])
        rounded.bev_dtype = 'bf16'
        ways['model in bf16'] = lambda points: detect(rounded, points)
    gaps: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    for seed in range(args.frames):
        points = simulate_frame(seed, sensor='mixed')['points']
        expected = detect(exact, points)
        for name, way in ways.items():
            found = way(points)
            gaps[name] += [nearest(found, expected, args.score)]
            gaps[name] += [nearest(expected, found, args.score)]
    print(f'{args.frames} simulated frames, boxes with a score of {args.score} or more')
    for name, parts in gaps.items():
        gap = np.concatenate(parts)
        middle, most = np.quantile(gap, (0.5, 0.95))
        print(
            f'{name}: {len(gap)} boxes of either side, {(gap > args.limit).sum()} with no equal '
            f'within {args.limit}; median {middle:.1e}, 95% within {most:.1e}, '
            f'largest of the equal ones {gap[gap <= args.limit].max(initial=0):.1e}'
        )


def nearest(found: Detections, expected: Detections, score: float) -> np.ndarray:
    """For each expected box with this score, how far the nearest found one of its class is.

    The gap is the largest in any number of the box (m, rad, m/s) or in the score.
    """
    ours = np.column_stack([found.boxes, found.scores])
    theirs = np.column_stack([expected.boxes, expected.scores])
    gap = np.abs(theirs[:, None] - ours).max(2, initial=0)
    is_other = np.array(expected.names)[:, None] != np.array(found.names)
    gap = np.where(is_other, np.inf, gap).min(1, initial=np.inf)
    return gap[expected.scores >= score]


if __name__ == '__main__':
    sys.exit(main())
