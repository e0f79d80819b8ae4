"""What a detector takes and gives, whichever way it runs: columns of points, and detections."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# s; sweeps span half a second, and a ring index counts up to 31 or 63
_MAX_DT = 2.5


class Detections(NamedTuple):
    """Detected objects, sorted by descending score.

    Attributes:
        boxes: [K, 7 or 9] float32: bottom center x, y, z, dx, dy, dz (m), yaw (rad), and vx, vy
            (m/s) where the model predicts them.
        scores: [K] float32.
        names: K class names.
    """

    boxes: np.ndarray
    scores: np.ndarray
    names: list[str]


def points_with_dt(points: np.ndarray | Tensor) -> Tensor:
    """Points [P, 5] float32 with their ages, which are 0 where they are not given.

    Args:
        points: [P, 4] x, y, z (m), intensity, or [P, 5] with dt (s).
    Raises:
        ValueError: other columns.
    """
    points = torch.as_tensor(points).float()
    if points.dim() != 2 or points.shape[1] not in (4, 5):
        raise ValueError(
            f'points are [P, 4] x, y, z, intensity, or [P, 5] with dt, not {list(points.shape)}'
        )
    if points.shape[1] == 4:
        return torch.cat([points, points.new_zeros(len(points), 1)], 1)

    ages = points[points[:, 4].isfinite(), 4]
    if bool((ages > _MAX_DT).any()):
        raise ValueError(
            f'column 4 is dt, the age of each point in seconds, but contains values up to '
            f'{ages.max():.0f}: if it is a ring index, pass points[:, :4]'
        )
    return points
