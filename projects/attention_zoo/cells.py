"""Occupied cells of voxels: their rows, their means, and the cells around others."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from projects.attention_zoo.groups import (
    Groups,
    Ragged,
    number_members,
    offsets_of,
    pad_groups,
    run_offsets,
    take,
)
from projects.attention_zoo.orders import window_index
from projects.attention_zoo.partitions import fold_columns
from stratified3d.layers.window_grid import WindowGrid
from stratified3d.ops import rotary_angles, segment_reduce


class Cells(NamedTuple):
    """K occupied cells, sorted by label and place.

    Attributes:
        order: [N], rows sorted by cell.
        offsets: [K + 1], where the rows of every cell start and end in that order.
        places: [K, 4] int64 (label, z, y, x).
        sample: [K].
        rotary: (cos, sin) at the mean position of every cell; None without rotary embedding.
    """

    order: Tensor
    offsets: Tensor
    places: Tensor
    sample: Tensor
    rotary: tuple[Tensor, Tensor] | None

    @property
    def rows(self) -> Ragged:
        """The rows of every cell."""
        return Ragged(self.order, self.offsets)

    @property
    def members(self) -> Tensor:
        """The cell [N] of every row."""
        cell, _ = number_members(self.offsets.diff())
        return torch.empty_like(cell).scatter_(0, self.order, cell)


def group_cells(
    grid: WindowGrid, place: Tensor, label: Tensor | None = None, head_dim: int | None = None
) -> Cells:
    """Group rows with the same label and place.

    Args:
        place: [N, 3], the cell (z, y, x) of every row.
        label: [N]; it tells samples apart. None takes the sample.
        head_dim: of the rotary tables; None for none.
    """
    label = grid.plan.sample if label is None else label
    index = torch.cat([label.unsqueeze(1), place], 1).long()
    key, order = fold_columns(*index.unbind(1)).sort(stable=True)
    offsets = run_offsets(key)
    rotary = None
    if head_dim is not None:
        means = segment_reduce(grid.positions[order], offsets, 'mean')
        rotary = rotary_angles(means, head_dim)
    members = order[offsets[:-1]]
    return Cells(order, offsets, index[members], grid.plan.sample[members].long(), rotary)


def window_cells(grid: WindowGrid, head_dim: int | None = None) -> Cells:
    """Return the windows of the grid as cells."""
    return group_cells(grid, torch.stack(window_index(grid), 1), head_dim=head_dim)


def region_cells(grid: WindowGrid, count: int, head_dim: int | None = None) -> Cells:
    """Return regions of whole windows as cells, at most count x count in a layer of windows.

    A region is as many windows long and wide as that takes, at least one. The grid decides, not the
    voxels: a larger range has larger regions, and not more of them.
    """
    place = window_index(grid)
    for axis in (1, 2):
        length = grid.spatial_shape[axis] + grid.shift[axis]
        windows = -(-length // grid.window_shape[axis])
        place[axis] = place[axis] // -(-windows // count)
    return group_cells(grid, torch.stack(place, 1), head_dim=head_dim)


def average(x: Tensor, lists: Ragged) -> Tensor:
    """Return the means [K, H, D] of lists of rows of x [N, H, D]."""
    rows = x.flatten(1).index_select(0, lists.rows)
    return segment_reduce(rows, lists.offsets, 'mean').view(-1, *x.shape[1:])


def cells_around(cells: Cells, index: Tensor, reach: Sequence[int]) -> Ragged:
    """Return for every place the occupied cells of its label that are near.

    Args:
        index: [G, 4] (label, z, y, x).
        reach: how many cells away along z, y and x.
    """
    steps = itertools.product(*(range(-r, r + 1) for r in reach))
    offsets = index.new_tensor([(0, *step) for step in steps])  # [O, 4]
    found = find_cells(cells, (index[:, None] + offsets).flatten(0, 1)).view(
        len(index), len(offsets)
    )
    is_occupied = found >= 0
    return Ragged(found[is_occupied], offsets_of(is_occupied.sum(1)))


def find_cells(cells: Cells, index: Tensor) -> Tensor:
    """Return which cell [P] has this index [P, 4]; -1 where it is not occupied."""
    if not len(cells.places) or not len(index):
        return torch.full_like(index[:, 0], -1)

    # both in one key, so that they compare
    count = len(cells.places)
    key = fold_columns(*torch.cat([cells.places, index]).unbind(1))
    own, wanted = key[:count], key[count:]
    place = torch.searchsorted(own, wanted).clamp(max=count - 1)
    return place.masked_fill(own[place] != wanted, -1)


def rows_of(cells: Ragged, chosen: Ragged) -> Ragged:
    """Return the rows of lists of cells, one cell after the other; cells: the rows of each."""
    lists = take(cells, chosen.rows)  # one per cell
    return Ragged(lists.rows, lists.offsets[chosen.offsets])


def group_samples(queries: Tensor, keys: Tensor, batch: int) -> Groups:
    """Let every query attend to all keys of its sample, with nothing padded.

    Args:
        queries, keys: the sample of every query [N] and key [K], ascending.
        batch: B.
    """
    lists = []
    for samples in (queries, keys):
        rows = torch.arange(len(samples), device=samples.device)
        sample = torch.arange(batch + 1, device=samples.device)
        lists.append(Ragged(rows, torch.searchsorted(samples.long(), sample)))

    # one bucket per length that occurs
    sizes = torch.cat([one.offsets.diff() for one in lists])
    lengths = sizes[sizes > 0].unique().tolist()
    samples = torch.arange(batch, device=queries.device)
    return pad_groups(lists[0], lists[1], samples, lengths)
