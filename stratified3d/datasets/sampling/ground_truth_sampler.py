"""Ground-truth sampling, where mmdet3d 1.4's fails: numpy without np.long, classes without an
object."""

from __future__ import annotations

import logging
from pathlib import Path
from unittest import mock

import numpy as np
from mmdet3d.datasets.transforms.dbsampler import DataBaseSampler
from mmdet3d.registry import TRANSFORMS
from mmengine.logging import print_log

from stratified3d.datasets.io.info_files import hint


@TRANSFORMS.register_module()
class GroundTruthSampler(DataBaseSampler):
    """mmdet3d's DataBaseSampler, arguments and all; `db_sampler=dict(type='GroundTruthSampler',
    ...)` selects it.

    `DataBaseSampler.sample_all` asks for np.long, which numpy 1.24 to 1.26 do not have: training
    stops in the first batch. The name is lent to it for the duration of the call. A class of which
    the database holds nothing, or nothing with enough points, is not sampled, with a warning;
    DataBaseSampler raises a KeyError, or fails in a later batch.

    Raises:
        FileNotFoundError: there is no database.
    """

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
        every = {**{name: [] for name in min_gt_points_dict}, **db_infos}
        return DataBaseSampler.filter_by_min_points(every, min_gt_points_dict)

    def sample_class_v2(self, name: str, num: int, gt_bboxes: np.ndarray) -> list[dict]:
        """Up to num entries of a class that overlap no box, see DataBaseSampler.sample_class_v2."""
        return super().sample_class_v2(name, num, gt_bboxes) if self.db_infos.get(name) else []

    def sample_all(self, *args, **kwargs) -> dict | None:
        """Sampled boxes, labels and points of one frame, see DataBaseSampler.sample_all."""
        with mock.patch.object(np, 'long', np.int64, create=True):
            return super().sample_all(*args, **kwargs)
