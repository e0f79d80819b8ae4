"""Fewer points where there are more than enough."""
from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ThinNearPoints(BaseTransform):
    """Drop random points near the sensor until few enough are left; distant ones are all kept.

    mmdet3d's PointSample does so as well, but a smaller cloud it fills up with copies.

    Args:
        max_points: how many may be left; more, if there are that many distant ones.
        radius: metres around the sensor's axis within which points are dropped.
    """

    def __init__(self, max_points: int, radius: float):
        self.max_points, self.radius = max_points, radius

    def transform(self, results: dict) -> dict:
        """Thin `points`; their order stays."""
        points = results['points']
        surplus = len(points) - self.max_points
        if surplus > 0:
            near = np.flatnonzero(points.tensor[:, :2].norm(dim=1).numpy() < self.radius)
            keep = np.ones(len(points), bool)
            keep[np.random.choice(near, min(surplus, len(near)), replace=False)] = False
            results['points'] = points[keep]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(max_points={self.max_points}, radius={self.radius})'
