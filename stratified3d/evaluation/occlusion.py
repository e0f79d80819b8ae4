"""Average precision of the objects that are mostly hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.utils import center_distance
from nuscenes.eval.detection.algo import accumulate, calc_ap

from stratified3d.evaluation.center_distance import match_centers
from stratified3d.evaluation.submission import load_submission

# nuScenes' levels of visibility: 0 to 40 and 40 to 60 percent
HIDDEN_LEVELS = ('1', '2')


def occluded_ap(data_root: str | Path, version: str, results: str | Path) -> dict[str, float]:
    """Return nuScenes' AP of the objects of which at most 60 percent are visible, by class.

    An object that is better visible is neither asked for nor is its detection wrong, as KITTI does
    with other levels of difficulty (Geiger et al. 2012, section 3.4).

    Args:
        data_root, version, results: as in `load_submission`.
    Returns:
        {class: mean over the distances of 0.5, 1, 2 and 4 m}; classes without such an object are
        left out.
    """
    evaluation = load_submission(data_root, version, results)
    hidden = _hidden_places(evaluation)
    config = evaluation.cfg
    scores = {}
    for name in config.class_names:
        values = []
        for distance in config.dist_ths:
            expected, found = EvalBoxes(), EvalBoxes()
            for token in evaluation.gt_boxes.sample_tokens:
                boxes = _of_class(evaluation.gt_boxes, token, name)
                asked = np.array([(token, tuple(box.translation)) in hidden for box in boxes], bool)
                detections = _of_class(evaluation.pred_boxes, token, name)
                detections.sort(key=lambda box: -box.detection_score)
                matched = match_centers(_centers(boxes), _centers(detections), distance)
                expected.add_boxes(token, [box for box, ask in zip(boxes, asked) if ask])
                counts = [match < 0 or asked[match] for match in matched]
                found.add_boxes(token, [box for box, ok in zip(detections, counts) if ok])
            if expected.all:
                curve = accumulate(expected, found, name, center_distance, distance)
                values.append(calc_ap(curve, config.min_recall, config.min_precision))
        if values:
            scores[name] = float(np.mean(values))
    return scores


def _hidden_places(evaluation) -> set[tuple[str, tuple[float, ...]]]:
    """(sample token, center in the global frame) of the objects that are mostly hidden."""
    nusc = evaluation.nusc
    return {
        (annotation['sample_token'], tuple(annotation['translation']))
        for annotation in nusc.sample_annotation
        if annotation['visibility_token'] in HIDDEN_LEVELS
    }


def _of_class(boxes: EvalBoxes, token: str, name: str) -> list:
    return [box for box in boxes[token] if box.detection_name == name]


def _centers(boxes: list) -> np.ndarray:
    return np.array([box.translation[:2] for box in boxes]).reshape(-1, 2)
