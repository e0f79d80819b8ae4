"""Voxels in a fixed number of rows, for a program all of whose shapes are static.

Rows behind the last voxel are padding. They belong to sample 1 of a batch of two, so that windows,
strata and rulebooks, which never mix samples, keep them apart from the voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stratified3d.ops import Voxels, grid_shape, voxel_centers


def voxelize_padded(
    points: Tensor, capacity: int, voxel_size: Sequence[float], point_cloud_range: Sequence[float]
) -> tuple[Voxels, Tensor]:
    """Group points by the voxel they fall into, see `voxelize`, in capacity + 1 rows.

    Of more voxels the nearest to the sensor are kept. Points out of range or in other voxels belong
    to the last row, which is padding always.

    Args:
        points: [P, C >= 3]; x, y, z in meters first; finite.
        capacity: rows for voxels.
        voxel_size: (x, y, z) in meters.
        point_cloud_range: (x_min, y_min, z_min, x_max, y_max, z_max) in meters.
    Returns:
        Voxels of capacity + 1 rows and all P points, and the number of voxels in the frame.
    """
    shape = grid_shape(voxel_size, point_cloud_range)
    cell = _cell_of(points, shape, voxel_size, point_cloud_range)
    cell, order = torch.sort(cell, stable=True)
    coords = _coords_of(cell, shape)
    is_first = _starts(cell) & (cell < _num_cells(shape))
    center = voxel_centers(coords, voxel_size, point_cloud_range)
    distance = torch.where(is_first, center[:, :2].square().sum(1), torch.inf)
    is_kept = is_first & (distance.argsort(stable=True).argsort() < capacity)

    row = _row_of(is_first, is_kept, cell < _num_cells(shape), capacity)
    row, back = torch.sort(row, stable=True)
    rows = torch.arange(capacity + 2, device=cell.device)
    offsets = torch.searchsorted(row, rows)
    first = back[offsets[:-1].clamp(max=cell.shape[0] - 1)]
    coords = pad_coords(coords[first], rows[:-1] < is_kept.sum())
    return Voxels(coords, offsets, order[back]), is_first.sum()


def _row_of(is_first: Tensor, is_kept: Tensor, is_inside: Tensor, capacity: int) -> Tensor:
    """[P] row of the voxel of each point; points of one voxel follow its first."""
    place = torch.arange(is_first.shape[0], device=is_first.device)
    first = torch.where(is_first, place, 0).cummax(0).values
    row = (is_kept.cumsum(0) - 1)[first]
    return torch.where(is_kept[first] & is_inside, row, capacity)


def pad_coords(coords: Tensor, is_voxel: Tensor) -> Tensor:
    """Coords [N, 4] int32 where there is a voxel [N] bool, elsewhere cell 0 of sample 1."""
    return torch.where(is_voxel[:, None], coords, coords.new_tensor([1, 0, 0, 0]))


def unique_padded(key: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different keys [N], sorted, the largest again behind them, and the row of each."""
    by_size, order = torch.sort(key, stable=True)
    place = _starts(by_size).cumsum(0) - 1
    keys = by_size[-1].expand_as(by_size).index_put((place,), by_size)
    return keys, torch.empty_like(place).index_copy(0, order, place)


def _starts(key: Tensor) -> Tensor:
    """Whether each of sorted keys [N] differs from the one before it."""
    return torch.cat([torch.ones_like(key[:1], dtype=torch.bool), key[1:] != key[:-1]])


def _cell_of(
    points: Tensor,
    shape: tuple[int, int, int],
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
) -> Tensor:
    """[P] int64 numbers of the cells that points lie in, x fastest; behind the last: outside."""
    lowest = points.new_tensor(point_cloud_range[:3])
    index = ((points[:, :3] - lowest) / points.new_tensor(voxel_size)).floor()
    is_inside = ((index >= 0) & (index < points.new_tensor(shape[::-1]))).all(1)
    x, y, z = torch.where(is_inside[:, None], index, 0).long().unbind(1)
    return torch.where(is_inside, (z * shape[1] + y) * shape[2] + x, _num_cells(shape))


def _num_cells(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]


def _coords_of(cell: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """[N] numbers of cells -> [N, 4] int32 (0, z, y, x)."""
    z, y, x = cell // (shape[1] * shape[2]), cell // shape[2] % shape[1], cell % shape[2]
    return torch.stack([torch.zeros_like(x), z, y, x], 1).int()
