"""Sizes of the default nuScenes config, which the benchmarks of single operators take."""

from __future__ import annotations

VOXEL_SIZE = (0.3, 0.3, 0.25)  # meters, (x, y, z)
POINT_CLOUD_RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)  # meters
SPATIAL_SHAPE = (32, 360, 360)  # voxels, (z, y, x)
WINDOW_SHAPE = (32, 12, 12)  # of the first stage; it spans all z

HEADS = 4
WIDTH = 32  # channels per head
STRATA = 64
