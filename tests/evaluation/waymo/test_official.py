"""AP and APH beside those of Waymo's own program, on simulated boxes.

`official.json` has four of 51 random datasets: few boxes, frames that have ground truths only,
boxes of micrometers; predictions in no-label zones in all of them. Its scores are those of the
detection operator of waymo-open-dataset-tf-2-12-0 1.6.7.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from stratified3d.evaluation.waymo.boxes import make_boxes
from stratified3d.evaluation.waymo.score import score_waymo

SETS = json.loads(Path(__file__).with_name('official.json').read_text())['sets']


def read_boxes(rows, **columns):
    """Rows of frame, seven numbers of the box and type; `columns` are the others'."""
    table = np.array(rows)
    frames = table[:, 0].astype(np.int64)
    others = {name: table[:, column] for name, column in columns.items()}
    return make_boxes(
        ['segment'],
        np.zeros(len(table), np.int64),
        frames,
        table[:, 1:8].astype(np.float32),
        table[:, 8].astype(np.int64),
        **others,
    )


@pytest.mark.parametrize('content', SETS, ids=lambda content: content['name'])
def test_scores_are_those_of_waymos_program(content):
    ground_truths = read_boxes(content['ground_truths'], difficulty=9, num_points=10)
    predictions = read_boxes(content['predictions'], scores=9, in_no_label_zone=10)
    assert len(predictions) > 100 and predictions.in_no_label_zone.any()
    ours = score_waymo(predictions, ground_truths)
    official = content['official']
    assert ours.keys() == official.keys() and len(official) == 32
    for name, scores in official.items():
        for kind in ('AP', 'APH'):
            assert ours[name][kind] == pytest.approx(scores[kind], abs=1e-6), (name, kind)
    assert sum(scores['AP'] > 0 for scores in official.values()) >= 10
