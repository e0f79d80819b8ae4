"""Ground that is not level."""

from __future__ import annotations

import math

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS


@TRANSFORMS.register_module()
class TiltGround(BaseTransform):
    """Tilt the frame about the sensor, as slopes of the street and pitching of the car do.

    Points and the centers of boxes are rotated. Boxes stay upright, as annotators draw them, and
    keep their heading and velocity.

    Args:
        degrees: standard deviation of the angles about x and about y; angles are clipped at three
            times that.
    """

    def __init__(self, degrees: float):
        if not 0 <= degrees <= 10:
            raise ValueError(f'degrees must lie in 0 to 10, not {degrees}: streets are not steeper')
        self.degrees = degrees

    def transform(self, results: dict) -> dict:
        """Tilt `points`, and `gt_bboxes_3d` where there are some.

        mmdet3d's record of what moved the points keeps one rotation. `tilts` has a pair for every
        tilt: how many entries of `transformation_3d_flow` came before it, and its matrix [4, 4].
        """
        draws = np.clip(np.random.normal(size=2), -3, 3)
        angle_x, angle_y = np.radians(draws * self.degrees)
        rotation = (_rotate_x(angle_x) @ _rotate_y(angle_y)).T  # of rows

        points = results['points'].tensor
        points[:, :3] @= rotation.to(points.dtype)
        if 'gt_bboxes_3d' in results:
            boxes = results['gt_bboxes_3d']
            boxes.tensor[:, :3] += boxes.gravity_center @ rotation - boxes.gravity_center
        matrix = np.eye(4)
        matrix[:3, :3] = rotation.T
        before = len(results.get('transformation_3d_flow', []))
        results['tilts'] = [*results.get('tilts', []), (before, matrix)]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(degrees={self.degrees})'


def _rotate_x(angle: float) -> torch.Tensor:
    """[3, 3] rotation about x."""
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


def _rotate_y(angle: float) -> torch.Tensor:
    """[3, 3] rotation about y."""
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
