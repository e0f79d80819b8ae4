"""`benchmark.py encoder`: time a detector's sparse parts on one point cloud, forward only."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict

import torch
from torch import nn
from tqdm import trange

from stratified3d.layers.attention import StratifiedAttention
from stratified3d.layers.sparse_conv import SparseConv

# parts of the encoder that are timed on their own
PARTS: dict[str, type[nn.Module]] = {
    'attention and strata': StratifiedAttention,
    'sparse convolutions': SparseConv,
}
WARMUP = 2  # runs


def time_encoder(
    model: nn.Module, points: torch.Tensor, runs: int
) -> tuple[dict[str, list[float]], int]:
    """Seconds of each part in every run, and the number of voxels."""
    voxel_encoder = model.get_submodule('voxel_encoder')
    encoder = model.get_submodule('encoder')
    seconds: dict[str, list[float]] = defaultdict(list)
    for name, kind in PARTS.items():
        for module in encoder.modules():
            if isinstance(module, kind):
                _add_time_of(module, seconds[name])

    with torch.no_grad():
        for _ in trange(runs + WARMUP, desc='timing'):
            for name in PARTS:
                seconds[name].append(0.0)

            start = time.perf_counter()
            feats, coords = voxel_encoder([points])
            seconds['voxel encoder'].append(time.perf_counter() - start)

            start = time.perf_counter()
            encoder(feats, coords, 1)
            seconds['encoder'].append(time.perf_counter() - start)
    return {name: values[WARMUP:] for name, values in seconds.items()}, len(coords)


def _add_time_of(module: nn.Module, seconds: list[float]) -> None:
    """Let every forward pass of module add its time to the last of the seconds."""
    started = 0.0

    def begin(*_) -> None:
        nonlocal started
        started = time.perf_counter()

    def end(*_) -> None:
        seconds[-1] += time.perf_counter() - started

    module.register_forward_pre_hook(begin)
    module.register_forward_hook(end)


def render(seconds: dict[str, list[float]], points: int, voxels: int, machine: str) -> str:
    """Median milliseconds of each part, and its share of the encoder's time."""
    median = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    encoder = median['encoder']
    parts = {name: median[name] for name in PARTS}
    parts['norms, feed-forward, windows, BEV'] = encoder - sum(parts.values())
    lines = [
        f'{points} points, {voxels} voxels; {machine}; median of {len(seconds["encoder"])} runs',
        f'{"voxel encoder":<36}{median["voxel encoder"]:>8.1f} ms',
        f'{"stratified encoder":<36}{encoder:>8.1f} ms',
    ]
    for name, value in parts.items():
        lines.append(f'  {name:<34}{value:>8.1f} ms {value / encoder:>6.0%}')
    return '\n'.join(lines)
