"""AP against the nuScenes devkit's own accumulation, and the metric built on it."""

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.utils import center_distance
from nuscenes.eval.detection.algo import accumulate, calc_ap
from nuscenes.eval.detection.data_classes import DetectionBox

from stratified3d.evaluation.average_precision import average_precision
from stratified3d.evaluation.center_distance import CenterDistanceMetric


def clouds(seed, frames=6):
    """Truth, predictions near some of it, scores of no order."""
    rng = np.random.default_rng(seed)
    truth = [rng.uniform(-20, 20, (rng.integers(0, 8), 2)) for _ in range(frames)]
    found = [
        np.concatenate([t + rng.normal(0, 0.8, t.shape), rng.uniform(-20, 20, (5, 2))])
        for t in truth
    ]
    return truth, found, [rng.random(len(f)) for f in found]


def devkit_ap(truth, found, scores, distance):
    sets = []
    for centers, confidence in ((truth, None), (found, scores)):
        boxes = EvalBoxes()
        for i, frame in enumerate(centers):
            boxes.add_boxes(
                str(i),
                [
                    DetectionBox(
                        sample_token=str(i),
                        translation=(*center, 0.0),
                        size=(1, 1, 1),
                        rotation=(1, 0, 0, 0),
                        velocity=(0, 0),
                        ego_translation=(0, 0, 0),
                        detection_name='car',
                        attribute_name='vehicle.parked',
                        detection_score=-1.0 if confidence is None else float(confidence[i][j]),
                    )
                    for j, center in enumerate(frame)
                ],
            )
        sets.append(boxes)
    return calc_ap(accumulate(*sets, 'car', center_distance, distance), 0.1, 0.1)


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('distance', [0.5, 2.0])
def test_equals_the_devkit(seed, distance):
    truth, found, scores = clouds(seed)
    assert average_precision(truth, found, scores, distance) == pytest.approx(
        devkit_ap(truth, found, scores, distance), abs=1e-9
    )


def test_the_ends():
    truth, _, _ = clouds(0)
    ones = [np.ones(len(t)) for t in truth]
    assert average_precision(truth, truth, ones, 0.5) == pytest.approx(1)
    nothing = [np.zeros((0, 2))] * len(truth)
    none = [np.zeros(0)] * len(truth)
    assert average_precision(truth, nothing, none, 2.0) == 0
    assert np.isnan(average_precision(nothing, truth, ones, 2.0))


def sample(truth, labels, boxes, names, scores):
    def whole(centers):
        return LiDARInstance3DBoxes(
            torch.tensor([[x, y, 0, 4, 2, 1, 0] for x, y in centers]).reshape(-1, 7).float()
        )

    return dict(
        eval_ann_info=dict(gt_bboxes_3d=whole(truth), gt_labels_3d=np.array(labels, np.int64)),
        pred_instances_3d=dict(
            bboxes_3d=whole(boxes),
            labels_3d=torch.tensor(names, dtype=torch.long),
            scores_3d=torch.tensor(scores),
        ),
    )


def test_metric():
    metric = CenterDistanceMetric(point_cloud_range=(-10, -10, -3, 10, 10, 3))
    metric.dataset_meta = dict(classes=['car', 'bus', 'tram'])
    metric.process(
        {},
        [
            sample(
                [(1, 1), (50, 0), (5, 5)],
                [0, 0, 1],
                [(1, 1), (60, 0), (5, 6.5)],
                [0, 0, 1],
                [0.9, 0.99, 0.5],
            ),
            sample([], [], [], [], []),
        ],
    )
    scores = metric.evaluate(2)
    # out of range nothing counts; the bus is 1.5 m off: found within 2 and 4 m; there is no tram to
    # find
    assert scores == {
        'center/car_AP': pytest.approx(1),
        'center/bus_AP': pytest.approx(0.5),
        'center/mAP': pytest.approx(0.75),
    }
    with pytest.raises(ValueError, match='frames without annotations cannot be scored'):
        metric.process({}, [dict(pred_instances_3d={})])
