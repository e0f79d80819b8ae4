"""Ground-truth sampling for numpy without np.long and for classes without an object."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import numpy as np
import torch
from mmdet3d.datasets.transforms.dbsampler import DataBaseSampler
from mmdet3d.registry import TRANSFORMS
from mmengine.logging import print_log

from stratified3d.datasets.io.info_files import hint


class _NumpyWithLong:
    """numpy with the name `long`, which numpy 1.24 to 1.26 do not have."""

    long = np.int64

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)


def _with_long(method: Callable) -> Callable:
    """The same method, in whose module `np` has `long`; numpy itself stays as it is."""
    names = {**method.__globals__, 'np': _NumpyWithLong()}
    return FunctionType(method.__code__, names, method.__name__, method.__defaults__)


@TRANSFORMS.register_module()
class GroundTruthSampler(DataBaseSampler):
    """mmdet3d's DataBaseSampler, with the same arguments and two errors fixed.

    `db_sampler=dict(type='GroundTruthSampler', ...)` selects it. `DataBaseSampler.sample_all` needs
    np.long, which numpy 1.24 to 1.26 do not have, so that training stops in the first batch. A
    class without an object in the database, or without one of enough points, is left out with a
    warning; DataBaseSampler raises a KeyError, or fails in a later batch.

    Args:
        turned: whether the objects of a frame are turned about the sensor, all by the same random
            angle. They look as the sensor saw them, but which way they face says nothing of where
            they are.
        info_path and others: as in DataBaseSampler.
    Raises:
        FileNotFoundError: there is no database.
    """

    points_loader: Callable[[dict], dict]
    _sample_all = _with_long(DataBaseSampler.sample_all)

    def __init__(self, info_path: str, *args, turned: bool = False, **kwargs):
        if '://' not in info_path and not Path(info_path).is_file():
            raise FileNotFoundError(
                f'there is no ground-truth database {info_path}: {hint(Path(info_path))}; '
                'without one, take ObjectSample out of the pipeline'
            )
        super().__init__(info_path, *args, **kwargs)
        self.turned = turned
        self._angle = 0.0
        if turned:
            load = self.points_loader
            self.points_loader = lambda results: self._turn_points(load(results))
        absent = [name for name in self.sample_classes if not self.db_infos.get(name)]
        if absent:
            print_log(
                f'{info_path}: nothing to sample of {", ".join(absent)}', 'current', logging.WARNING
            )

    @staticmethod
    def filter_by_min_points(db_infos: dict, min_gt_points_dict: dict) -> dict:
        """Entries {class: [entry]} with as many points as {class: number} asks for."""
        every: dict[str, list] = {name: [] for name in min_gt_points_dict}
        every.update(db_infos)
        return DataBaseSampler.filter_by_min_points(every, min_gt_points_dict)

    def sample_class_v2(self, name: str, num: int, gt_bboxes: np.ndarray) -> list[dict]:
        """Up to num entries of a class that overlap no box, see DataBaseSampler.sample_class_v2."""
        if not self.db_infos.get(name):
            return []
        # overlaps are looked for where the objects were
        entries = super().sample_class_v2(name, num, turn_boxes(gt_bboxes, -self._angle))
        for entry in entries:
            entry['box3d_lidar'] = turn_boxes(entry['box3d_lidar'], self._angle)
        return entries

    def sample_all(self, *args, **kwargs) -> dict | None:
        """Sampled boxes, labels and points of one frame, see DataBaseSampler.sample_all."""
        self._angle = np.random.uniform(-np.pi, np.pi) if self.turned else 0.0
        return self._sample_all(*args, **kwargs)

    def _turn_points(self, results: dict) -> dict:
        """Turn the points of an object, which are relative to its box, like the box."""
        tensor = results['points'].tensor
        xy = tensor[:, :2].numpy()
        tensor[:, :2] = torch.from_numpy(turn_vectors(xy, self._angle))
        return results


def turn_boxes(boxes: np.ndarray, angle: float) -> np.ndarray:
    """Return boxes [..., 7 or 9] that are turned about the z axis of the sensor.

    Args:
        boxes: x, y, z, dx, dy, dz (m), yaw (rad), and vx, vy (m/s).
        angle: rad, counterclockwise.
    """
    turned = np.array(boxes, copy=True)
    turned[..., :2] = turn_vectors(boxes[..., :2], angle)
    turned[..., 6] += angle
    if boxes.shape[-1] > 7:
        turned[..., 7:9] = turn_vectors(boxes[..., 7:9], angle)
    return turned


def turn_vectors(vectors: np.ndarray, angle: float) -> np.ndarray:
    """Return vectors [..., 2] of the ground plane, turned counterclockwise by an angle in rad."""
    x, y = vectors[..., 0], vectors[..., 1]
    cos, sin = np.cos(angle), np.sin(angle)
    turned = np.stack([cos * x - sin * y, sin * x + cos * y], -1)
    return turned.astype(vectors.dtype)
