"""Equations of the mixers whose keys are the voxels of a part of space or of an order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from projects.attention_zoo.equations.dense import (
    attend,
    same,
    sample_rows,
    sorts_along_y,
    walk_snake,
    windows,
)
from projects.attention_zoo.windows.axial import AxialAttention
from projects.attention_zoo.windows.cross_shaped import CrossShapedAttention
from projects.attention_zoo.windows.equal_groups import EqualGroupAttention
from projects.attention_zoo.windows.long_short import LongShortAttention
from projects.attention_zoo.windows.planes import PlaneAttention
from projects.attention_zoo.windows.sets import SetAttention
from stratified3d.layers.window_grid import WindowGrid


def _axis_key(grid: WindowGrid, block: int) -> Tensor:
    """Return what rows are sorted by: (x, y, z) or (y, x, z)."""
    z, y, x = grid.coords[:, 1:].long().unbind(1)
    first, second = (y, x) if sorts_along_y(block) else (x, y)
    return (first * 65536 + second) * 65536 + z


def _sets(baseline: SetAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
    window = windows(grid)
    key = _axis_key(grid, baseline.block)
    number = torch.full((len(q),), -1, device=q.device)  # of every row's set
    count = 0
    for own in window.unique(dim=0):
        rows = (window == own).all(1).nonzero().squeeze(1)
        rows = rows[key[rows].argsort()]
        for members in _cut_into_sets(len(rows), baseline.set_size):
            number[rows[members]] = count
            count += 1

    if (number < 0).any():
        raise AssertionError('a voxel is in no set')
    return attend(q, k, v, same(number))


def _cut_into_sets(count: int, size: int) -> list[list[int]]:
    """Return which of the voxels 0 to count - 1 of a sorted window fill the places of every set."""
    num_sets = -(-count // size)
    places = num_sets * size
    voxels = [place * count // places for place in range(places)]
    return [voxels[start : start + size] for start in range(0, places, size)]


def _equal_groups(
    baseline: EqualGroupAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    seen = q.new_zeros(len(q), len(q), dtype=torch.bool)
    for rows in sample_rows(grid):
        rows = walk_snake(rows, grid, sorts_along_y(baseline.block))
        for queries, keys in _cut_into_groups(rows, baseline.group_size):
            seen[queries[:, None], keys] = True
    return attend(q, k, v, seen)


def _cut_into_groups(rows: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the queries and keys of every group; the keys of the last one reach back."""
    latest = max(0, len(rows) - size)
    groups = []
    for start in range(0, len(rows), size):
        end = start + size
        groups.append((rows[start:end], rows[min(start, latest) : end]))
    return groups


def _planes(baseline: PlaneAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
    shape = torch.tensor(grid.window_shape, device=q.device)
    shift = torch.tensor(grid.shift, device=q.device)
    slab = (grid.coords[:, 1:] + shift) % shape // baseline.thickness  # [N, 3]
    near = same(windows(grid))

    seen = []  # of every head
    for axis, heads in enumerate(torch.arange(q.shape[1]).tensor_split(3)):
        seen += [near & same(slab[:, axis])] * len(heads)
    return attend(q, k, v, torch.stack(seen))


def _cross_shaped(
    baseline: CrossShapedAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    half = -(-q.shape[1] // 2)  # an odd head belongs to the first strips
    strips = [grid.coords[:, (0, axis)] for axis in (2, 3)]
    for strip in strips:
        strip[:, 1] //= baseline.width
    seen = [same(strips[0])] * half + [same(strips[1])] * (q.shape[1] - half)
    return attend(q, k, v, torch.stack(seen))


def _axial(baseline: AxialAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
    seen = []  # of every head
    heads = torch.arange(q.shape[1]).tensor_split(len(baseline.axes))
    for axis, share in zip(baseline.axes, heads):
        on_line = [0, *(i for i, name in enumerate('bzyx') if name not in (axis, 'b'))]
        seen += [same(grid.coords[:, on_line])] * len(share)
    return attend(q, k, v, torch.stack(seen))


def _long_short(
    baseline: LongShortAttention, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid
) -> Tensor:
    if baseline.block % 2 == 0:
        return attend(q, k, v, same(windows(grid)))
    place = grid.coords[:, 2:]
    region = torch.tensor(grid.window_shape[1:], device=place.device) * baseline.interval
    layer = windows(grid)[:, :2]
    labels = torch.cat([layer, place // region, place % baseline.interval], 1)
    return attend(q, k, v, same(labels))


EQUATIONS: dict[type, Callable[..., Tensor]] = {
    SetAttention: _sets,
    EqualGroupAttention: _equal_groups,
    PlaneAttention: _planes,
    CrossShapedAttention: _cross_shaped,
    AxialAttention: _axial,
    LongShortAttention: _long_short,
}
