"""What a detector takes and gives, whichever way it runs: columns of points, and detections."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# s; sweeps span half a second, and a ring index counts up to 31 or 63
_MAX_DT = 2.5
_OWN_MARGIN = 0.1  # m around a box


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


def drop_own_vehicle(found: Detections) -> Detections:
    """Return the detections whose box, seen from above, does not contain the frame's origin.

    Nothing else can be where the sensor is: what is found there are returns from the roof and the
    hood of the vehicle that carries it.
    """
    x, y, _, length, width, _, yaw = found.boxes[:, :7].T
    cos, sin = np.cos(yaw), np.sin(yaw)
    ahead = np.abs(cos * x + sin * y)
    aside = np.abs(cos * y - sin * x)
    is_own = (ahead <= length / 2 + _OWN_MARGIN) & (aside <= width / 2 + _OWN_MARGIN)
    names = [name for name, own in zip(found.names, is_own) if not own]
    return Detections(found.boxes[~is_own], found.scores[~is_own], names)


def points_with_dt(points: np.ndarray | Tensor) -> Tensor:
    """Points [P, 5] float32 with their ages, which are 0 where they are not given.

    Args:
        points: [P, 4] x, y, z (m), intensity, or [P, 5] with dt (s).
    Raises:
        ValueError: other columns.
    """
    if not isinstance(points, Tensor):
        # torch takes no reversed array and none of the other byte order
        with np.errstate(over='ignore'):
            points = torch.from_numpy(np.ascontiguousarray(points, np.float32))
    points = points.float()
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
