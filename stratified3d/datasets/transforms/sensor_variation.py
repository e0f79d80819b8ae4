"""Other brightness, fewer points, cropped views and bare ground, for detectors of many sensors."""

from __future__ import annotations

import numpy as np
import torch
from mmcv.ops import points_in_boxes_cpu
from mmcv.transforms import BaseTransform
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import LiDARPoints

from stratified3d.ground import find_ground


@TRANSFORMS.register_module()
class FindGroundPlane(BaseTransform):
    """Find the ground of a frame, on which `ObjectSample(use_ground_plane=True)` puts objects.

    Sensors are mounted at different heights: without it, an object from a frame of one would float
    or sink in a frame of another. Where no ground is found, annotated boxes say how low it is, and
    without boxes it stays at `height`.

    Args:
        height: of the ground in the LiDAR frame where nothing else tells it, m.
    """

    def __init__(self, height: float = -1.84):
        self.height = height

    def transform(self, results: dict) -> dict:
        """Set `plane` [4]: a x + b y + c z + d = 0 with c = 1, as mmdet3d writes it."""
        ground, _ = find_ground(results['points'].tensor.numpy())
        if ground is not None:
            height, slope_x, slope_y = ground
        else:
            bottoms = results['gt_bboxes_3d'].bottom_height.numpy()
            height = float(np.median(bottoms)) if len(bottoms) else self.height
            slope_x = slope_y = 0.0
        results['plane'] = np.array([-slope_x, -slope_y, 1.0, -height], np.float32)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(height={self.height})'


@TRANSFORMS.register_module()
class VaryIntensity(BaseTransform):
    """Change the brightness of whole frames: another gain, another curve, or none recorded.

    An intensity v of 0 to 255 becomes 255 gain (v / 255)^gamma, at most 255.

    Args:
        log_gain: standard deviation of the gain's logarithm.
        gamma: least and greatest exponent.
        missing: share of the frames whose intensities become one constant.
        zeros: greatest share of a frame's points that lose their intensity, as weak returns of some
            sensors do (a fifth of KITTI's are 0).
    """

    def __init__(
        self, log_gain: float, gamma: tuple[float, float], missing: float, zeros: float = 0.0
    ):
        if not (0 <= missing <= 1 and 0 <= zeros <= 1):
            raise ValueError(f'missing and zeros are shares, 0 to 1, not {missing} and {zeros}')
        if not 0 < gamma[0] <= gamma[1]:
            raise ValueError(f'gamma is a range above 0, not {tuple(gamma)}')
        self.log_gain, self.gamma, self.missing, self.zeros = log_gain, gamma, missing, zeros

    def transform(self, results: dict) -> dict:
        """Change column 3 of `points`."""
        column = results['points'].tensor[:, 3]
        if np.random.random() < self.missing:
            # readers write 0 where a file has no intensity
            column[:] = np.random.choice([0.0, np.random.uniform(0, 255)])
            return results
        gain = np.exp(np.random.normal(0.0, self.log_gain))
        curve = 255 * gain * (column / 255).clamp(min=0) ** np.random.uniform(*self.gamma)
        is_lost = np.random.random(len(column)) < np.random.uniform(0, self.zeros)
        column[:] = curve.clamp(max=255) * torch.from_numpy(~is_lost)
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(log_gain={self.log_gain}, gamma={tuple(self.gamma)}, '
            f'missing={self.missing}, zeros={self.zeros})'
        )


@TRANSFORMS.register_module()
class ThinFrame(BaseTransform):
    """Drop random points of some frames, and the boxes that keep too few.

    Args:
        prob: share of the frames.
        least: of the points that stay, at least this share; the share's logarithm is uniform.
        min_points: that a box needs.
    """

    def __init__(self, prob: float, least: float = 0.01, min_points: int = 2):
        if not (0 <= prob <= 1 and 0 < least <= 1):
            raise ValueError(f'prob and least are shares up to 1, not {prob} and {least}')
        self.prob, self.least, self.min_points = prob, least, min_points

    def transform(self, results: dict) -> dict:
        """Thin `points`, and `gt_bboxes_3d` with `gt_labels_3d`."""
        if np.random.random() >= self.prob:
            return results
        share = self.least ** np.random.random()
        keep = np.random.random(len(results['points'])) < share
        return keep_points(results, torch.from_numpy(keep), self.min_points)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(prob={self.prob}, least={self.least}, '
            f'min_points={self.min_points})'
        )


@TRANSFORMS.register_module()
class KeepSector(BaseTransform):
    """Keep a sector of some frames, as files that are cropped to the view of a camera do.

    Args:
        prob: share of the frames.
        degrees: least and greatest width of the sector.
        min_points: that a box needs.
    """

    def __init__(
        self, prob: float, degrees: tuple[float, float] = (60.0, 200.0), min_points: int = 2
    ):
        if not 0 <= prob <= 1:
            raise ValueError(f'prob must lie in 0 to 1, not {prob}')
        self.prob, self.degrees, self.min_points = prob, degrees, min_points

    def transform(self, results: dict) -> dict:
        """Crop `points`, and drop `gt_bboxes_3d` with `gt_labels_3d` outside."""
        if np.random.random() >= self.prob:
            return results
        x, y = results['points'].tensor[:, :2].T
        azimuth = torch.atan2(y, x) - np.random.uniform(-np.pi, np.pi)
        aside = ((azimuth + np.pi) % (2 * np.pi) - np.pi).abs()
        half = np.radians(np.random.uniform(*self.degrees)) / 2
        return keep_points(results, aside < half, self.min_points)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(prob={self.prob}, degrees={tuple(self.degrees)}, '
            f'min_points={self.min_points})'
        )


def keep_points(results: dict, keep: torch.Tensor, min_points: int) -> dict:
    """Keep the points of a mask [P], and the boxes with at least `min_points` of them."""
    points = results['points'][keep]
    boxes = results['gt_bboxes_3d']
    if len(boxes):
        inside = points_in_boxes_cpu(points.coord[None], boxes.tensor[None, :, :7])[0]  # [P, K]
        is_seen = inside.sum(0) >= min_points
        results['gt_bboxes_3d'] = boxes[is_seen]
        results['gt_labels_3d'] = results['gt_labels_3d'][is_seen.numpy()]
    results['points'] = points
    return results


@TRANSFORMS.register_module()
class BareGround(BaseTransform):
    """Replace some frames by bare ground without an object, of 0 to 20,000 points.

    A detector that never saw so little makes objects of every point.

    Args:
        prob: share of the frames.
        heights: least and greatest height of the ground in the LiDAR frame, m.
        reach: m, of the ground on each side.
    """

    def __init__(
        self, prob: float, heights: tuple[float, float] = (-2.6, -1.4), reach: float = 54.0
    ):
        if not 0 <= prob <= 1:
            raise ValueError(f'prob must lie in 0 to 1, not {prob}')
        self.prob, self.heights, self.reach = prob, heights, reach

    def transform(self, results: dict) -> dict:
        """Replace `points`, `gt_bboxes_3d` and `gt_labels_3d`."""
        if np.random.random() >= self.prob:
            return results
        results['points'] = LiDARPoints(self._draw(), points_dim=5)
        results['gt_bboxes_3d'] = results['gt_bboxes_3d'][:0]
        results['gt_labels_3d'] = results['gt_labels_3d'][:0]
        return results

    def _draw(self) -> torch.Tensor:
        """[P, 5] points of a plane, spread evenly over its area or over its distance."""
        count = int(20001 ** np.random.random()) - 1
        distance = np.random.random(count)
        if np.random.random() < 0.5:
            distance **= 0.5
        distance *= self.reach * 2**0.5
        angle = np.random.uniform(-np.pi, np.pi, count)
        x, y = distance * np.cos(angle), distance * np.sin(angle)
        slopes = np.random.normal(0, 0.02, 2)
        rough = np.random.normal(0, np.random.uniform(0, 0.06), count)
        z = np.random.uniform(*self.heights) + slopes[0] * x + slopes[1] * y + rough
        intensity = np.clip(np.random.exponential(np.random.uniform(2, 60), count), 0, 255)
        points = np.stack([x, y, z, intensity, np.zeros(count)], 1)
        return torch.from_numpy(points.astype(np.float32))

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(prob={self.prob}, heights={tuple(self.heights)}, '
            f'reach={self.reach})'
        )
