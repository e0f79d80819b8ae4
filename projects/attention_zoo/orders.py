"""Orders of the rows: by several keys, inside windows, and along FlatFormer's snake of windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stratified3d.layers.window_grid import WindowGrid

# the axis that block i sorts along, 0 for x and 1 for y: blocks of regular and of shifted windows
# alternate, and any two successive ones sort along both axes, any four in all combinations
AXIS_OF_BLOCK = (0, 1, 1, 0)


def sort_by(*keys: Tensor) -> Tensor:
    """Return the rows [N] sorted by the first key [N], rows of equal keys by the next, stable."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    return order


def sort_in_windows(grid: WindowGrid, axis: int) -> Tensor:
    """Return the rows [N] window by window, sorted inside each along an axis.

    axis 0 sorts by (x, y, z), axis 1 by (y, x, z).
    """
    z, y, x = grid.coords[:, 1:].unbind(1)
    first, second = (y, x) if axis else (x, y)
    return sort_by(grid.plan.window_start, first, second, z)


def sort_along_snake(grid: WindowGrid, axis: int) -> Tensor:
    """Return the rows [N] sample by sample along a snake through the windows, as FlatFormer does.

    axis 0 walks through one row of windows after the other along x, there and back, and inside a
    window through one column of voxels after the other, also there and back; axis 1 exchanges x
    and y. Voxels above each other stay together, lowest first; layers of windows come one after
    the other.

    FlatFormer (Liu et al. 2023, section 3.1); its pillars have no layers.
    """
    layer, *window = window_index(grid)
    line, along = reversed(window) if axis else window
    across, ahead = _places_in_window(grid, (2, 1) if axis else (1, 2))

    # the snake moves ahead, and across inside each column
    back = torch.where(line % 2 == 0, 1, -1)
    turned = torch.where(ahead % 2 == 0, back, -back)
    sample, z = grid.coords[:, :2].unbind(1)
    return sort_by(sample, layer, line, back * along, back * ahead, turned * across, z)


def window_index(grid: WindowGrid) -> list[Tensor]:
    """Return the index [N] of every row's window along z, y and x."""
    index = []
    for axis in range(3):
        place = grid.coords[:, 1 + axis] + grid.shift[axis]
        index.append(place // grid.window_shape[axis])
    return index


def _places_in_window(grid: WindowGrid, axes: Sequence[int]) -> list[Tensor]:
    """Return the place [N] of every row in its window along axes, 0 for z to 2 for x."""
    places = []
    for axis in axes:
        place = grid.coords[:, 1 + axis] + grid.shift[axis]
        places.append(place % grid.window_shape[axis])
    return places
