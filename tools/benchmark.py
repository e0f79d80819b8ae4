#!/usr/bin/env python
"""Time a detector's parts on one point cloud, forward only, on this machine."""
from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn
from tqdm import trange

from stratified3d.apis import init_detector
from stratified3d.datasets.point_files import read_points
from stratified3d.layers.attention import StratifiedAttention
from stratified3d.layers.sparse_conv import SparseConv

CONFIG = Path(__file__).parents[1] / 'configs/stratified/stratified-centerpoint_voxel03_8xb4-cyclic-20e_nus-3d.py'
EXAMPLES = """examples:
  python tools/benchmark.py encoder sweep.pcd.bin
  python tools/benchmark.py encoder sweep.pcd.bin --config my_config.py --runs 20
"""
# an innermost part takes its time out of the one around it
PARTS = {'attention and strata': StratifiedAttention, 'sparse convolutions': SparseConv}


def time_encoder(model: nn.Module, points: torch.Tensor, runs: int) -> tuple[dict[str, list[float]], int]:
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['encoder'], help='encoder: voxel encoder and stratified encoder, by part')
    parser.add_argument('points', help='.bin, .npy, .pcd or .ply file of one sweep')
    parser.add_argument('--config', default=CONFIG, help='default: the nuScenes config')
    parser.add_argument('--runs', type=int, default=10, help='counted runs, after two that warm up')
    args = parser.parse_args()
    try:
        points = torch.from_numpy(read_points(args.points))
        model = init_detector(args.config, device='cpu')
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'benchmark.py: {error}')
    points = torch.cat([points, points.new_zeros(len(points), 1)], 1)
    seconds, voxels = time_encoder(model, points, max(1, args.runs))
    median = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    rest = median['encoder'] - sum(median[name] for name in PARTS)
    print(f'\n{len(points)} points, {voxels} voxels; {platform.processor() or platform.machine()}, '
          f'{torch.get_num_threads()} threads, torch {torch.__version__}; median of {max(1, args.runs)} runs')
    print(f'{"voxel encoder":<36}{median["voxel encoder"]:>8.1f} ms')
    print(f'{"stratified encoder":<36}{median["encoder"]:>8.1f} ms')
    for name, value in [*((n, median[n]) for n in PARTS), ('norms, feed-forward, windows, map', rest)]:
        print(f'  {name:<34}{value:>8.1f} ms {value / median["encoder"]:>6.0%}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
