"""Ground that is not level."""

from __future__ import annotations

import math

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS


@TRANSFORMS.register_module()
class TiltGround(BaseTransform):
    """Tilt the frame about the sensor, as a street does that climbs or leans, and a car that nods.

    Points and the centers of boxes turn; boxes stay upright, as annotators draw them, with their
    heading and velocity.

    Args:
        degrees: standard deviation of the angles about x and about y; none is above three times
        that.
    """

    def __init__(self, degrees: float):
        if not 0 <= degrees <= 10:
            raise ValueError(f'degrees lie in 0 to 10, not {degrees}: streets are no steeper')
        self.degrees = degrees

    def transform(self, results: dict) -> dict:
        """Tilt `points`, and `gt_bboxes_3d` where there are some."""
        a, b = np.radians(np.clip(np.random.normal(size=2), -3, 3) * self.degrees)
        about_x = torch.tensor(
            [[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]]
        )
        about_y = torch.tensor(
            [[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]]
        )
        turn, points = (about_x @ about_y).T, results['points'].tensor
        points[:, :3] @= turn.to(points.dtype)
        if 'gt_bboxes_3d' in results:
            boxes = results['gt_bboxes_3d']
            boxes.tensor[:, :3] += boxes.gravity_center @ turn - boxes.gravity_center
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(degrees={self.degrees})'
