"""What the equations share: which rows are the same, and softmax attention over all pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.window_grid import WindowGrid
from stratified3d.ops import apply_rotary, rotary_angles


def same(values: Tensor) -> Tensor:
    """Return which pairs of rows have equal values [N] or [N, n]: bool [N, N]."""
    if values.dim() == 1:
        values = values.unsqueeze(1)
    return (values[:, None] == values[None]).all(-1)


def windows(grid: WindowGrid, times: int = 1) -> Tensor:
    """Return the window (batch, z, y, x) of every row, [N, 4].

    times: how many times as long as the grid's windows they are, and as far shifted.
    """
    shape = torch.tensor(grid.window_shape, device=grid.coords.device)
    shift = torch.tensor(grid.shift, device=grid.coords.device)
    index = (grid.coords[:, 1:] + times * shift) // (times * shape)
    return torch.cat([grid.coords[:, :1], index], 1).long()


def regions(grid: WindowGrid, count: int) -> Tensor:
    """Return the region (batch, z, y, x) of every row, [N, 4]: at most count along y and x."""
    index = [grid.coords[:, 0]]
    for axis, limit in enumerate((None, count, count)):
        length, shift = grid.window_shape[axis], grid.shift[axis]
        if limit is not None:
            voxels = range(grid.spatial_shape[axis])
            distinct = len({(voxel + shift) // length for voxel in voxels})
            length *= math.ceil(distinct / limit)
        index.append((grid.coords[:, 1 + axis] + shift) // length)
    return torch.stack(index, 1).long()


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Softmax attention over the keys that are seen: [N, K] or, for each head, [H, N, K]."""
    logits = torch.einsum('ihd,jhd->hij', q, k) * q.shape[-1] ** -0.5
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum('hij,jhd->ihd', weights, v)


def average(weights: Tensor, v: Tensor) -> Tensor:
    """Average the values with weights [H, N, N]; zeros where all weights are zero."""
    total = weights.sum(-1, keepdim=True)
    return torch.einsum('hij,jhd->ihd', weights / total.masked_fill(total == 0, 1), v)


def sample_rows(grid: WindowGrid) -> list[Tensor]:
    """Return the rows of every sample."""
    batch = len(grid.plan.batch_offsets) - 1
    return [(grid.coords[:, 0] == b).nonzero().squeeze(1) for b in range(batch)]


def means(labels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct labels [K, n] of rows [N, n], which one each row has [N], and the matrix
    [K, N] that averages the rows of each."""
    distinct, member = labels.unique(dim=0, return_inverse=True)
    number = torch.arange(len(distinct), device=member.device)
    belongs = (member == number[:, None]).to(dtype)
    return distinct, member, belongs / belongs.sum(1, keepdim=True)


def rotate_means(baseline: Baseline, x: Tensor, mean: Tensor, grid: WindowGrid) -> Tensor:
    """Rotate x [K, H, D] to the mean positions of its rows, mean [K, N]."""
    if not baseline.use_rotary:
        return x
    places = mean.double() @ grid.positions.double()
    return apply_rotary(x, *rotary_angles(places.to(grid.positions.dtype), x.shape[-1]))


def sorts_along_y(block: int) -> bool:
    """Return whether a block that alternates sorts along y."""
    return block % 4 in (1, 2)


def walk_snake(rows: Tensor, grid: WindowGrid, along_y: bool) -> Tensor:
    """Sort the rows of a sample along the snake through its windows."""
    places = grid.coords[rows, 1:].tolist()
    turns = [_snake_key(place, grid.window_shape, grid.shift, along_y) for place in places]
    return rows[sorted(range(len(rows)), key=turns.__getitem__)]


def _snake_key(
    place: list[int], shape: Sequence[int], shift: Sequence[int], along_y: bool
) -> tuple[int, ...]:
    """Return what a voxel (z, y, x) is sorted by along the snake."""
    layer = (place[0] + shift[0]) // shape[0]
    (line, across), (along, ahead) = (
        divmod(place[axis] + shift[axis], shape[axis]) for axis in ((2, 1) if along_y else (1, 2))
    )
    if line % 2:
        along, ahead = -along, -ahead
    if (line + ahead) % 2:
        across = -across
    return layer, line, along, ahead, across, place[0]
