"""Orientation errors that do not tell the front of a box from its back."""

from __future__ import annotations

import copy
from pathlib import Path

from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.utils import center_distance
from nuscenes.eval.detection.algo import accumulate, calc_tp

from stratified3d.evaluation.submission import load_submission

# the one class whose orientation error the devkit takes modulo pi
_MODULO_PI = 'barrier'


def axis_errors(data_root: str | Path, version: str, results: str | Path) -> dict[str, float]:
    """Return the devkit's orientation error of each class, but modulo pi: radians, 0 to pi / 2.

    Beside the devkit's own error it tells boxes that face backwards from those that lie askew.

    Args:
        data_root: of the dataset in nuScenes format.
        version: v1.0-mini or v1.0-trainval, whose validation split was tested.
        results: results_nusc.json of `NuScenesDevkitMetric`, with a box at least.
    Returns:
        {class: error}; 1 where less than a tenth of the objects is found, as in the devkit.
    """
    evaluation = load_submission(data_root, version, results)
    config = evaluation.cfg
    errors = {}
    for name in config.class_names:
        matches = accumulate(
            _only(evaluation.gt_boxes, name),
            _only(evaluation.pred_boxes, name),
            _MODULO_PI,
            center_distance,
            config.dist_th_tp,
        )
        errors[name] = calc_tp(matches, config.min_recall, 'orient_err')
    return errors


def _only(boxes: EvalBoxes, name: str) -> EvalBoxes:
    """The boxes of a class, under the name of the class whose error is modulo pi."""
    chosen = EvalBoxes()
    for token in boxes.sample_tokens:
        of_class = [copy.copy(box) for box in boxes[token] if box.detection_name == name]
        for box in of_class:
            box.detection_name = _MODULO_PI
        chosen.add_boxes(token, of_class)
    return chosen
