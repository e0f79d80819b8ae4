"""Compare a packaged detector with the model it was made from: time, memory, boxes.

python -m benchmarks.detectors.deployed CONFIG CHECKPOINT detector.pt2 sweep.pcd.bin
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from benchmarks.measure import spread, timed
from stratified3d.apis import detect, init_detector
from stratified3d.cli.export import frames_to_check
from stratified3d.datasets.custom.infos import list_frames
from stratified3d.datasets.io.point_files import read_points
from stratified3d.deploy import load
from stratified3d.deploy.compare import LIMIT, compare_frames, render, vary_size
from stratified3d.deploy.export import build_program
from stratified3d.deploy.onnx_half import export_onnx
from stratified3d.deploy.package import PackagedDetector
from stratified3d.deploy.program import DetectorProgram
from stratified3d.detections import Detections
from stratified3d.simulation import simulate_frame

# run in a process of its own, which has imported nothing yet
_START = """
import time
start = time.perf_counter()
import sys
import numpy
from stratified3d.deploy import load
imported = time.perf_counter()
detector = load(sys.argv[1])
loaded = time.perf_counter()
detector(numpy.load(sys.argv[2]))
done = time.perf_counter()
print(imported - start, loaded - imported, done - loaded)
"""
_SIZES = 16  # of the frames that follow each other


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parse(arguments)
    try:
        packaged = load(args.package)
        points = read_points(args.points)[:, :4]
        if args.folder is not None and packaged.info['bev_dtype'] != 'float32':
            raise ValueError('--folder compares boxes of a package in fp32, and this is none')
    except (OSError, ValueError) as error:
        sys.exit(f'deployed: {error}')
    print(f'{torch.get_num_threads()} threads, torch {torch.__version__}, {len(points)} points')
    if args.starts:
        time_start(args.package, points, args.starts)
    if args.repeat:
        watch_memory(packaged, points, args.repeat)
    if args.runs:
        time_all(args, packaged, points)
    if args.frames:
        compare_all(args, packaged)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='deployed', description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('package', type=Path)
    parser.add_argument('points', type=Path, help='a file of points')
    parser.add_argument('--starts', type=int, default=0, help='new processes that are timed')
    parser.add_argument('--repeat', type=int, default=200, help='frames in a row, for memory')
    parser.add_argument('--runs', type=int, default=10, help='rounds that are timed (default: 10)')
    parser.add_argument(
        '--compile', action='store_true', help='time torch.compile, too: takes minutes to start'
    )
    parser.add_argument('--frames', type=int, default=100, help='to compare boxes (default: 100)')
    parser.add_argument(
        '--folder', type=Path, help='of point files to compare boxes in (default: simulated)'
    )
    parser.add_argument('--score', type=float, default=0.0, help='of compared boxes, in bf16')
    parser.add_argument('--limit', type=float, default=LIMIT, help='within which boxes are equal')
    args = parser.parse_args(arguments)
    for name in ('starts', 'repeat', 'runs', 'frames'):
        if getattr(args, name) < 0:
            parser.error(f'--{name} is 0 (leave out) or more, not {getattr(args, name)}')
    return args


def time_start(package: Path, points: np.ndarray, starts: int) -> None:
    """Print the seconds that a new process takes for imports, `load` and its first frame."""
    spent = []
    with tempfile.TemporaryDirectory() as folder:
        np.save(f'{folder}/points.npy', points)
        files = [str(package), f'{folder}/points.npy']
        command = [sys.executable, '-W', 'ignore', '-c', _START, *files]
        for _ in range(starts + 1):  # the first finds files that the machine has not read yet
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            spent.append([float(word) for word in result.stdout.split()])
    imports, loading, first = (spread(column).median for column in zip(*spent[1:]))
    print(f'start: {imports:.2f} s imports, {loading:.2f} s load, {first:.2f} s first frame')


def watch_memory(packaged: PackagedDetector, points: np.ndarray, repeat: int) -> list[float]:
    """Return and print the resident memory (MiB) while frames of all sizes follow each other.

    The first is that before any frame, the others follow at equal steps.
    """
    process = psutil.Process()
    sizes = [vary_size(points, i, _SIZES) for i in range(_SIZES)]
    used = [process.memory_info().rss / 2**20]
    print(f'resident memory after loading: {used[0]:.0f} MiB')
    for i in range(repeat):
        packaged(sizes[i % _SIZES])
        if (i + 1) % max(repeat // 10, 1) == 0:
            used.append(process.memory_info().rss / 2**20)
            print(f'after {i + 1} frames: {used[-1]:.0f} MiB', flush=True)
    return used


def time_all(args: argparse.Namespace, packaged: PackagedDetector, points: np.ndarray) -> None:
    """Print milliseconds per frame, measured in turn."""
    device, bev_dtype = packaged.info['device'], packaged.info['bev_dtype']
    model = init_detector(args.config, args.checkpoint, device)
    exact = init_detector(args.config, args.checkpoint, device)
    exact.bev_dtype = 'fp32'
    with torch.no_grad():
        program, info = build_program(model, getattr(torch, bev_dtype))
        plain = PackagedDetector(program, info)
        ways: dict[str, Callable[[], Detections]] = {
            f'model, BEV part in {model.bev_dtype}': lambda: detect(model, points),
            'model, BEV part in fp32': lambda: detect(exact, points),
            f'program, not compiled, {bev_dtype}': lambda: plain(points),
            f'package, {bev_dtype}': lambda: packaged(points),
        }
        if args.compile:
            compiled = PackagedDetector(torch.compile(program, dynamic=True), info)
            ways[f'program, torch.compile, {bev_dtype}'] = lambda: compiled(points)
        if device == 'cpu' and find_spec('onnxruntime'):
            onnx = PackagedDetector(with_onnx_half(build_program(model, torch.float32)[0]), info)
            ways['program, dense half in onnxruntime'] = lambda: onnx(points)
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for i in range(args.runs + 2):
            for name, way in ways.items():
                time = timed(way, torch.device(device), runs=1, warmup=0).median
                spent[name] += [time] if i >= 2 else []
    for name, times in spent.items():
        print(f'{name:<36} {"{:.0f} ms ({:.0f}-{:.0f})".format(*spread(times))}')


def with_onnx_half(program: DetectorProgram) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A program in fp32 that leaves the way from BEV feature map to boxes to onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # threads that spin after the last frame would slow what is timed next
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(program, f'{folder}/half.onnx')
        session = onnxruntime.InferenceSession(f'{folder}/half.onnx', options)

    def run(points: Tensor) -> tuple[Tensor, ...]:
        bev, voxels = program.encode(points)
        *found, count = map(torch.as_tensor, session.run(None, {'bev': bev.numpy()}))
        return *found, count * (voxels > 0), voxels

    return run


def compare_all(args: argparse.Namespace, packaged: PackagedDetector) -> None:
    """Print how far boxes and scores are from the model's in fp32."""
    exact = init_detector(args.config, args.checkpoint, packaged.info['device'])
    exact.bev_dtype = 'fp32'
    if packaged.info['bev_dtype'] == 'bfloat16':
        print_rounding(args, packaged, exact)
        return
    files = None if args.folder is None else list(list_frames(args.folder).values())
    frames = frames_to_check(args.frames, files)
    differences = list(compare_frames(packaged, exact, detect, frames, args.limit))
    print(render(differences, args.limit))


def print_rounding(args: argparse.Namespace, packaged: PackagedDetector, exact: Any) -> None:
    """Print how far a package and a model in bf16 are from the model in fp32, in whole frames."""
    rounded = init_detector(args.config, args.checkpoint, packaged.info['device'])
    rounded.bev_dtype = 'bf16'
    ways: dict[str, Callable[[np.ndarray], Detections]] = {
        'package': packaged,
        'model in bf16': lambda points: detect(rounded, points),
    }
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
        middle, most = np.quantile(gap, (0.5, 0.95)) if len(gap) else (np.nan, np.nan)
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
