"""What one looks at first in a point cloud: how many points, how far, how bright."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class PointSummary(NamedTuple):
    """Numbers of a cloud; NaN where it has no finite point.

    Attributes:
        points: number of points.
        finite: number of points whose coordinates are finite; the others are left out below.
        lower, upper: [3] smallest and largest x, y, z.
        intensity: (smallest, largest).
    """

    points: int
    finite: int
    lower: np.ndarray
    upper: np.ndarray
    intensity: tuple[float, float]


def describe_points(points: np.ndarray) -> PointSummary:
    """Describe a cloud.

    Args:
        points: [P, >= 4] x, y, z, intensity, others.
    Returns:
        PointSummary.
    """
    kept = points[np.isfinite(points[:, :4]).all(1), :4]
    if not len(kept):
        nowhere = np.full(3, np.nan)
        return PointSummary(len(points), 0, nowhere, nowhere, (np.nan, np.nan))
    lower = kept.min(0)
    upper = kept.max(0)
    intensity = (float(lower[3]), float(upper[3]))
    return PointSummary(len(points), len(kept), lower[:3], upper[:3], intensity)
