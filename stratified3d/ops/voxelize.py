"""Dynamic voxelization: no cap on the points of a voxel or on the number of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stratified3d.ops.checks import check_grid, check_points


class Voxels(NamedTuple):
    """Points sorted by voxel, and the voxels they form.

    coords [N, 4] int32 (batch, z, y, x) in ascending order; offsets [N + 1] int64: voxel i contains
    the sorted points offsets[i] to offsets[i + 1]; point_order [K] int64: which input point each of
    the K kept, sorted points is.
    """

    coords: Tensor
    offsets: Tensor
    point_order: Tensor


def grid_shape(
    voxel_size: Sequence[float], point_cloud_range: Sequence[float]
) -> tuple[int, int, int]:
    """Number of voxels per axis.

    This is the one place where meters become grid indices.

    Args:
        voxel_size: (x, y, z) in meters.
        point_cloud_range: (x_min, y_min, z_min, x_max, y_max, z_max) in meters.
    Returns:
        (z, y, x).
    Raises:
        ValueError: a size that is not positive, an empty range, or a range that is not a multiple
            of the voxel size.
    """
    check_grid(voxel_size, point_cloud_range)
    lowest, highest = point_cloud_range[:3], point_cloud_range[3:]
    x, y, z = (round((hi - lo) / size) for size, lo, hi in zip(voxel_size, lowest, highest))
    return z, y, x


def voxelize(
    points: Tensor, sample: Tensor, voxel_size: Sequence[float], point_cloud_range: Sequence[float]
) -> Voxels:
    """Group points by the voxel they fall into.

    A point lies in voxel floor((point - range_min) / voxel_size); points outside the range are left
    out. One stable sort, so the result depends on the order of the points only within a voxel. The
    number of voxels depends on the data: on a GPU this waits for the device.

    Args:
        points: [P, C >= 3]; x, y, z in meters first; finite.
        sample: [P] integer, the sample of the batch that each point belongs to, >= 0.
        voxel_size: (x, y, z) in meters.
        point_cloud_range: (x_min, y_min, z_min, x_max, y_max, z_max) in meters.
    Returns:
        Voxels; no point in range gives N = K = 0.
    Raises:
        ValueError: shapes that do not fit, or a range that is not a multiple of the voxel size.
    """
    check_points(points, sample)
    shape = grid_shape(voxel_size, point_cloud_range)
    lowest = points.new_tensor(point_cloud_range[:3])
    size = points.new_tensor(voxel_size)
    limit = points.new_tensor(shape[::-1])

    index = ((points[:, :3] - lowest) / size).floor()  # [P, 3] x, y, z
    is_inside = ((index >= 0) & (index < limit)).all(1)
    kept = is_inside.nonzero().squeeze(1)  # [K]
    key = _voxel_key(index[kept], sample[kept], shape)

    key, order = torch.sort(key, stable=True)
    key, counts = torch.unique_consecutive(key, return_counts=True)  # [N]
    first = counts.new_zeros(1)
    return Voxels(
        coords=_split_key(key, shape),
        offsets=torch.cat([first, counts.cumsum(0)]),
        point_order=kept[order],
    )


def _voxel_key(index: Tensor, batch: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """[K] numbers of the voxels that points lie in, from index [K, 3] (x, y, z) and batch [K]."""
    x, y, z = index.long().unbind(1)
    depth, height, width = shape
    return ((batch.long() * depth + z) * height + y) * width + x


def _split_key(key: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """[N] numbers of voxels -> [N, 4] int32 (batch, z, y, x)."""
    depth, height, width = shape
    batch = key // (depth * height * width)
    z = key // (height * width) % depth
    y = key // width % height
    x = key % width
    return torch.stack([batch, z, y, x], 1).int()


def voxel_centers(
    coords: Tensor, voxel_size: Sequence[float], point_cloud_range: Sequence[float]
) -> Tensor:
    """Centers of voxels in meters.

    Args:
        coords: [N, 4] integer (batch, z, y, x).
        voxel_size: (x, y, z) in meters.
        point_cloud_range: (x_min, y_min, z_min, ...) in meters.
    Returns:
        [N, 3] fp32 (x, y, z).
    """
    # numbers and columns instead of tensors and lists, whose copies would wait for the device
    index = coords[:, 1:].flip(1).float() + 0.5  # [N, 3] x, y, z
    columns = zip(index.unbind(1), voxel_size, point_cloud_range)
    return torch.stack([column * size + lowest for column, size, lowest in columns], 1)
