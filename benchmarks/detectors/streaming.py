"""`benchmark.py stream`: a detector on a stream of frames, with memory and with stacked sweeps."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor
from tqdm import tqdm

from benchmarks.measure import spread, wait
from benchmarks.report import number, table
from stratified3d.apis import init_detector
from stratified3d.simulation.layouts.catalog import LAYOUTS, build_scene
from stratified3d.simulation.physics.scanners import SWEEP_SECONDS

_CLOSE = 1.0  # m around the sensor, where points are of the car itself
ONE, MEMORY, STACKED = 'one sweep', 'one sweep, memory of {}', '{} sweeps stacked'


class StreamFrame(NamedTuple):
    """points [P, 5] x, y, z (m), intensity, age (0 s); pose [4, 4] LiDAR to world; time (s)."""

    points: Tensor
    pose: np.ndarray
    time: float


def simulate_stream(count: int, every: int = 1, seed: int = 0) -> list[StreamFrame]:
    """Simulate consecutive sweeps of one scene.

    Args:
        count: how many.
        every: 20 Hz sweeps between one frame and the next.
        seed: of the scene.
    """
    step = every * SWEEP_SECONDS
    layout = list(LAYOUTS)[seed % len(LAYOUTS)]
    scene = build_scene(layout, (seed, 0), count * step)
    frames = []
    for i in tqdm(range(count), desc='simulating'):
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, i], np.uint64)))
        points, _ = scene.sweep(i * step, rng, scene.sensor.scanner.noise)
        points = points[np.linalg.norm(points[:, :3], axis=1) > _CLOSE]
        points[:, 4] = 0
        lidar = scene.lidar_pose(np.array([i * step]))
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = lidar.rotation[0], lidar.translation[0]
        frames.append(StreamFrame(torch.from_numpy(points), pose, i * step))
    return frames


def stack_sweeps(frames: Sequence[StreamFrame]) -> StreamFrame:
    """The last frame with the points of all, moved into it and with their ages."""
    last = frames[-1]
    parts = []
    for frame in frames:
        move = np.linalg.inv(last.pose) @ frame.pose
        points = frame.points.double().numpy()
        points[:, :3] = points[:, :3] @ move[:3, :3].T + move[:3, 3]
        points[:, 4] = last.time - frame.time
        parts.append(points.astype(np.float32))
    return last._replace(points=torch.from_numpy(np.concatenate(parts)))


class StreamRunner:
    """A detector with random weights that carries its state from frame to frame.

    Args:
        config: of the detector.
        device: where it runs.
        dtype: of autocast; float32 is none.
    """

    def __init__(self, config: Config, device: torch.device, dtype: torch.dtype = torch.float32):
        torch.manual_seed(0)
        self.model = init_detector(config, device=device)
        self.device = device
        self.dtype = dtype
        self.state = None

    def time(self, frame: StreamFrame) -> float:
        """Milliseconds of the next frame, from points on the device to boxes."""
        points = frame.points.to(self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            wait(self.device)
            start = time.perf_counter()
            _, self.state = self.model.stream(points, frame.pose, frame.time, self.state)
            wait(self.device)
        return 1e3 * (time.perf_counter() - start)


def with_memory(config: Config, frames: int) -> Config:
    """The config with a memory of so many earlier frames."""
    config = copy.deepcopy(config)
    config.model.encoder.setdefault('mixer', {}).update(memory=dict(frames=frames))
    return config


def stream_times(
    config: Config,
    frames: Sequence[StreamFrame],
    memory: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, list[float]]:
    """Milliseconds per frame of three detectors, frame by frame in turns, once memory is full.

    Args:
        config: of a detector without memory; weights are random.
        frames: of one stream.
        memory: K earlier frames, remembered or stacked.
        device, dtype: of the models; another dtype than float32 is autocast's.
    """
    plain = StreamRunner(config, device, dtype)
    remembering = StreamRunner(with_memory(config, memory), device, dtype)
    names = (ONE, MEMORY.format(memory), STACKED.format(memory + 1))
    spent: dict[str, list[float]] = {name: [] for name in names}
    for i, frame in enumerate(tqdm(frames, desc='frames')):
        stacked = stack_sweeps(frames[max(i - memory, 0) : i + 1])
        turns = [(plain, frame), (remembering, frame), (plain, stacked)]
        for turn in range(3):
            k = (turn + i) % 3
            runner, points = turns[k]
            milliseconds = runner.time(points)
            if i > memory:  # the frame before was the first with a full memory
                spent[names[k]].append(milliseconds)
    return spent


def run(
    config: Config,
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    memory: int = 4,
    every: int = 2,
) -> dict[str, Any]:
    """Time a config's detector on a simulated stream.

    Args:
        config: of a detector without memory.
        runs: timed frames, at least 1.
        memory: K earlier frames.
        every: 20 Hz sweeps between two frames.
    Returns:
        rows: name, points (mean of a frame), ms, and ratio to the stacked sweeps, frame by frame.
    Raises:
        ValueError: no frames, no memory.
    """
    if min(runs, memory, every) < 1:
        raise ValueError(f'{runs} frames, memory {memory}, every {every}: all are at least 1')
    frames = simulate_stream(runs + memory + 1, every)
    times = stream_times(config, frames, memory, device, dtype)
    points = sum(len(frame.points) for frame in frames) / len(frames)
    *_, slowest = times.values()
    rows = []
    for name, values in times.items():
        ratio = spread([a / b for a, b in zip(values, slowest)])
        factor = memory + 1 if values is slowest else 1
        rows.append(dict(name=name, points=factor * points, ms=spread(values), ratio=ratio))
    return dict(frames=runs, seconds=every * SWEEP_SECONDS, rows=rows)


def render(result: dict[str, Any]) -> str:
    """Table of the three ways to see earlier frames."""
    lines = [['input', 'points per frame', 'ms per frame', 'quartiles', 'relative to stacked']]
    for row in result['rows']:
        low, high = row['ms'].low, row['ms'].high
        lines.append(
            [
                row['name'],
                f'{row["points"]:,.0f}',
                number(row['ms'].median),
                f'{number(low)} to {number(high)}',
                f'{row["ratio"].median:.2f}',
            ]
        )
    return (
        f'Median over {result["frames"]} frames of a simulated stream, {result["seconds"]:g} s '
        'apart; every frame runs through each detector in turns. Random weights; everything from '
        'points to boxes. Loading frames and aligning sweeps are not counted.\n\n' + table(lines)
    )
