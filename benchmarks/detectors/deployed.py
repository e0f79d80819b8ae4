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
    parser.add_argument('--repeat', type=int, default=200, help='frames in a row, for memory')
    args = parser.parse_args()
    packaged = load(args.package)
    points = read_points(args.points)[:, :4]
    print(f'{torch.get_num_threads()} threads, torch {torch.__version__}, {len(points)} points')
    watch_memory(packaged, points, args.repeat)
    time_all(args, packaged, points)
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

    For a package in bf16, those of the model in bf16 too.
    """
    exact = init_detector(args.config, args.checkpoint, packaged.info['device'])
    exact.bev_dtype = 'fp32'
    ways: dict[str, Callable[[np.ndarray], Detections]] = {'package': packaged}
    if packaged.info['bev_dtype'] == 'bfloat16':
        rounded = init_detector(args.config, args.checkpoint, packaged.info['device'])
        rounded.bev_dtype = 'bf16'
        ways['model in bf16'] = lambda points: detect(rounded, points)
    total = 0
    missing = dict.fromkeys(ways, 0)
    gaps: dict[str, list[float]] = {name: [0.0] for name in ways}
    for seed in range(args.frames):
        points = simulate_frame(seed, sensor='mixed')['points']
        expected = detect(exact, points)
        total += len(expected.boxes)
        for name, way in ways.items():
            lost, found = compare(way(points), expected)
            missing[name] += lost
            gaps[name] += found
    print(f'{args.frames} simulated frames, {total} boxes of the model in fp32')
    for name in ways:
        print(
            f'{name}: {missing[name]} boxes without an equal, others within {max(gaps[name]):.1e}'
        )


def compare(found: Detections, expected: Detections, limit: float = 0.01) -> tuple[int, list]:
    """Match boxes one to one.

    Returns:
        How many boxes of either side have no box of the same class within the limit (m, rad, m/s,
        and the score) on the other, and the largest gap of each pair.
    """
    rest = list(range(len(found.boxes)))
    gaps = []
    for box, score, name in zip(*expected):
        pairs = [
            (max(np.abs(found.boxes[i] - box).max(), abs(found.scores[i] - score)), i)
            for i in rest
            if found.names[i] == name
        ]
        gap, best = min(pairs, default=(np.inf, -1))
        if gap <= limit:
            gaps.append(float(gap))
            rest.remove(best)
    return len(expected.boxes) - len(gaps) + len(rest), gaps


if __name__ == '__main__':
    sys.exit(main())
