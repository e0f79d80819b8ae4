"""`benchmark.py complexity`: floating-point operations, counted by torch where that is possible and
by formula beyond.

A layer is the mixer with its projections, C channels, on n tokens that fill a grid of one sample; a
multiply-add is two operations; softmax, norms and rotations are not counted, as torch's counter
does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import table
from projects.attention_zoo import FullAttention, LinformerAttention, PerformerAttention
from stratified3d.layers.attention import StratifiedAttention, build_window_grid

HEADS, WIDTH, STRATA, FEATURES, RANK = 4, 32, 64, 256, 256
C = HEADS * WIDTH
# tokens as (y, x), and the side of a window: 7 as in Swin where the grid is an image's 14 x 14,
# else 8
GRIDS = {196: (14, 14, 7), 4096: (64, 64, 8), 65536: (256, 256, 8), 100000: (400, 250, 8)}
COUNTED = 4096  # tokens up to which torch counts the layer itself


class Layer(NamedTuple):
    """make(n) builds the mixer for n tokens; formula(n, pairs): operations, pairs being those of
    one window."""

    make: Callable[[int], nn.Module]
    formula: Callable[[int, int], int]


def _projections(n: int) -> int:
    return 8 * n * C * C  # q, k, v and the output


LAYERS = {
    'full': Layer(
        lambda n: FullAttention(C, HEADS), lambda n, pairs: _projections(n) + 4 * n * n * C
    ),
    'windows (Swin)': Layer(
        lambda n: StratifiedAttention(C, HEADS, 0, backend='reference'),
        lambda n, pairs: _projections(n) + 4 * pairs * C,
    ),
    # windows, tokens that collect and are read; tokens' score, query, output, key and value
    f'stratified ({STRATA})': Layer(
        lambda n: StratifiedAttention(C, HEADS, STRATA, backend='reference'),
        lambda n, pairs: (
            _projections(n) + 4 * pairs * C + 8 * n * STRATA * C + 2 * n * C + 8 * STRATA * C * C
        ),
    ),
    # features of q and k, their sums with the values, reading them, and the normalizer
    f'Performer ({FEATURES} features)': Layer(
        lambda n: PerformerAttention(C, HEADS, num_features=FEATURES),
        lambda n, pairs: _projections(n) + 8 * n * FEATURES * C + 2 * n * FEATURES * HEADS,
    ),
    # projected keys and values, attention to them
    f'Linformer ({RANK} rows)': Layer(
        lambda n: LinformerAttention(C, HEADS, rank=RANK, length=n),
        lambda n, pairs: _projections(n) + 8 * n * RANK * C,
    ),
}

# multilayer perceptrons over neighborhoods: (centers, neighbors, widths), and over points:
# (points, widths)
POINT_NETWORKS = {
    'PointNet++ SSG, 8,192 points (segmentation, its authors)': (
        [
            (1024, 32, (6, 32, 32, 64)),
            (256, 32, (67, 64, 64, 128)),
            (64, 32, (131, 128, 128, 256)),
            (16, 32, (259, 256, 256, 512)),
        ],
        [
            (64, (768, 256, 256)),
            (256, (384, 256, 256)),
            (1024, (320, 256, 128)),
            (8192, (128, 128, 128, 128)),
        ],
    ),
    'PointNet++ MSG, 16,384 points (backbone of PointRCNN)': (
        [
            (4096, 16, (4, 16, 16, 32)),
            (4096, 32, (4, 32, 32, 64)),
            (1024, 16, (99, 64, 64, 128)),
            (1024, 32, (99, 64, 96, 128)),
            (256, 16, (259, 128, 196, 256)),
            (256, 32, (259, 128, 196, 256)),
            (64, 16, (515, 256, 256, 512)),
            (64, 32, (515, 256, 384, 512)),
        ],
        [
            (256, (1536, 512, 512)),
            (1024, (768, 512, 512)),
            (4096, (608, 256, 256)),
            (16384, (257, 128, 128)),
        ],
    ),
}


def point_network_flops(neighborhoods: list, points: list) -> int:
    """Operations of the perceptrons; the search for neighbors is not counted."""
    return sum(
        2 * rows * sum(a * b for a, b in zip(widths, widths[1:]))
        for rows, widths in (
            *((centers * neighbors, widths) for centers, neighbors, widths in neighborhoods),
            *points,
        )
    )


def window_pairs(n: int) -> int:
    """Pairs of tokens of one window, over the whole grid of n."""
    rows, columns, side = GRIDS[n]
    lengths = [
        [min(side, size - start) for start in range(0, size, side)] for size in (rows, columns)
    ]
    return sum((a * b) ** 2 for a in lengths[0] for b in lengths[1])


def count_by_torch(name: str, n: int) -> int:
    """Operations of a layer's forward pass as torch.utils.flop_counter counts them."""
    rows, columns, side = GRIDS[n]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing='ij')
    coords = torch.stack([torch.zeros(n), torch.zeros(n), y.flatten(), x.flatten()], 1).int()
    grid = build_window_grid(
        coords,
        coords[:, [3, 2, 1]].float(),
        (1, side, side),
        (0, 0, 0),
        batch_size=1,
        spatial_shape=(1, rows, columns),
        head_dim=WIDTH,
    )
    layer = LAYERS[name].make(n)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        layer(torch.zeros(n, C), grid)
    return counter.get_total_flops()


def run(sizes: list[int]) -> dict[str, Any]:
    """Counts of every layer at every size; refuses a formula that torch's count does not confirm.

    Raises:
        AssertionError: formula and count differ.
    """
    counts: dict[str, dict[int, int]] = {}
    for name, layer in LAYERS.items():
        counts[name] = {}
        for n in sizes:
            flops = layer.formula(n, window_pairs(n))
            if n <= COUNTED:
                counted = count_by_torch(name, n)
                if counted != flops:
                    raise AssertionError(
                        f'{name} at {n} tokens: torch counts {counted} operations, the formula says '
                        f'{flops}'
                    )
            counts[name][n] = flops
    networks = {name: point_network_flops(*parts) for name, parts in POINT_NETWORKS.items()}
    return dict(
        channels=C,
        heads=HEADS,
        counts=counts,
        without_projections={
            name: {n: flops - _projections(n) for n, flops in row.items()}
            for name, row in counts.items()
        },
        point_networks=networks,
    )


def claims(result: dict[str, Any]) -> list[str]:
    """What articles print about such layers, and whether these counts bear it out."""
    ours, lines = f'stratified ({STRATA})', []
    sizes = list(result['counts'][ours])
    for what, counts in (
        ('layer', result['counts']),
        ('attention alone', result['without_projections']),
    ):
        ratio = {n: counts[ours][n] / counts['full'][n] for n in sizes}
        if 196 in ratio:
            lines.append(
                f'"0.6x of full attention at 196 tokens", {what}: {_holds(0.55 <= ratio[196] < 0.65)}; it is '
                f'{ratio[196]:.2f}x.'
            )
        if 4096 in ratio:
            lines.append(
                f'"1.5x of full attention at 4,096 tokens", {what}: {_holds(1.45 <= ratio[4096] < 1.55)}; it '
                f'is {ratio[4096]:.2f}x of full attention there'
            )
            if 196 in ratio:
                growth = counts[ours][4096] / counts[ours][196]
                against = counts[ours][4096] / counts['full'][196]
                lines[-1] += (
                    f', {growth:.1f}x of its own count at 196 tokens and {against:.1f}x of full attention at '
                    '196: no reading gives 1.5x'
                    if not any(1.45 <= r < 1.55 for r in (ratio[4096], growth, against))
                    else ''
                )
            lines[-1] += '.'
    if 100000 in sizes:
        layer = result['counts'][ours][100000]
        for name, flops in result['point_networks'].items():
            lines.append(
                f'"5x fewer than point networks on LiDAR", {name}: one layer on 100,000 voxels costs '
                f'{layer / 1e9:.1f} GFLOP, the network {flops / 1e9:.1f}: {flops / layer:.2f} of them; a '
                f'detector has several layers and convolutions besides. {_holds(flops >= 5 * layer)}.'.replace(
                    ' holds.', ' Holds for one layer.'
                ).replace(' does not hold.', ' Does not hold.')
            )
    return lines


def _holds(it_does: bool) -> str:
    return 'holds' if it_does else 'does not hold'


def render(result: dict[str, Any]) -> str:
    """Table of GFLOPs, then the claims."""
    sizes = list(next(iter(result['counts'].values())))
    parts = []
    for title, key in (
        ('A layer: attention with its four projections', 'counts'),
        ('Attention alone', 'without_projections'),
    ):
        rows = [['GFLOP at tokens', *(f'{n:,}' for n in sizes)]]
        for name, counts in result[key].items():
            rows.append(
                [
                    name,
                    *(
                        f'{counts[n] / 1e9:.3f} ({counts[n] / result[key]["full"][n]:.2f}x)'
                        for n in sizes
                    ),
                ]
            )
        parts.append(f'## {title}\n\n{table(rows)}')
    lines = '\n'.join(f'- {line}' for line in claims(result))
    return (
        f"C = {C}, H = {HEADS}; in brackets: relative to full attention. Up to {COUNTED:,} tokens torch's counter "
        'confirms every number.\n\n' + '\n\n'.join(parts) + f'\n\n## What articles claim\n\n{lines}'
    )
