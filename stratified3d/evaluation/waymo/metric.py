"""The Waymo score in mmdet3d's test loop, without TensorFlow and without the official program."""

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
    read_objects,
    write_objects,
)
from stratified3d.evaluation.waymo.score import (
    average_precisions,
    count_boxes,
    format_table,
    mean_scores,
)

_Frame = tuple[str, int]  # segment and timestamp
_TYPES = dict(car=VEHICLE, vehicle=VEHICLE, pedestrian=PEDESTRIAN, sign=SIGN, cyclist=CYCLIST)


@METRICS.register_module()
class WaymoLevelMetric(BaseMetric):
    """AP and APH at LEVEL_1 and LEVEL_2, by type and by type and range, see score.py.

    The frames that were tested are scored, each once. Results are `{breakdown}_LEVEL_{1, 2}_{AP,
    APH}` and the means of vehicles, pedestrians and cyclists, `mAP_LEVEL_1`, `mAPH_LEVEL_2` and so
    on.

    Args:
        ann_file: info file of the tested split: its frames and, without gt_file, their ground
            truths, with `num_lidar_pts` and, where it is known, `difficulty` (1 or 2; 0: to be
            derived) of every instance.
        gt_file: Objects file with the ground truths, such as Waymo publishes; it has signs and
            exact difficulties.
        bin_file: write the predictions there, as an Objects file.
        format_only: write bin_file and score nothing: for the test split.
        collect_device, prefix: as in mmengine.
    Raises:
        FileNotFoundError, ValueError: no file, a damaged one, classes that Waymo does not know;
            results that do not belong to the frames of ann_file, or two results of one frame.
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
            raise ValueError('format_only writes a file: set bin_file to its path')
        if not format_only and ann_file is None and gt_file is None:
            raise ValueError(
                'no ground truths to score with: set ann_file to an info file or gt_file to an '
                'Objects file'
            )
        self.format_only = format_only
        self.ann_file = ann_file
        self.gt_file = gt_file
        self.bin_file = None if bin_file is None else Path(bin_file)
        self.frames: set[_Frame] | None = None
        self.ground_truths: WaymoBoxes | None = None
        self._types = np.zeros(0, np.uint8)  # by label
        if self.bin_file is not None:  # better now than after hours of testing
            _check_writable(self.bin_file.parent)
        if ann_file is not None:
            infos = read_info_file(ann_file)
            self.frames = _read_frames(infos, ann_file)
            if gt_file is None and not format_only and is_main_process():
                self.ground_truths = _read_ground_truths(infos, ann_file)
        if gt_file is not None:
            ObjectsFile(gt_file)  # raises; the boxes are read when there is something to score

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
            centers = boxes.gravity_center.cpu().numpy()
            sides_and_yaw = boxes.tensor[:, 3:7].cpu().numpy()
            columns = dict(
                boxes=np.concatenate([centers, sides_and_yaw], 1),
                types=self._types[found['labels_3d'].cpu().numpy()],
                scores=found['scores_3d'].cpu().numpy(),
            )
            self.results.append((self._frame(sample), columns))

    def _frame(self, sample: dict) -> _Frame:
        """Segment and timestamp of a sample."""
        context, timestamp = sample.get('context_name'), sample.get('timestamp')
        if context is None or timestamp is None:
            # a number would not do: mmengine's datasets number their samples anew
            raise ValueError(
                'a result does not say of which frame it is: add the meta_keys '
                "'context_name' and 'timestamp' to Pack3DDetInputs"
            )
        frame = context, timestamp
        if self.frames is not None and frame not in self.frames:
            raise ValueError(
                f'a result of frame {frame} does not belong to the {len(self.frames)} frames of '
                f'{self.ann_file}: the evaluator and the dataset use different info files'
            )
        return frame

    def compute_metrics(self, results: list[tuple]) -> dict[str, float]:
        """Scores of all frames that were tested, or none with format_only."""
        tested = {frame for frame, _ in results}
        if len(tested) < len(results):
            raise ValueError(
                f'{len(results)} results of {len(tested)} different frames: every frame counts '
                'once, so test without resampling'
            )
        predictions = _join(sorted(results, key=lambda row: row[0]))
        logger = MMLogger.get_current_instance()
        if self.bin_file is not None:
            write_objects(self.bin_file, make_messages(predictions))
            logger.info(f'{len(predictions)} boxes of {len(results)} frames are in {self.bin_file}')
        if self.format_only:
            return {}

        ground_truths = self._tested_ground_truths(tested)
        progress = partial(tqdm, desc='matching', unit='block')
        counts = count_boxes(predictions, ground_truths, progress)
        scores = average_precisions(counts)
        table = format_table(scores, counts.ground_truths)
        logger.info(f'Waymo 3D detection, {len(results)} frames\n{table}')

        metrics: dict[str, float] = {}
        for level, means in mean_scores(scores).items():
            metrics |= {f'm{key}_{level}': value for key, value in means.items()}
        for name, values in scores.items():
            metrics |= {f'{name}_{key}': value for key, value in values.items()}
        return metrics

    def _tested_ground_truths(self, tested: set[_Frame]) -> WaymoBoxes:
        """Ground truths of the tested frames; warns where there are others."""
        if self.ground_truths is None:
            assert self.gt_file is not None  # checked above
            progress = partial(tqdm, desc='ground truths', unit='box')
            self.ground_truths = read_objects(self.gt_file, progress)
        contexts = [self.ground_truths.contexts[i] for i in self.ground_truths.context]
        frames = list(zip(contexts, self.ground_truths.timestamp.tolist()))
        missing = set(frames) - tested
        if missing:
            MMLogger.get_current_instance().warning(
                f'{len(missing)} frames that have ground truths in '
                f'{self.gt_file or self.ann_file} were not tested and are left out; the score '
                f'covers {len(tested)} frames'
            )
        return self.ground_truths.take(np.array([frame in tested for frame in frames], bool))


def _check_writable(folder: Path) -> None:
    """Make a folder; raise PermissionError where it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f'{folder}: this folder cannot be written; choose another bin_file')


def _type_of(name: str) -> int:
    """Waymo's number of a class of mmdet3d or of Waymo."""
    if name.lower() not in _TYPES:
        raise ValueError(
            f'Waymo does not score the class {name!r}; its classes are {", ".join(_TYPES)}'
        )
    return _TYPES[name.lower()]


def _read_frames(infos: dict, path: str) -> set[_Frame]:
    """Segment and timestamp of each frame."""
    try:
        return {(frame['context_name'], int(frame['timestamp'])) for frame in infos['data_list']}
    except KeyError as error:
        raise ValueError(f'{path}: a frame has no {error}; is it an info file of Waymo?') from error


def _read_ground_truths(infos: dict, path: str) -> WaymoBoxes:
    """Ground truths of an info file, whose z is that of the bottom."""
    names = infos['metainfo'].get('categories')
    if not names:
        names = {name: i for i, name in enumerate(WaymoDataset.METAINFO['classes'])}
    types = {label: _type_of(name) for name, label in names.items() if label >= 0}
    rows = []
    for frame in infos['data_list']:
        known = [row for row in frame.get('instances', ()) if row['bbox_label_3d'] >= 0]
        if any('num_lidar_pts' not in row for row in known):
            raise ValueError(
                f'{path}: frame {frame["sample_idx"]} has an instance without num_lidar_pts, which '
                'the score depends on; set gt_file to an Objects file with the ground truths'
            )
        boxes = np.array([row['bbox_3d'][:7] for row in known], np.float64).reshape(-1, 7)
        boxes[:, 2] += boxes[:, 5] / 2
        columns = dict(
            boxes=boxes,
            types=[types[row['bbox_label_3d']] for row in known],
            num_points=[row['num_lidar_pts'] for row in known],
            difficulty=[row.get('difficulty', 0) for row in known],
        )
        rows.append(((frame['context_name'], int(frame['timestamp'])), columns))
    return _join(rows)


def _join(frames: list[tuple[_Frame, dict]]) -> WaymoBoxes:
    """Boxes of frames, each with the same columns of make_boxes."""
    if not frames:
        return make_boxes([], [], [], [], [])
    names = list(dict.fromkeys(name for (name, _), _ in frames))
    number = {name: i for i, name in enumerate(names)}
    context = [number[name] for (name, _), _ in frames]
    timestamp = [stamp for (_, stamp), _ in frames]
    counts = [len(columns['boxes']) for _, columns in frames]
    joined = {key: np.concatenate([columns[key] for _, columns in frames]) for key in frames[0][1]}
    return make_boxes(names, np.repeat(context, counts), np.repeat(timestamp, counts), **joined)
