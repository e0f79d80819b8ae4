"""A LiDAR-only dataset for mmdet3d: the info files that tools/convert_custom.py writes."""

from __future__ import annotations

import numpy as np
from mmdet3d.datasets import Det3DDataset
from mmdet3d.registry import DATASETS
from mmdet3d.structures import LiDARInstance3DBoxes

from stratified3d.datasets.io.info_files import read_info_file


@DATASETS.register_module()
class LidarFrames(Det3DDataset):
    """Frames of points with named boxes; other arguments as in Det3DDataset.

    Labels follow the order of `metainfo['classes']`, whatever order the info file was written in.
    Boxes of other classes and boxes with fewer than `min_points` points are left out.

    Args:
        data_root: contains the info files and points/.
        ann_file: the info file.
        metainfo: dict(classes=[names]).
        with_velocity: boxes have 9 numbers instead of 7; an unknown velocity is NaN, which the head
            does not learn.
        min_points: 1 or more; 0 keeps empty boxes.
    Raises:
        FileNotFoundError: no such info file.
        ValueError: another dataset's info file, a class that it does not know, nothing to train on.
    """

    def __init__(
        self,
        data_root: str,
        ann_file: str,
        metainfo: dict,
        with_velocity: bool = False,
        min_points: int = 1,
        data_prefix: dict | None = None,
        **kwargs,
    ):
        self.METAINFO = dict(classes=tuple(metainfo['classes']))
        self.with_velocity = with_velocity
        self.min_points = min_points
        super().__init__(
            data_root=data_root,
            ann_file=ann_file,
            metainfo=metainfo,
            data_prefix=data_prefix or dict(pts='points'),
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """The frames of the info file, see BaseDataset.load_data_list."""
        meta = read_info_file(self.ann_file)['metainfo']
        if meta.get('dataset') != 'custom':
            raise ValueError(
                f'{self.ann_file}: written for dataset {meta.get("dataset")!r}, not by '
                'tools/convert_custom.py'
            )
        self._check_annotations(meta)
        frames = super().load_data_list()
        if not self.test_mode:
            self._check_trainable(frames)
        return frames

    def _check_annotations(self, meta: dict) -> None:
        """Raise for classes that the info file does not know; without annotations, only test."""
        if not meta['is_annotated']:
            if not self.test_mode:
                raise ValueError(
                    f'{self.ann_file}: has no annotations: there is nothing to train on'
                )
            self.load_eval_anns = False
            return
        absent = sorted(set(self._metainfo['classes']) - set(meta['categories']))
        if absent:
            raise ValueError(
                f'{self.ann_file}: has no class {", ".join(absent)}; it has '
                f'{", ".join(meta["categories"])}'
            )

    def _check_trainable(self, frames: list[dict]) -> None:
        if not any(len(frame['ann_info']['gt_labels_3d']) for frame in frames):
            raise ValueError(
                f'{self.ann_file}: none of its {len(frames)} frames has a box of '
                f'{", ".join(self._metainfo["classes"])} with {self.min_points} points: there is '
                'nothing to train on'
            )

    def parse_ann_info(self, info: dict) -> dict:
        """gt_bboxes_3d [K, 7 or 9] and gt_labels_3d [K] of a frame."""
        classes = self._metainfo['classes']
        kept = [
            row
            for row in info['instances']
            if row['name'] in classes and row['num_lidar_pts'] >= self.min_points
        ]
        labels = np.array([classes.index(row['name']) for row in kept], np.int64)
        for label in labels:
            self.num_ins_per_cat[label] += 1

        width = 9 if self.with_velocity else 7
        numbers = [[*row['bbox_3d'], *row['velocity']][:width] for row in kept]
        boxes = np.array(numbers, np.float32).reshape(-1, width)
        return dict(gt_bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=width), gt_labels_3d=labels)
