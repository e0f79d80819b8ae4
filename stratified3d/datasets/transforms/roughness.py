"""Ground that is neither flat nor smooth."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import torch
from mmcv.ops import points_in_boxes_cpu
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes

_NEAR_GROUND = 0.35  # m of a point from the plane of the ground, at which grass may grow there
_NEAR, _FAR = 6.0, 20.0  # m from the sensor: no waves before, full waves behind


@TRANSFORMS.register_module()
class RoughenGround(BaseTransform):
    """Let the ground of some frames rise and fall, and grass and rubble grow on it.

    Waves lift everything that stands on them; the points of a box move together with it. Patches of
    grass end the beams that met the ground sooner, so that points come nearer along their beam and
    rise. It needs the `plane` that `FindGroundPlane` leaves. The moves are not in mmdet3d's record
    of transformations.

    Args:
        prob: share of the frames.
        waves: standard deviation of their height, m, at 20 m and more from the sensor.
        grass: greatest mean height of grass, m.
        cover: greatest share of the ground that has it.
    """

    def __init__(self, prob: float, waves: float = 0.2, grass: float = 0.25, cover: float = 0.5):
        if not (0 <= prob <= 1 and 0 <= cover <= 1):
            raise ValueError(f'prob and cover are shares, 0 to 1, not {prob} and {cover}')
        if not (0 <= waves <= 2 and 0 <= grass <= 2):
            raise ValueError(f'waves and grass lie in 0 to 2 m, not at {waves} and {grass}')
        self.prob, self.waves, self.grass, self.cover = prob, waves, grass, cover

    def transform(self, results: dict) -> dict:
        """Move `points`, and the height of `gt_bboxes_3d`."""
        if 'plane' not in results:
            raise ValueError('RoughenGround needs FindGroundPlane before it in the pipeline')
        if np.random.random() >= self.prob:
            return results
        points, boxes = results['points'].tensor, results['gt_bboxes_3d']
        owner = _box_of_points(points, boxes)
        self._grow_grass(points, owner < 0, results['plane'])
        self._lift(points, boxes.tensor, owner)
        return results

    def _grow_grass(self, points: torch.Tensor, is_free: np.ndarray, plane: np.ndarray) -> None:
        """Shorten the beams that met free ground in some patches; xyz changes in place."""
        places = _places(points)
        ground = -(places @ plane[:2] + plane[3]) / plane[2]
        is_ground = np.abs(points[:, 2].numpy() - ground) < _NEAR_GROUND
        grows = is_free & is_ground & self._draw_patches(places)

        depth = np.maximum(-ground[grows], 0.3)  # m of the ground below the sensor
        heights = np.minimum(self._draw_heights(places[grows]), 0.6 * depth)
        share = torch.from_numpy(1 - heights / depth).to(points.dtype)
        points[torch.from_numpy(grows), :3] *= share[:, None]

    def _draw_patches(self, places: np.ndarray) -> np.ndarray:
        """[P] whether there is grass."""
        cover = np.clip(np.random.uniform(0, self.cover), 1e-6, 1 - 1e-6)
        # the function of six waves is nearly normal
        threshold = NormalDist().inv_cdf(1 - cover)
        return _draw_waves((4.0, 25.0))(places) > threshold

    def _draw_heights(self, places: np.ndarray) -> np.ndarray:
        """[P] m, of tufts and of single stems."""
        mean = np.random.uniform(0, self.grass)
        tufts = np.maximum(0.5 + 0.5 * _draw_waves((0.6, 3.0))(places), 0)
        stems = np.random.exponential(size=len(places))
        return mean * (0.6 * tufts + 0.4 * stems)

    def _lift(self, points: torch.Tensor, boxes: torch.Tensor, owner: np.ndarray) -> None:
        """Raise points and boxes by waves, the points of a box together with it."""
        wave = _draw_waves((10.0, 60.0))
        lifts, box_lifts = (
            self.waves * _fade_in(places) * wave(places)
            for places in (_places(points), _places(boxes))
        )
        is_owned = owner >= 0
        lifts[is_owned] = box_lifts[owner[is_owned]]
        points[:, 2] += torch.from_numpy(lifts).to(points.dtype)
        boxes[:, 2] += torch.from_numpy(box_lifts).to(boxes.dtype)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(prob={self.prob}, waves={self.waves}, grass={self.grass}, '
            f'cover={self.cover})'
        )


def _places(rows: torch.Tensor) -> np.ndarray:
    """[N, 2] fp64 x, y."""
    return rows[:, :2].numpy().astype(np.float64)


def _box_of_points(points: torch.Tensor, boxes: LiDARInstance3DBoxes) -> np.ndarray:
    """[P] number of the box around each point, -1 for none."""
    if not len(boxes):
        return np.full(len(points), -1)
    around = boxes.enlarged_box(0.1).tensor[:, :7]
    inside = points_in_boxes_cpu(points[None, :, :3].contiguous(), around[None])[0].numpy()
    return np.where(inside.any(1), inside.argmax(1), -1)


def _draw_waves(
    wavelengths: tuple[float, float], count: int = 6
) -> Callable[[np.ndarray], np.ndarray]:
    """A random smooth function of places [P, 2], of mean 0 and standard deviation 1."""
    shortest, longest = np.log(wavelengths)
    lengths = np.exp(np.random.uniform(shortest, longest, count))
    angles, phases = np.random.uniform(0, 2 * np.pi, (2, count))
    waves = 2 * np.pi / lengths * np.stack([np.cos(angles), np.sin(angles)])  # [2, count]

    def evaluate(places: np.ndarray) -> np.ndarray:
        return np.cos(places @ waves + phases).sum(1) * (2 / count) ** 0.5

    return evaluate


def _fade_in(places: np.ndarray) -> np.ndarray:
    """[P] 0 beside the sensor to 1 far from it, smoothly."""
    t = np.clip((np.linalg.norm(places, axis=1) - _NEAR) / (_FAR - _NEAR), 0, 1)
    return t * t * (3 - 2 * t)
