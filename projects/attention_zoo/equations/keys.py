"""Equations of the mixers whose keys are chosen."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from projects.attention_zoo.equations.dense import (
    attend,
    means,
    rotate_means,
    same,
    sample_rows,
    windows,
)
from projects.attention_zoo.keys.dilated import DilatedAttention
from projects.attention_zoo.keys.focal import FocalAttention
from projects.attention_zoo.keys.full import FullAttention
from projects.attention_zoo.keys.routed import RoutedAttention
from projects.attention_zoo.keys.sampled import SampledWindowAttention
from projects.attention_zoo.keys.sliding import SlidingAttention
from projects.attention_zoo.keys.varied import VariedWindowAttention
from projects.attention_zoo.keys.varying import VaryingWindowAttention
from stratified3d.layers.window_grid import WindowGrid


def _full(baseline: FullAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
    return attend(q, k, v, same(grid.coords[:, 0]))


def _sampled(
    baseline: SampledWindowAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    sampled = _sampled_rows(baseline, grid)  # [N] bool
    seen = same(windows(grid)) | (same(windows(grid, times=2)) & sampled)
    if not baseline.contextual:
        return attend(q, k, v, seen)

    to_query, to_key, to_value = _sum_tables(baseline, grid)
    query = q * q.shape[-1] ** -0.5
    logits = torch.einsum('ihd,ijhd->hij', query, k + to_query)
    logits = logits + torch.einsum('jhd,ijhd->hij', k, to_key)
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum('hij,ijhd->ihd', weights, v + to_value)


def _sum_tables(baseline: SampledWindowAttention, grid: WindowGrid) -> Tensor:
    """Return what the tables hold for every pair, summed over the axes, [3, N, N, H, D]."""
    found = []
    for axis, table in enumerate(baseline.tables):
        found.append(_look_up(table, grid.coords[:, 1 + axis], grid.window_shape[axis]))
    return torch.stack(found).sum(0)


def _look_up(table: Tensor, place: Tensor, length: int) -> Tensor:
    """Look up the offsets of all pairs of places [N] along an axis: [3, N, N, H, D].

    table: [3, 4 length - 1, H, D], from offset -(2 length - 1) to 2 length - 1; pairs further apart
        are not seen.
    """
    offset = place[:, None] - place[None]
    index = offset + 2 * length - 1
    return table[:, index.long().clamp(0, 4 * length - 2)]


def _sampled_rows(baseline: SampledWindowAttention, grid: WindowGrid) -> Tensor:
    """Return which rows are sampled, bool [N]."""
    sampled = torch.zeros(len(grid.coords), dtype=torch.bool, device=grid.coords.device)
    for rows in sample_rows(grid):
        count = math.ceil(len(rows) * baseline.part)
        chosen = [i * len(rows) // count for i in range(count)]
        if baseline.sampling == 'fps':
            chosen = chosen[:1]
            positions = grid.positions[rows]
            while len(chosen) < count:
                offset = positions[:, None] - positions[chosen]
                nearest = offset.square().sum(-1).amin(1)
                chosen.append(int(nearest.argmax()))
        sampled[rows[chosen]] = True
    return sampled


def _dilated(
    baseline: DilatedAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    step = torch.tensor(baseline.dilation if baseline.block % 2 else (1, 1, 1), device=q.device)
    offset = grid.coords[:, None, 1:] - grid.coords[None, :, 1:]
    is_place = (offset % step == 0) & (offset.abs() <= step * (baseline.kernel // 2))
    return attend(q, k, v, is_place.all(-1) & same(grid.coords[:, 0]))


def _sliding(
    baseline: SlidingAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    is_global = torch.zeros(len(q), dtype=torch.bool, device=q.device)
    for rows in sample_rows(grid):
        count = min(len(rows), baseline.num_global)
        is_global[rows[[i * len(rows) // count for i in range(count)]]] = True

    row = torch.arange(len(q), device=q.device)
    seen = (row[:, None] - row).abs() <= baseline.reach
    seen = seen | is_global | is_global[:, None]
    return attend(q, k, v, seen & same(grid.coords[:, 0]))


def _focal(baseline: FocalAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
    window = windows(grid)
    distinct, _, mean = means(window, q.dtype)
    offset = window[:, None] - distinct  # [N, K, 4]
    near = (offset[..., 1:].abs() <= baseline.reach).all(-1) & (offset[..., 0] == 0)
    seen = torch.cat([same(window), near], 1)

    far = rotate_means(baseline, torch.einsum('kn,nhd->khd', mean, k), mean, grid)
    keys = torch.cat([baseline.rotate(k, grid.rotary), far])
    values = torch.cat([v, torch.einsum('kn,nhd->khd', mean, v)])
    return attend(baseline.rotate(q, grid.rotary), keys, values, seen)


def _routed(baseline: RoutedAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
    start = grid.plan.batch_offsets[grid.coords[:, 0].long()]
    number = (torch.arange(len(q), device=q.device) - start) // baseline.region
    labels = torch.stack([grid.coords[:, 0], number], 1)
    distinct, member, mean = means(labels, q.dtype)
    fit = mean @ q.flatten(1) @ (mean @ k.flatten(1)).T  # [W, W]
    fit = fit.masked_fill(distinct[:, :1] != distinct[:, 0], -torch.inf)
    rank = fit.argsort(1, descending=True).argsort(1)
    chosen = (rank < baseline.topk) & (fit > -torch.inf)

    seen = chosen[member][:, member]
    q, k = (baseline.rotate(x, grid.rotary) for x in (q, k))
    return attend(q, k, v, seen)


def _varying(
    baseline: VaryingWindowAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    outs = []
    shares = [x.tensor_split(len(baseline.ratios), 1) for x in (q, k, v)]
    for query, key, value, ratio in zip(*shares, baseline.ratios):
        places = [grid.coords[:, 1:2], grid.coords[:, 2:] // ratio]
        labels = torch.cat([windows(grid)[:, :2], *places], 1)
        cells, _, mean = means(labels, q.dtype)
        keys = rotate_means(baseline, torch.einsum('kn,nhd->khd', mean, key), mean, grid)
        values = torch.einsum('kn,nhd->khd', mean, value)
        seen = _in_region(cells, ratio, grid)
        outs.append(attend(baseline.rotate(query, grid.rotary), keys, values, seen))
    return torch.cat(outs, 1)


def _in_region(cells: Tensor, ratio: int, grid: WindowGrid) -> Tensor:
    """Return whether the middle of cells (sample, window along z, z, y, x) lies in the region of
    every row's window, [N, K]."""
    window = windows(grid)
    shape = torch.tensor(grid.window_shape[1:], device=cells.device)
    corner = window[:, 2:] * shape - torch.tensor(grid.shift[1:], device=cells.device)
    start = corner - (ratio - 1) * shape // 2  # [N, 2]
    offset = cells[:, 3:] * ratio + ratio // 2 - start[:, None]  # [N, K, 2]
    is_inside = ((offset >= 0) & (offset < ratio * shape)).all(-1)
    return is_inside & (window[:, None, :2] == cells[:, :2]).all(-1)


def _varied(
    baseline: VariedWindowAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    window, member, mean = means(windows(grid), q.dtype)
    labels = torch.cat([windows(grid)[:, :2], grid.coords[:, 2:]], 1)
    columns, _, column_mean = means(labels, q.dtype)
    weights = _hats(_points(baseline, mean @ q.flatten(1), window, grid), window, columns)

    rotate = functools.partial(rotate_means, baseline, grid=grid)
    keys = _at_points(k, weights, (column_mean, mean), rotate)[member]
    values = _at_points(v, weights, (column_mean, mean))[member]
    exists = torch.nn.functional.pad(weights.sum(-1) > 0, (0, 1), value=True)[member]
    return _attend_own(baseline.rotate(q, grid.rotary), keys, values, exists)


def _at_points(
    x: Tensor,
    weights: Tensor,
    matrices: tuple[Tensor, Tensor],
    rotate: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Mix the means of columns at the points, and append those of windows: [W, H, P + 1, D].

    matrices: that average the rows x [N, H, D] of columns and of windows.
    """
    found = [torch.einsum('kn,nhd->khd', matrix, x) for matrix in matrices]
    if rotate is not None:
        found = [rotate(mean, matrix) for mean, matrix in zip(found, matrices)]
    points = torch.einsum('whpk,khd->whpd', weights, found[0])
    return torch.cat([points, found[1].unsqueeze(2)], 2)


def _attend_own(q: Tensor, k: Tensor, v: Tensor, exists: Tensor) -> Tensor:
    """Attend where every row has keys of its own, k and v [N, H, P, D]; exists [N, H, P]."""
    logits = torch.einsum('nhd,nhpd->nhp', q, k) * q.shape[-1] ** -0.5
    weights = logits.masked_fill(~exists, -torch.inf).softmax(-1)
    return torch.einsum('nhp,nhpd->nhd', weights, v)


def _hats(points: Tensor, window: Tensor, columns: Tensor) -> Tensor:
    """Return the weight of every column for every point, [W, H, P, K]: its hat, normalized."""
    offset = points[..., None, :] - columns[:, 2:]
    weights = (1 - offset.abs()).clamp(min=0).prod(-1)
    is_own = (window[:, None, :2] == columns[:, :2]).all(-1)
    weights = weights * is_own[:, None, None]
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)


def _points(
    baseline: VariedWindowAttention, mean: Tensor, window: Tensor, grid: WindowGrid
) -> Tensor:
    """Return the points (y, x) of every window, [W, H, P, 2], from its mean query [W, H D]."""
    predicted = baseline.predict(mean).view(len(mean), baseline.num_heads, 4)
    count = baseline.points
    ways = []
    for axis in range(2):
        length = grid.window_shape[1 + axis]
        corner = window[:, 2 + axis] * length - grid.shift[1 + axis]
        middle = corner[:, None] + (length - 1) / 2 + predicted[..., axis] * length
        size = (1 + predicted[..., 2 + axis]) * length
        ways.append([middle + size * ((i + 0.5) / count - 0.5) for i in range(count)])
    points = [torch.stack([y, x], -1) for y in ways[0] for x in ways[1]]
    return torch.stack(points, 2)


EQUATIONS: dict[type, Callable[..., Tensor]] = {
    FullAttention: _full,
    SampledWindowAttention: _sampled,
    DilatedAttention: _dilated,
    SlidingAttention: _sliding,
    FocalAttention: _focal,
    RoutedAttention: _routed,
    VaryingWindowAttention: _varying,
    VariedWindowAttention: _varied,
}
