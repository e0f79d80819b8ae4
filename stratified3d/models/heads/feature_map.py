"""Geometry of the BEV feature map: how many cells it has, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stratified3d.ops import grid_shape


class FeatureMapGeometry(NamedTuple):
    """size: (Y, X) cells; cell_size and origin: (x, y) meters of a cell and of the map's corner."""

    size: tuple[int, int]
    cell_size: list[float]
    origin: list[float]


def feature_map_geometry(
    voxel_size: Sequence[float], point_cloud_range: Sequence[float], stride: int
) -> FeatureMapGeometry:
    """Return the geometry of the BEV feature map that has one cell per stride x stride voxels."""
    _, rows, columns = grid_shape(voxel_size, point_cloud_range)
    size = (-(-rows // stride), -(-columns // stride))  # rounded up, as strided convolutions do
    cell_size = [length * stride for length in voxel_size[:2]]
    return FeatureMapGeometry(size, cell_size, list(point_cloud_range[:2]))


def check_feature_map_size(feature_map: Tensor, size: tuple[int, int]) -> None:
    """Check that a BEV feature map [B, C, Y, X] has the expected (Y, X) cells.

    Raises:
        ValueError: it has other ones.
    """
    actual = tuple(feature_map.shape[2:])
    if actual != size:
        raise ValueError(
            f'the BEV feature map has {actual} cells, but range, voxel size and stride give '
            f"{size}: does the head's stride fit the backbone's?"
        )


def cell_centers(size: tuple[int, int]) -> Tensor:
    """Return x and y of all (Y, X) cells in reading order, [Y X, 2] in cells."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing='ij')
    return torch.stack([x.flatten(), y.flatten()], 1)


def resolve_post_center_range(
    post_center_range: Sequence[float] | None, point_cloud_range: Sequence[float]
) -> list[float]:
    """Return where detections may lie: as given, else the range extended by 10 m on every side."""
    if post_center_range:
        return list(post_center_range)
    lowest = [bound - 10 for bound in point_cloud_range[:3]]
    highest = [bound + 10 for bound in point_cloud_range[3:]]
    return lowest + highest
