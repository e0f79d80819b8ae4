"""Average precision by center distance, as the nuScenes benchmark defines it: functions on arrays,
and a registered metric for datasets without a benchmark of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmdet3d.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

_RECALLS = np.linspace(0, 1, 101)


def match_centers(
    ground_truth: np.ndarray, predicted: np.ndarray, max_distance: float = 2.0
) -> np.ndarray:
    """Match every prediction, in order, to the nearest ground truth that is still free.

    The matching of the nuScenes detection benchmark (Caesar et al. 2020, section 3.1), for one
    class of one frame.

    Args:
        ground_truth: [K, >= 2] x, y (m).
        predicted: [J, >= 2], sorted by descending score.
        max_distance: meters in the ground plane; a ground truth at this distance is not a match.
    Returns:
        [J] int64, the matched ground truth of each prediction or -1.
    """
    matched = np.full(len(predicted), -1)
    is_free = np.ones(len(ground_truth), bool)
    for j, center in enumerate(predicted):
        distance = np.linalg.norm(ground_truth[:, :2] - center[:2], axis=1)  # [K]
        distance = np.where(is_free, distance, np.inf)
        if len(distance) and distance.min() < max_distance:
            matched[j] = distance.argmin()
            is_free[matched[j]] = False
    return matched


def count_matches(
    ground_truth: np.ndarray,
    ground_truth_names: Sequence[str],
    predicted: np.ndarray,
    scores: np.ndarray,
    predicted_names: Sequence[str],
    max_distance: float = 2.0,
) -> dict[str, tuple[int, int]]:
    """Count the ground truths of each class that its best predictions find.

    Of each class, only as many predictions count as there are ground truths.

    Args:
        ground_truth: [K, >= 2]; ground_truth_names: K class names.
        predicted: [J, >= 2]; scores: [J]; predicted_names: J class names.
        max_distance: meters in the ground plane.
    Returns:
        {class: (found, ground truths)} for every class that has a ground truth, in alphabetical
        order.
    """
    gt_classes = np.asarray(ground_truth_names)
    predicted_classes = np.asarray(predicted_names)
    found = {}
    for name in sorted(set(gt_classes.tolist())):
        expected = ground_truth[gt_classes == name]
        count = len(expected)
        rows = np.flatnonzero(predicted_classes == name)
        order = np.argsort(-scores[rows], kind='stable')
        best = predicted[rows[order][:count]]
        matched = match_centers(expected, best, max_distance)
        found[name] = (int((matched >= 0).sum()), count)
    return found


def average_precision(
    ground_truth: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    max_distance: float,
    min_recall: float = 0.1,
    min_precision: float = 0.1,
) -> float:
    """AP of one class over all frames (Caesar et al. 2020, section 3.1).

    Precision is interpolated at 101 recalls; values at or below the least recall or precision count
    nothing, and the rest is normalized to 1.

    Args:
        ground_truth: centers [K, >= 2] (x, y in meters) of each frame.
        predicted: centers [J, >= 2] of each frame; scores: [J] of each frame.
        max_distance: meters in the ground plane.
    Returns:
        0 to 1; NaN without ground truth.
    """
    total = sum(map(len, ground_truth))
    if not total:
        return float('nan')
    hits = _sorted_hits(ground_truth, predicted, scores, max_distance)
    if not hits.any():
        return 0.0

    true_positives = np.cumsum(hits)
    precision = true_positives / np.arange(1, len(hits) + 1)
    recall = true_positives / total
    curve = np.interp(_RECALLS, recall, precision, right=0)
    first = round(100 * min_recall) + 1
    counted = np.clip(curve[first:] - min_precision, 0, None)
    return float(counted.mean() / (1 - min_precision))


def _sorted_hits(
    ground_truth: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    max_distance: float,
) -> np.ndarray:
    """Whether each prediction is matched, [sum of J] bool, sorted by descending score."""
    frame_hits = []
    frame_scores = []
    for expected, boxes, score in zip(ground_truth, predicted, scores):
        order = np.argsort(-score, kind='stable')
        frame_hits.append(match_centers(expected, boxes[order], max_distance) >= 0)
        frame_scores.append(score[order])
    order = np.argsort(-np.concatenate(frame_scores), kind='stable')
    return np.concatenate(frame_hits)[order]


@METRICS.register_module()
class CenterDistanceMetric(BaseMetric):
    """AP of every class, averaged over distances, and their mean (mAP), after nuScenes.

    Args:
        point_cloud_range: ground truths and predictions with centers outside (x, y) are left out;
            None keeps all.
        distances: meters within which a prediction matches a ground truth.
        collect_device, prefix: as in mmengine.
    """

    default_prefix = 'center'

    def __init__(
        self,
        point_cloud_range: Sequence[float] | None = None,
        distances: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.point_cloud_range = point_cloud_range
        self.distances = tuple(distances)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep ground truths and predictions of the batch's frames."""
        for sample in data_samples:
            expected = sample.get('eval_ann_info')
            if expected is None:
                raise ValueError(
                    'frames without annotations cannot be scored: is this a test split?'
                )
            gt_centers = expected['gt_bboxes_3d'].tensor.cpu().numpy()[:, :2]
            gt_labels = np.asarray(expected['gt_labels_3d'])
            found = sample['pred_instances_3d']
            centers = found['bboxes_3d'].tensor.cpu().numpy()[:, :2]
            labels = found['labels_3d'].cpu().numpy()
            scores = found['scores_3d'].cpu().numpy()
            gt_columns = self._in_range(gt_centers, gt_labels)
            columns = self._in_range(centers, labels, scores)
            self.results.append([*gt_columns, *columns])

    def _in_range(self, centers: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
        """Centers [N, 2] and columns [N] of the boxes in range."""
        if self.point_cloud_range is None:
            return [centers, *columns]
        low = np.array(self.point_cloud_range[:2])
        high = np.array(self.point_cloud_range[3:5])
        in_range = ((centers >= low) & (centers < high)).all(1)
        return [column[in_range] for column in (centers, *columns)]

    def compute_metrics(self, results: list) -> dict[str, float]:
        """mAP and <class>_AP; a class without ground truth has none and does not count."""
        metrics = {}
        lines = []
        for label, name in enumerate(self.dataset_meta['classes']):
            expected = [gt_centers[gt_labels == label] for gt_centers, gt_labels, *_ in results]
            centers = [centers[labels == label] for *_, centers, labels, _ in results]
            scores = [scores[labels == label] for *_, labels, scores in results]
            values = [
                average_precision(expected, centers, scores, distance)
                for distance in self.distances
            ]
            mean = float(np.mean(values))
            count = sum(map(len, expected))
            if count:
                metrics[f'{name}_AP'] = mean
            columns = ''.join(f'{value:>8.3f}' for value in [*values, mean])
            lines.append(f'{name:<24}{count:>7}{columns}')

        metrics['mAP'] = float(np.mean(list(metrics.values()))) if metrics else float('nan')
        self._log_table(lines, metrics['mAP'])
        return metrics

    def _log_table(self, lines: list[str], mean: float) -> None:
        distances = ''.join(f'{distance:>6g} m' for distance in self.distances)
        header = f'{"class":<24}{"boxes":>7}{distances}    mean'
        table = ['AP within', header, *lines, f'mAP {mean:.3f}']
        MMLogger.get_current_instance().info('\n'.join(table))
