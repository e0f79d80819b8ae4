"""Matching by center distance, AP against the nuScenes devkit's own accumulation, and the metric
built on it."""

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.utils import center_distance
from nuscenes.eval.detection.algo import accumulate, calc_ap
from nuscenes.eval.detection.data_classes import DetectionBox

from stratified3d.evaluation.center_distance import (
    CenterDistanceMetric,
    average_precision,
    count_matches,
    match_centers,
)


def test_every_ground_truth_is_matched_once_and_to_the_nearest():
    ground_truth = np.array([[0.0, 0], [1.5, 0], [50, 0]])
    predicted = np.array([[1.4, 0], [1.3, 0], [0.1, 0], [50, 2.0]])
    # 2 m itself is not a match
    assert match_centers(ground_truth, predicted).tolist() == [1, 0, -1, -1]


def test_matching_without_ground_truth_or_prediction():
    assert match_centers(np.zeros((0, 2)), np.zeros((2, 2))).tolist() == [-1, -1]
    assert match_centers(np.zeros((2, 2)), np.zeros((0, 2))).tolist() == []


def test_class_counts_as_many_predictions_as_it_has_ground_truths():
    ground_truth = np.array([[0.0, 0], [10, 0], [20, 0]])
    predicted = np.array([[10.5, 0], [99, 9], [0.5, 0], [20, 0]])
    scores = np.array([0.5, 0.9, 0.4, 0.8])
    found = count_matches(
        ground_truth, ['car', 'car', 'bus'], predicted, scores, ['car', 'car', 'car', 'truck']
    )
    # the best two cars are the false one and the one at x = 10.5
    assert found == {'bus': (0, 1), 'car': (1, 2)}


def random_centers(seed, frames=6):
    """Ground truth, predictions near some of it, scores in no order."""
    rng = np.random.default_rng(seed)
    ground_truth = [rng.uniform(-20, 20, (rng.integers(0, 8), 2)) for _ in range(frames)]
    found = [
        np.concatenate([t + rng.normal(0, 0.8, t.shape), rng.uniform(-20, 20, (5, 2))])
        for t in ground_truth
    ]
    return ground_truth, found, [rng.random(len(f)) for f in found]


def devkit_ap(ground_truth, found, scores, distance):
    sets = []
    for centers, confidence in ((ground_truth, None), (found, scores)):
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
def test_average_precision_equals_the_devkit(seed, distance):
    ground_truth, found, scores = random_centers(seed)
    assert average_precision(ground_truth, found, scores, distance) == pytest.approx(
        devkit_ap(ground_truth, found, scores, distance), abs=1e-9
    )


def test_average_precision_of_perfect_and_of_no_predictions():
    ground_truth, _, _ = random_centers(0)
    ones = [np.ones(len(t)) for t in ground_truth]
    assert average_precision(ground_truth, ground_truth, ones, 0.5) == pytest.approx(1)
    nothing = [np.zeros((0, 2))] * len(ground_truth)
    none = [np.zeros(0)] * len(ground_truth)
    assert average_precision(ground_truth, nothing, none, 2.0) == 0
    assert np.isnan(average_precision(nothing, ground_truth, ones, 2.0))


def sample(ground_truth, labels, boxes, names, scores):
    def make_boxes(centers):
        return LiDARInstance3DBoxes(
            torch.tensor([[x, y, 0, 4, 2, 1, 0] for x, y in centers]).reshape(-1, 7).float()
        )

    return dict(
        eval_ann_info=dict(
            gt_bboxes_3d=make_boxes(ground_truth), gt_labels_3d=np.array(labels, np.int64)
        ),
        pred_instances_3d=dict(
            bboxes_3d=make_boxes(boxes),
            labels_3d=torch.tensor(names, dtype=torch.long),
            scores_3d=torch.tensor(scores),
        ),
    )


def test_metric_leaves_out_boxes_out_of_range_and_classes_without_boxes():
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
    with pytest.raises(ValueError, match='without annotations'):
        metric.process({}, [dict(pred_instances_3d={})])
