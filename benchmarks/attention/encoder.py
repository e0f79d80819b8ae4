"""`benchmark.py encoder`: a detector's sparse parts on one point cloud, forward only."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict

import torch
from torch import nn
from tqdm import trange

from stratified3d.layers.attention import StratifiedAttention
from stratified3d.layers.sparse_conv import SparseConv

# an innermost part takes its time out of the one around it
PARTS = {'attention and strata': StratifiedAttention, 'sparse convolutions': SparseConv}


def time_encoder(
    model: nn.Module, points: torch.Tensor, runs: int
) -> tuple[dict[str, list[float]], int]:
    """Seconds of each part in every run, and the number of voxels."""
    seconds, started = defaultdict(list), {}

    def begin(module: nn.Module, _) -> None:
        started[module] = time.perf_counter()

    for name, kind in PARTS.items():

        def end(module: nn.Module, *_, name: str = name) -> None:
            seconds[name][-1] += time.perf_counter() - started[module]

        for module in model.encoder.modules():
            if isinstance(module, kind):
                module.register_forward_pre_hook(begin)
                module.register_forward_hook(end)
    with torch.no_grad():
        for _ in trange(runs + 2, desc='timing'):
            for name in PARTS:
                seconds[name].append(0.0)
            start = time.perf_counter()
            feats, coords = model.voxel_encoder([points])
            middle = time.perf_counter()
            model.encoder(feats, coords, 1)
            seconds['voxel encoder'].append(middle - start)
            seconds['encoder'].append(time.perf_counter() - middle)
    # the first two runs warm up
    return {name: values[2:] for name, values in seconds.items()}, len(coords)


def render(seconds: dict[str, list[float]], points: int, voxels: int, machine: str) -> str:
    """Medians, and what part of the encoder each takes."""
    median = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    rest = median['encoder'] - sum(median[name] for name in PARTS)
    lines = [
        f'{points} points, {voxels} voxels; {machine}; median of {len(seconds["encoder"])} runs',
        f'{"voxel encoder":<36}{median["voxel encoder"]:>8.1f} ms',
        f'{"stratified encoder":<36}{median["encoder"]:>8.1f} ms',
    ]
    for name, value in [
        *((n, median[n]) for n in PARTS),
        ('norms, feed-forward, windows, map', rest),
    ]:
        lines.append(f'  {name:<34}{value:>8.1f} ms {value / median["encoder"]:>6.0%}')
    return '\n'.join(lines)
