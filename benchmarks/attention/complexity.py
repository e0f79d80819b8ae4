"""`benchmark.py complexity`: floating-point operations, by formula and by torch's counter.

A layer is the mixer with its projections, C channels, on n tokens that fill a grid of one sample. A
multiply-add is two operations. Softmax, norms and rotations are not counted, because torch's
counter does not count them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.default_config import HEADS, STRATA, WIDTH
from benchmarks.report import table
from projects.attention_zoo import FullAttention, LinformerAttention, PerformerAttention
from stratified3d.layers.attention import MixerContext, StratifiedAttention
from stratified3d.layers.window_grid import build_window_grid

C = HEADS * WIDTH  # channels
FEATURES = 256  # of Performer
RANK = 256  # of Linformer
OURS = f'stratified ({STRATA})'
# tokens along (y, x), and the side of a window: 7 as in Swin for an image's 14 x 14, else 8
GRIDS = {196: (14, 14, 7), 4096: (64, 64, 8), 65536: (256, 256, 8), 100000: (400, 250, 8)}
COUNTED = 4096  # tokens up to which torch counts the layer itself


class Layer(NamedTuple):
    """make(n) builds the mixer for n tokens; formula(n, pairs) counts its operations, given the
    number of pairs of tokens in one window."""

    make: Callable[[int], nn.Module]
    formula: Callable[[int, int], int]


def _projections(n: int) -> int:
    return 8 * n * C * C  # q, k, v and the output


LAYERS = {
    'full': Layer(
        lambda n: FullAttention(MixerContext(C, HEADS)),
        lambda n, pairs: _projections(n) + 4 * n * n * C,
    ),
    'windows (Swin)': Layer(
        lambda n: StratifiedAttention(MixerContext(C, HEADS), num_strata=0, backend='reference'),
        lambda n, pairs: _projections(n) + 4 * pairs * C,
    ),
    # windows, tokens that collect and are read; tokens' score, query, output, key and value
    OURS: Layer(
        lambda n: StratifiedAttention(
            MixerContext(C, HEADS), num_strata=STRATA, backend='reference'
        ),
        lambda n, pairs: (
            _projections(n) + 4 * pairs * C + 8 * n * STRATA * C + 2 * n * C + 8 * STRATA * C * C
        ),
    ),
    # features of q and k, their sums with the values, reading them, and the normalizer
    f'Performer ({FEATURES} features)': Layer(
        lambda n: PerformerAttention(MixerContext(C, HEADS), num_features=FEATURES),
        lambda n, pairs: _projections(n) + 8 * n * FEATURES * C + 2 * n * FEATURES * HEADS,
    ),
    # projected keys and values, attention to them
    f'Linformer ({RANK} rows)': Layer(
        lambda n: LinformerAttention(MixerContext(C, HEADS), rank=RANK, length=n),
        lambda n, pairs: _projections(n) + 8 * n * RANK * C,
    ),
}

# multilayer perceptrons over neighborhoods: (centers, neighbors, widths), and over points:
# (points, widths)
POINT_NETWORKS: dict[
    str, tuple[list[tuple[int, int, tuple[int, ...]]], list[tuple[int, tuple[int, ...]]]]
] = {
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


def point_network_flops(
    neighborhoods: Sequence[tuple[int, int, Sequence[int]]],
    points: Sequence[tuple[int, Sequence[int]]],
) -> int:
    """Operations of the perceptrons; the search for neighbors is not counted."""
    perceptrons = [(centers * neighbors, widths) for centers, neighbors, widths in neighborhoods]
    total = 0
    for rows, widths in (*perceptrons, *points):
        weights = sum(a * b for a, b in zip(widths, widths[1:]))
        total += 2 * rows * weights
    return total


def window_pairs(n: int) -> int:
    """Pairs of tokens that share a window, over the whole grid of n."""
    rows, columns, side = GRIDS[n]
    heights = [min(side, rows - start) for start in range(0, rows, side)]
    widths = [min(side, columns - start) for start in range(0, columns, side)]
    return sum((a * b) ** 2 for a in heights for b in widths)


def count_by_torch(name: str, n: int) -> int:
    """Operations of a layer's forward pass as torch.utils.flop_counter counts them."""
    rows, columns, side = GRIDS[n]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing='ij')
    zeros = torch.zeros(n)
    coords = torch.stack([zeros, zeros, y.flatten(), x.flatten()], 1).int()  # [n, 4]
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
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        layer(torch.zeros(n, C), grid)
    return counter.get_total_flops()


def count(name: str, n: int) -> int:
    """Operations of a layer on n tokens by its formula, confirmed by torch up to `COUNTED` tokens.

    Raises:
        AssertionError: formula and count differ.
    """
    flops = LAYERS[name].formula(n, window_pairs(n))
    if n <= COUNTED:
        counted = count_by_torch(name, n)
        if counted != flops:
            raise AssertionError(
                f'{name} at {n} tokens: torch counts {counted} operations, the formula says {flops}'
            )
    return flops


def run(sizes: list[int]) -> dict[str, Any]:
    """Counts of every layer at every size, and of the point networks.

    Raises:
        AssertionError: torch's count does not confirm a formula.
    """
    counts: dict[str, dict[int, int]] = {}
    without_projections: dict[str, dict[int, int]] = {}
    for name in LAYERS:
        counts[name] = {n: count(name, n) for n in sizes}
        without_projections[name] = {
            n: flops - _projections(n) for n, flops in counts[name].items()
        }
    networks = {name: point_network_flops(*parts) for name, parts in POINT_NETWORKS.items()}
    return dict(
        channels=C,
        heads=HEADS,
        counts=counts,
        without_projections=without_projections,
        point_networks=networks,
    )


def check_claims(result: dict[str, Any]) -> list[str]:
    """What articles print about such layers, and whether these counts confirm it."""
    lines = []
    for what, key in (('layer', 'counts'), ('attention alone', 'without_projections')):
        counts = result[key]
        if 196 in counts[OURS]:
            ratio = counts[OURS][196] / counts['full'][196]
            verdict = _holds(0.55 <= ratio < 0.65)
            lines.append(
                f'"0.6x of full attention at 196 tokens", {what}: {verdict}; it is {ratio:.2f}x.'
            )
        if 4096 in counts[OURS]:
            lines.append(_check_4096_tokens(what, counts))
    if 100000 in result['counts'][OURS]:
        layer = result['counts'][OURS][100000]
        lines += _check_point_networks(layer, result['point_networks'])
    return lines


def _check_4096_tokens(what: str, counts: dict[str, dict[int, int]]) -> str:
    ours, full = counts[OURS], counts['full']
    ratios = [ours[4096] / full[4096]]
    verdict = _holds(1.45 <= ratios[0] < 1.55)
    line = (
        f'"1.5x of full attention at 4,096 tokens", {what}: {verdict}; it is {ratios[0]:.2f}x of '
        'full attention there'
    )
    if 196 not in ours:
        return f'{line}.'

    # other readings of the sentence
    ratios += [ours[4096] / ours[196], ours[4096] / full[196]]
    if any(1.45 <= ratio < 1.55 for ratio in ratios):
        return f'{line}.'
    return (
        f'{line}, {ratios[1]:.1f}x of its own count at 196 tokens and {ratios[2]:.1f}x of full '
        'attention at 196: no reading gives 1.5x.'
    )


def _check_point_networks(layer: int, networks: dict[str, int]) -> list[str]:
    lines = []
    for name, flops in networks.items():
        verdict = 'Holds for one layer' if flops >= 5 * layer else 'Does not hold'
        lines.append(
            f'"5x fewer than point networks on LiDAR", {name}: one layer on 100,000 voxels costs '
            f'{layer / 1e9:.1f} GFLOP, the network {flops / 1e9:.1f}: {flops / layer:.2f} of them; '
            f'a detector has several layers and convolutions besides. {verdict}.'
        )
    return lines


def _holds(it_does: bool) -> str:
    return 'holds' if it_does else 'does not hold'


def render(result: dict[str, Any]) -> str:
    """Tables of GFLOPs, then the claims."""
    tables = [
        _render_counts('A layer: attention with its four projections', result['counts']),
        _render_counts('Attention alone', result['without_projections']),
    ]
    claims = '\n'.join(f'- {line}' for line in check_claims(result))
    head = (
        f'C = {C}, H = {HEADS}; in brackets: relative to full attention. '
        f"Up to {COUNTED:,} tokens torch's counter confirms every number."
    )
    return '\n\n'.join([head, *tables, f'## What articles claim\n\n{claims}'])


def _render_counts(title: str, counts: dict[str, dict[int, int]]) -> str:
    full = counts['full']
    rows = [['GFLOP at tokens', *(f'{n:,}' for n in full)]]
    for name, flops in counts.items():
        cells = [f'{flops[n] / 1e9:.3f} ({flops[n] / full[n]:.2f}x)' for n in full]
        rows.append([name, *cells])
    return f'## {title}\n\n{table(rows)}'
