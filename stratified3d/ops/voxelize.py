"""Dynamic voxelization: every point keeps its place, no cap on points or voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Voxels(NamedTuple):
    """Points sorted by voxel, and the voxels they form.

    coords [N, 4] int32 (batch, z, y, x) in ascending order; offsets [N + 1] int64: voxel i holds
    the sorted points offsets[i] to offsets[i + 1]; point_order [K] int64: which input point each of
    the K kept, sorted points is.
    """

    coords: Tensor
    offsets: Tensor
    point_order: Tensor


def grid_shape(
    voxel_size: Sequence[float], point_cloud_range: Sequence[float]
) -> tuple[int, int, int]:
    """Number of voxels per axis: the one place where meters become grid indices.

    Args:
        voxel_size: (x, y, z) in meters.
        point_cloud_range: (x_min, y_min, z_min, x_max, y_max, z_max) in meters.
    Returns:
        (z, y, x).
    Raises:
        ValueError: a size that is not positive, an empty range, or a range that is no multiple of
        the voxel size.
    """
    if len(voxel_size) != 3 or len(point_cloud_range) != 6:
        raise ValueError(
            f'voxel_size has 3 numbers and point_cloud_range 6, not {list(voxel_size)} and '
            f'{list(point_cloud_range)}'
        )
    shape = []
    for axis, size, low, high in zip(
        'xyz', voxel_size, point_cloud_range[:3], point_cloud_range[3:]
    ):
        if not size > 0 or not high > low:
            raise ValueError(
                f'{axis}: voxel size {size} m must be positive and the range {low} to {high} m not empty'
            )
        count = round((high - low) / size)
        if abs((high - low) / size - count) > 1e-3:
            raise ValueError(
                f'{axis}: the range {low} to {high} m is no multiple of the voxel size {size} m; '
                f'{low} to {round(low + max(count, 1) * size, 6)} m would be'
            )
        shape.append(count)
    return shape[2], shape[1], shape[0]


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
        ValueError: shapes that do not fit, or a range that is no multiple of the voxel size.
    """
    if points.dim() != 2 or points.shape[1] < 3 or sample.shape != points.shape[:1]:
        raise ValueError(
            f'points are [P, C >= 3] and sample [P], not {tuple(points.shape)} and {tuple(sample.shape)}'
        )
    shape = grid_shape(voxel_size, point_cloud_range)
    low, size = points.new_tensor(point_cloud_range[:3]), points.new_tensor(voxel_size)
    index = ((points[:, :3] - low) / size).floor()  # [P, 3] x, y, z
    limit = points.new_tensor(shape[::-1])
    kept = ((index >= 0) & (index < limit)).all(1).nonzero().squeeze(1)  # [K]
    x, y, z = index[kept].long().unbind(1)
    key = ((sample[kept].long() * shape[0] + z) * shape[1] + y) * shape[2] + x
    key, order = torch.sort(key, stable=True)
    key, counts = torch.unique_consecutive(key, return_counts=True)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    coords = torch.stack(
        [
            key // (shape[0] * shape[1] * shape[2]),
            key // (shape[1] * shape[2]) % shape[0],
            key // shape[2] % shape[1],
            key % shape[2],
        ],
        1,
    ).int()
    return Voxels(coords, offsets, kept[order])


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
    size = torch.tensor(voxel_size, device=coords.device, dtype=torch.float32)
    low = torch.tensor(point_cloud_range[:3], device=coords.device, dtype=torch.float32)
    return (coords[:, [3, 2, 1]].float() + 0.5) * size + low
