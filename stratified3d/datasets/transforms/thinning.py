"""Fewer points where there are more than enough."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ThinNearPoints(BaseTransform):
    """Drop random points near the sensor until few enough are left; distant ones are all kept.

    mmdet3d's PointSample does so as well, but it fills up smaller point clouds with copies.

    Args:
        max_points: how many may be left; more, if there are that many distant ones.
        radius: distance from the sensor's axis within which points are dropped (m).
    """

    def __init__(self, max_points: int, radius: float):
        self.max_points = max_points
        self.radius = radius

    def transform(self, results: dict) -> dict:
        """Thin `points`; their order stays."""
        points = results['points']
        surplus = len(points) - self.max_points
        if surplus > 0:
            distance = points.tensor[:, :2].norm(dim=1).numpy()
            near = np.flatnonzero(distance < self.radius)
            dropped = np.random.choice(near, min(surplus, len(near)), replace=False)
            keep = np.ones(len(points), bool)
            keep[dropped] = False
            results['points'] = points[keep]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(max_points={self.max_points}, radius={self.radius})'


@TRANSFORMS.register_module()
class DropSweeps(BaseTransform):
    """Drop the sweeps of some frames, so that a detector also works on single sweeps.

    Args:
        prob: share of the frames without sweeps.
    """

    def __init__(self, prob: float):
        if not 0 <= prob <= 1:
            raise ValueError(f'prob must lie in 0 to 1, not {prob}')
        self.prob = prob

    def transform(self, results: dict) -> dict:
        """Keep the points of age 0 (column 4, as `LoadAlignedSweeps` writes it), or all."""
        if np.random.random() < self.prob:
            points = results['points']
            results['points'] = points[points.tensor[:, 4] == 0]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(prob={self.prob})'
