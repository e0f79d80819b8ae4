"""Orders of the rows: by several keys, inside windows, and along FlatFormer's snake of windows."""

from __future__ import annotations

import torch
from torch import Tensor

from stratified3d.layers.attention import WindowGrid

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
    shift = torch.tensor(grid.shift, device=grid.coords.device)
    shape = torch.tensor(grid.window_shape, device=grid.coords.device)
    place = grid.coords[:, 1:] + shift
    layer, *window = (place // shape).unbind(1)  # (z, y, x)
    _, *inside = (place % shape).unbind(1)
    if axis:
        window.reverse()
        inside.reverse()

    line, along = window
    across, ahead = inside  # the snake moves ahead, and across inside each column
    back = torch.where(line % 2 == 0, 1, -1)
    turned = torch.where(ahead % 2 == 0, back, -back)
    sample = grid.coords[:, 0]
    return sort_by(sample, layer, line, back * along, back * ahead, turned * across, place[:, 0])
