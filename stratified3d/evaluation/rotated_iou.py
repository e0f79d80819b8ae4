"""Intersection over union of rotated boxes in BEV and in 3D, by exact clipping of polygons."""

from __future__ import annotations

import math

import numpy as np

from stratified3d.jit import compiled

# two polygons of 20 corners; clipping n corners leaves at most 1.5 n even where rounding bends
# straight edges: 4, 6, 9, 13, 19
WORKSPACE = (2, 20, 2)


def rotated_iou_bev(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of the boxes' outlines in the ground plane, pair by pair.

    Args:
        a, b: [N, 7] x, y, z, dx, dy, dz (meters), yaw (radians).
    Returns:
        [N] float64, 0 to 1; boxes without area give 0.
    Raises:
        ValueError: other shapes, or numbers that are not finite.
    """
    return _iou(*_checked(a, b), False)


def rotated_iou_3d(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of upright boxes in 3D, pair by pair: shared volume over the volume of both.

    Args:
        a, b: [N, 7] x, y, z of the center, dx, dy, dz (meters), yaw (radians).
    Returns:
        [N] float64, 0 to 1; boxes without volume give 0.
    Raises:
        ValueError: other shapes, or numbers that are not finite.
    """
    return _iou(*_checked(a, b), True)


def _checked(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a = np.ascontiguousarray(a, np.float64)
    b = np.ascontiguousarray(b, np.float64)
    if a.ndim != 2 or a.shape[1] != 7 or a.shape != b.shape:
        raise ValueError(
            f'pairs of boxes must be [N, 7] and [N, 7], not {list(a.shape)} and {list(b.shape)}'
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError('a box has a coordinate that is not a finite number')
    return a, b


@compiled
def _iou(a: np.ndarray, b: np.ndarray, use_height: bool) -> np.ndarray:
    result = np.zeros(len(a))
    polygons = np.empty(WORKSPACE)
    for i in range(len(a)):
        if use_height:
            result[i] = pair_iou_3d(a[i], b[i], polygons)
        else:
            result[i] = pair_iou_bev(a[i], b[i], polygons)
    return result


@compiled
def pair_iou_bev(a: np.ndarray, b: np.ndarray, polygons: np.ndarray) -> float:
    """rotated_iou_bev of one pair, for compiled loops; polygons: workspace of shape WORKSPACE."""
    shared = _shared_area(a, b, polygons)
    union = a[3] * a[4] + b[3] * b[4] - shared
    return min(shared / union, 1.0) if shared > 0 else 0.0


@compiled
def pair_iou_3d(a: np.ndarray, b: np.ndarray, polygons: np.ndarray) -> float:
    """rotated_iou_3d of one pair, for compiled loops; polygons: workspace of shape WORKSPACE."""
    gap = b[2] - a[2]
    top = min(a[5] / 2, gap + b[5] / 2)
    bottom = max(-a[5] / 2, gap - b[5] / 2)
    height = min(top - bottom, a[5], b[5])
    if height <= 0:
        return 0.0
    shared = _shared_area(a, b, polygons) * height
    union = a[3] * a[4] * a[5] + b[3] * b[4] * b[5] - shared
    return min(shared / union, 1.0) if shared > 0 else 0.0


@compiled
def _shared_area(a: np.ndarray, b: np.ndarray, polygons: np.ndarray) -> float:
    """Area (m2) common to two outlines: a's corners in b's frame, clipped to b side by side.

    Sutherland and Hodgman, Reentrant polygon clipping, 1974. Everything is relative to b, so
    neither large coordinates nor boxes that coincide cost digits.
    """
    if min(a[3], a[4], b[3], b[4]) <= 0:
        return 0.0
    x = a[0] - b[0]
    y = a[1] - b[1]
    diagonal_a = math.hypot(a[3], a[4])
    diagonal_b = math.hypot(b[3], b[4])
    if math.hypot(x, y) >= (diagonal_a + diagonal_b) / 2:
        return 0.0

    polygon = polygons[0]
    clipped = polygons[1]
    _fill_corners(a, b, x, y, polygon)
    count = 4
    for side in range(4):
        axis = side // 2
        sign = 1.0 - 2.0 * (side % 2)
        half = b[3 + axis] / 2
        count = _clip(polygon, count, axis, sign, half, clipped)
        if count < 3:
            return 0.0
        polygon, clipped = clipped, polygon
    area = max(_polygon_area(polygon, count), 0.0)
    area_a = a[3] * a[4]
    area_b = b[3] * b[4]
    return min(area, area_a, area_b)


@compiled
def _fill_corners(a: np.ndarray, b: np.ndarray, x: float, y: float, polygon: np.ndarray) -> None:
    """Write a's corners in b's frame, counter-clockwise; x, y: from b's center to a's."""
    cos = math.cos(b[6])
    sin = math.sin(b[6])
    center_x = x * cos + y * sin
    center_y = y * cos - x * sin

    cos = math.cos(a[6] - b[6])
    sin = math.sin(a[6] - b[6])
    for corner in range(4):
        u = a[3] / 2 if corner in (0, 3) else -a[3] / 2
        v = a[4] / 2 if corner < 2 else -a[4] / 2
        polygon[corner, 0] = center_x + u * cos - v * sin
        polygon[corner, 1] = center_y + u * sin + v * cos


@compiled
def _clip(
    polygon: np.ndarray, count: int, axis: int, sign: float, half: float, clipped: np.ndarray
) -> int:
    """Clip a polygon of count corners to sign * coordinate <= half; how many corners are left."""
    other = 1 - axis
    kept = 0
    for i in range(count):
        start = polygon[i]
        end = polygon[(i + 1) % count]
        start_depth = half - sign * start[axis]
        end_depth = half - sign * end[axis]
        if start_depth >= 0:
            clipped[kept, 0] = start[0]
            clipped[kept, 1] = start[1]
            kept += 1
        if (start_depth < 0) != (end_depth < 0):  # the edge crosses the side
            share = start_depth / (start_depth - end_depth)
            length = end[other] - start[other]
            clipped[kept, other] = start[other] + share * length
            clipped[kept, axis] = sign * half
            kept += 1
    return kept


@compiled
def _polygon_area(polygon: np.ndarray, count: int) -> float:
    """Sum of the triangles that fan out from the first corner."""
    area = 0.0
    for i in range(1, count - 1):
        x1 = polygon[i, 0] - polygon[0, 0]
        y1 = polygon[i, 1] - polygon[0, 1]
        x2 = polygon[i + 1, 0] - polygon[0, 0]
        y2 = polygon[i + 1, 1] - polygon[0, 1]
        area += (x1 * y2 - y1 * x2) / 2
    return area
