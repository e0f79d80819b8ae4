"""Ground-truth sampling for numpy without np.long and for classes without an object."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import numpy as np
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

    Raises:
        FileNotFoundError: there is no database.
    """

    _sample_all = _with_long(DataBaseSampler.sample_all)

    def __init__(self, info_path: str, *args, **kwargs):
        if '://' not in info_path and not Path(info_path).is_file():
            raise FileNotFoundError(
                f'there is no ground-truth database {info_path}: {hint(Path(info_path))}; '
                'without one, take ObjectSample out of the pipeline'
            )
        super().__init__(info_path, *args, **kwargs)
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
        return super().sample_class_v2(name, num, gt_bboxes)

    def sample_all(self, *args, **kwargs) -> dict | None:
        """Sampled boxes, labels and points of one frame, see DataBaseSampler.sample_all."""
        return self._sample_all(*args, **kwargs)
