"""A registered metric for datasets without a benchmark of their own: mean AP by center
distance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmdet3d.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from stratified3d.evaluation.average_precision import average_precision


@METRICS.register_module()
class CenterDistanceMetric(BaseMetric):
    """AP of every class, averaged over distances, and their mean (mAP), after nuScenes.

    Args:
        point_cloud_range: truths and predictions with centers outside (x, y) are left out; None
        keeps all.
        distances: meters within which a prediction matches a truth.
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
        self.point_cloud_range, self.distances = point_cloud_range, tuple(distances)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep truth and predictions of the batch's frames."""
        for sample in data_samples:
            found, truth = sample['pred_instances_3d'], sample.get('eval_ann_info')
            if truth is None:
                raise ValueError(
                    'frames without annotations cannot be scored: is this a test split?'
                )
            row = [
                truth['gt_bboxes_3d'].tensor.cpu().numpy()[:, :2],
                np.asarray(truth['gt_labels_3d']),
                found['bboxes_3d'].tensor.cpu().numpy()[:, :2],
                found['labels_3d'].cpu().numpy(),
                found['scores_3d'].cpu().numpy(),
            ]
            mine, theirs = self._in_range(row[0]), self._in_range(row[2])
            self.results.append(
                [part[mine] for part in row[:2]] + [part[theirs] for part in row[2:]]
            )

    def _in_range(self, centers: np.ndarray) -> np.ndarray:
        if self.point_cloud_range is None:
            return np.ones(len(centers), bool)
        low, high = np.array(self.point_cloud_range[:2]), np.array(self.point_cloud_range[3:5])
        return ((centers >= low) & (centers < high)).all(1)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """mAP and <class>_AP; a class without truth has none and does not count."""
        metrics, table = {}, []
        for label, name in enumerate(self.dataset_meta['classes']):
            truth = [row[0][row[1] == label] for row in results]
            boxes = [row[2][row[3] == label] for row in results]
            scores = [row[4][row[3] == label] for row in results]
            values = [
                average_precision(truth, boxes, scores, distance) for distance in self.distances
            ]
            count = sum(map(len, truth))
            if count:
                metrics[f'{name}_AP'] = float(np.mean(values))
            table.append(
                f'{name:<24}{count:>7}'
                + ''.join(f'{value:>8.3f}' for value in [*values, np.mean(values)])
            )
        metrics['mAP'] = float(np.mean(list(metrics.values()))) if metrics else float('nan')
        head = (
            f'{"class":<24}{"boxes":>7}'
            + ''.join(f'{distance:>6g} m' for distance in self.distances)
            + '    mean'
        )
        MMLogger.get_current_instance().info(
            '\n'.join(['AP within', head, *table, f'mAP {metrics["mAP"]:.3f}'])
        )
        return metrics
