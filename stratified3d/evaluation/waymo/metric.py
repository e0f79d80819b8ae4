"""The Waymo score in mmdet3d's test loop, without TensorFlow and without the program that mmdet3d's
metric runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from mmdet3d.datasets import WaymoDataset
from mmdet3d.registry import METRICS
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from tqdm import tqdm

from stratified3d.datasets.io.info_files import read_info_file
from stratified3d.evaluation.waymo.boxes import (
    CYCLIST,
    PEDESTRIAN,
    SIGN,
    VEHICLE,
    WaymoBoxes,
    make_boxes,
)
from stratified3d.evaluation.waymo.files import (
    ObjectsFile,
    make_messages,
    read_boxes,
    write_objects,
)
from stratified3d.evaluation.waymo.score import (
    average_precisions,
    count_boxes,
    format_table,
    mean_scores,
)

_TYPES = dict(car=VEHICLE, vehicle=VEHICLE, pedestrian=PEDESTRIAN, sign=SIGN, cyclist=CYCLIST)


@METRICS.register_module()
class WaymoLevelMetric(BaseMetric):
    """AP and APH at LEVEL_1 and LEVEL_2, by type and by type and range, as waymo_score.py defines
    them.

    The frames that were tested are scored, each once. Results are `{breakdown}_LEVEL_{1, 2}_{AP,
    APH}` and the means of vehicles, pedestrians and cyclists, `mAP_LEVEL_1`, `mAPH_LEVEL_2` and so
    on.

    Args:
        ann_file: info file of the tested split: its frames and, without gt_file, their ground
        truths, with
            `num_lidar_pts` and, where it is known, `difficulty` (1 or 2; 0: to be derived) of every
        instance. gt_file: Objects file with the ground truths, such as Waymo publishes; it has
        signs and exact difficulties. bin_file: write the predictions there, as an Objects file.
        format_only: write bin_file and score nothing: for the test split. collect_device, prefix:
        as in mmengine.
    Raises:
        FileNotFoundError, ValueError: no file, a damaged one, classes that Waymo does not know;
        results that are no
            frames of ann_file, or of one frame twice.
    """

    default_prefix = 'waymo'

    def __init__(
        self,
        ann_file: str | None = None,
        gt_file: str | None = None,
        bin_file: str | None = None,
        format_only: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if format_only and bin_file is None:
            raise ValueError('format_only writes a file: let bin_file name it')
        if not format_only and ann_file is None and gt_file is None:
            raise ValueError(
                'no ground truths to score with: name an info file as ann_file or an Objects file as '
                'gt_file'
            )
        self.format_only, self.bin_file = format_only, None if bin_file is None else Path(bin_file)
        if self.bin_file is not None:  # better now than after hours of testing
            self.bin_file.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(self.bin_file.parent, os.W_OK):
                raise PermissionError(
                    f'{self.bin_file.parent}: this folder cannot be written; choose another bin_file'
                )
        self.ann_file, self.gt_file, self.frames, self.truth = ann_file, gt_file, None, None
        if ann_file is not None:
            infos = read_info_file(ann_file)
            self.frames = _read_frames(infos, ann_file)
            if gt_file is None and not format_only and is_main_process():
                self.truth = _read_truths(infos, ann_file)
        if gt_file is not None:
            ObjectsFile(gt_file)  # raises; what is in it is read when there is something to score
        self._types = None

    @BaseMetric.dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict) -> None:
        """Metainfo of the tested dataset, which the runner hands over before the first batch."""
        self._types = np.array([_type_of(name) for name in dataset_meta['classes']], np.uint8)
        self._dataset_meta = dataset_meta

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the predictions of the batch's frames."""
        for sample in data_samples:
            found = sample['pred_instances_3d']
            boxes = found['bboxes_3d']
            boxes = np.concatenate(
                [boxes.gravity_center.cpu().numpy(), boxes.tensor[:, 3:7].cpu().numpy()], 1
            )
            self.results.append(
                (
                    self._frame(sample),
                    boxes,
                    self._types[found['labels_3d'].cpu().numpy()],
                    found['scores_3d'].cpu().numpy(),
                )
            )

    def _frame(self, sample: dict) -> tuple[str, int]:
        """Segment and timestamp of a sample."""
        frame = sample.get('context_name'), sample.get('timestamp')
        if None in frame:
            # a number would not do: mmengine's datasets number their samples anew
            raise ValueError(
                'a result does not say of which frame it is: let Pack3DDetInputs pass on the meta_keys '
                "'context_name' and 'timestamp' as well"
            )
        if self.frames is not None and frame not in self.frames:
            raise ValueError(
                f'a result of frame {frame} is none of the {len(self.frames)} frames of {self.ann_file}: '
                'the evaluator and the dataset take different info files'
            )
        return frame

    def compute_metrics(self, results: list[tuple]) -> dict[str, float]:
        """Scores of all frames that were tested, or none with format_only."""
        tested = {frame for frame, *_ in results}
        if len(tested) < len(results):
            raise ValueError(
                f'{len(results)} results of {len(tested)} different frames: every frame counts once, so '
                'test without resampling'
            )
        predictions = _join(
            [
                (frame, dict(boxes=boxes, types=types, scores=scores))
                for frame, boxes, types, scores in sorted(results, key=lambda row: row[0])
            ]
        )
        logger = MMLogger.get_current_instance()
        if self.bin_file is not None:
            write_objects(self.bin_file, make_messages(predictions))
            logger.info(f'{len(predictions)} boxes of {len(results)} frames are in {self.bin_file}')
        if self.format_only:
            return {}
        if self.truth is None:
            self.truth = read_boxes(self.gt_file, partial(tqdm, desc='ground truths', unit='box'))
        frames = list(
            zip(
                map(self.truth.contexts.__getitem__, self.truth.context),
                self.truth.timestamp.tolist(),
            )
        )
        missing = set(frames) - tested
        if missing:
            logger.warning(
                f'{len(missing)} frames that have ground truths in {self.gt_file or self.ann_file} were not '
                f'tested and are left out; the score is of {len(tested)} frames'
            )
        truth = self.truth.take(np.array([frame in tested for frame in frames], bool))
        counts = count_boxes(predictions, truth, partial(tqdm, desc='matching', unit='block'))
        scores = average_precisions(counts)
        logger.info(
            f'Waymo 3D detection, {len(results)} frames\n{format_table(scores, counts.truths)}'
        )
        return {
            **{
                f'm{key}_{level}': value
                for level, values in mean_scores(scores).items()
                for key, value in values.items()
            },
            **{
                f'{name}_{key}': value
                for name, values in scores.items()
                for key, value in values.items()
            },
        }


def _type_of(name: str) -> int:
    """Waymo's number of a class of mmdet3d or of Waymo."""
    if name.lower() not in _TYPES:
        raise ValueError(
            f'the class {name!r} is none of those that Waymo scores: {", ".join(_TYPES)}'
        )
    return _TYPES[name.lower()]


def _read_frames(infos: dict, path: str) -> set[tuple[str, int]]:
    """Segment and timestamp of each frame."""
    try:
        return {(frame['context_name'], int(frame['timestamp'])) for frame in infos['data_list']}
    except KeyError as error:
        raise ValueError(f'{path}: a frame has no {error}; is it an info file of Waymo?') from error


def _read_truths(infos: dict, path: str) -> WaymoBoxes:
    """Ground truths of an info file, whose boxes stand on their z."""
    names = infos['metainfo'].get('categories') or {
        name: i for i, name in enumerate(WaymoDataset.METAINFO['classes'])
    }
    types = {label: _type_of(name) for name, label in names.items() if label >= 0}
    rows = []
    for frame in infos['data_list']:
        known = [
            instance for instance in frame.get('instances', ()) if instance['bbox_label_3d'] >= 0
        ]
        if any('num_lidar_pts' not in instance for instance in known):
            raise ValueError(
                f'{path}: frame {frame["sample_idx"]} has an instance without num_lidar_pts, which the '
                'score depends on; give the metric the ground truths as gt_file'
            )
        boxes = np.array([instance['bbox_3d'][:7] for instance in known], np.float64).reshape(-1, 7)
        boxes[:, 2] += boxes[:, 5] / 2
        rows.append(
            (
                (frame['context_name'], int(frame['timestamp'])),
                dict(
                    boxes=boxes,
                    types=[types[instance['bbox_label_3d']] for instance in known],
                    num_points=[instance['num_lidar_pts'] for instance in known],
                    difficulty=[instance.get('difficulty', 0) for instance in known],
                ),
            )
        )
    return _join(rows)


def _join(frames: list[tuple[tuple[str, int], dict]]) -> WaymoBoxes:
    """Boxes of frames, each with its segment and timestamp and the same columns of make_boxes."""
    contexts = {name: i for i, name in enumerate(dict.fromkeys(name for (name, _), _ in frames))}
    counts = [len(columns['boxes']) for _, columns in frames]
    columns = {
        key: np.concatenate([columns[key] for _, columns in frames])
        for key in (frames[0][1] if frames else ())
    }
    return make_boxes(
        list(contexts),
        np.repeat([contexts[name] for (name, _), _ in frames], counts),
        np.repeat([time for (_, time), _ in frames], counts),
        **(columns or dict(boxes=[], types=[])),
    )
