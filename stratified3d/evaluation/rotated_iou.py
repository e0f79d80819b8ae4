"""Intersection over union of rotated boxes, from above and in 3D, by exact clipping of polygons."""

from __future__ import annotations

import math

import numpy as np

from stratified3d.jit import compiled

# two polygons; clipping n corners leaves at most 1.5 n even where rounding bends straight edges: 4,
# 6, 9, 13, 19
WORKSPACE = (2, 20, 2)


def rotated_iou_bev(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlap of the boxes' outlines in the ground plane, pair by pair.

    Args:
        a, b: [N, 7] x, y, z, dx, dy, dz (meters), yaw (radians).
    Returns:
        [N] float64, 0 to 1; boxes without area give 0.
    Raises:
        ValueError: other shapes, or numbers that are not finite.
    """
    return _iou(*_checked(a, b), False)


def rotated_iou_3d(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlap of upright boxes in space, pair by pair: shared area times shared height over the
    volume of both.

    Args:
        a, b: [N, 7] x, y, z of the center, dx, dy, dz (meters), yaw (radians).
    Returns:
        [N] float64, 0 to 1; boxes without volume give 0.
    Raises:
        ValueError: other shapes, or numbers that are not finite.
    """
    return _iou(*_checked(a, b), True)


def _checked(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = (np.ascontiguousarray(boxes, np.float64) for boxes in (a, b))
    if a.ndim != 2 or a.shape[1] != 7 or a.shape != b.shape:
        raise ValueError(
            f'pairs of boxes are [N, 7] and [N, 7], not {list(a.shape)} and {list(b.shape)}'
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError('a box has a coordinate that is not a finite number')
    return a, b


@compiled
def _iou(a: np.ndarray, b: np.ndarray, use_height: bool) -> np.ndarray:
    result = np.zeros(len(a))
    polygon = np.empty(WORKSPACE)
    for i in range(len(a)):
        result[i] = (
            overlap_3d(a[i], b[i], polygon) if use_height else overlap_bev(a[i], b[i], polygon)
        )
    return result


@compiled
def overlap_bev(a: np.ndarray, b: np.ndarray, polygon: np.ndarray) -> float:
    """rotated_iou_bev of one pair, for kernels; polygon: empty, of shape WORKSPACE."""
    shared = _shared_area(a, b, polygon)
    union = a[3] * a[4] + b[3] * b[4] - shared
    return min(shared / union, 1.0) if shared > 0 else 0.0


@compiled
def overlap_3d(a: np.ndarray, b: np.ndarray, polygon: np.ndarray) -> float:
    """rotated_iou_3d of one pair, for kernels; polygon: empty, of shape WORKSPACE."""
    gap = b[2] - a[2]
    height = min(a[5] / 2, gap + b[5] / 2) - max(-a[5] / 2, gap - b[5] / 2)
    if min(height, a[5], b[5]) <= 0:
        return 0.0
    shared = _shared_area(a, b, polygon) * min(height, a[5], b[5])
    union = a[3] * a[4] * a[5] + b[3] * b[4] * b[5] - shared
    return min(shared / union, 1.0) if shared > 0 else 0.0


@compiled
def _shared_area(a: np.ndarray, b: np.ndarray, polygon: np.ndarray) -> float:
    """Square meters common to two outlines: a's corners in b's frame, clipped to b side by side.

    Sutherland and Hodgman, Reentrant polygon clipping, 1974. Everything is relative to b, so
    neither large coordinates nor boxes that coincide cost digits.
    """
    if min(a[3], a[4], b[3], b[4]) <= 0:
        return 0.0
    x, y = a[0] - b[0], a[1] - b[1]
    if math.hypot(x, y) >= (math.hypot(a[3], a[4]) + math.hypot(b[3], b[4])) / 2:
        return 0.0
    cos, sin = math.cos(b[6]), math.sin(b[6])
    x, y = x * cos + y * sin, y * cos - x * sin
    cos, sin = math.cos(a[6] - b[6]), math.sin(a[6] - b[6])
    now, count = 0, 4
    for corner in range(4):  # counter-clockwise
        u = a[3] / 2 if corner in (0, 3) else -a[3] / 2
        v = a[4] / 2 if corner < 2 else -a[4] / 2
        polygon[0, corner, 0] = x + u * cos - v * sin
        polygon[0, corner, 1] = y + u * sin + v * cos
    for side in range(4):
        axis, sign = side // 2, 1.0 - 2.0 * (side % 2)
        half, kept = b[3 + axis] / 2, 0
        for i in range(count):
            start, end = polygon[now, i], polygon[now, (i + 1) % count]
            inside, goal = half - sign * start[axis], half - sign * end[axis]
            if inside >= 0:
                polygon[1 - now, kept] = start
                kept += 1
            if (inside < 0) != (goal < 0):
                share = inside / (inside - goal)
                polygon[1 - now, kept, 1 - axis] = start[1 - axis] + share * (
                    end[1 - axis] - start[1 - axis]
                )
                polygon[1 - now, kept, axis] = sign * half
                kept += 1
        now, count = 1 - now, kept
        if count < 3:
            return 0.0
    area = 0.0
    for i in range(1, count - 1):
        area += (
            (polygon[now, i, 0] - polygon[now, 0, 0])
            * (polygon[now, i + 1, 1] - polygon[now, 0, 1])
            - (polygon[now, i, 1] - polygon[now, 0, 1])
            * (polygon[now, i + 1, 0] - polygon[now, 0, 0])
        ) / 2
    return min(max(area, 0.0), a[3] * a[4], b[3] * b[4])
