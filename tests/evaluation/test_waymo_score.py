"""The Waymo score against hand-computed cases and against its definition, written out box by box."""
import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from stratified3d.evaluation.random_boxes import random_frames
from stratified3d.evaluation.waymo_boxes import make_boxes
from stratified3d.evaluation.waymo_score import (
    BREAKDOWNS,
    area_under_curve,
    average_precisions,
    count_boxes,
    format_table,
    heading_accuracy,
    mean_scores,
    score_waymo,
)

CUTOFFS = [np.float32(0.01 * i) for i in range(100)] + [np.float32(1)]
LIMITS = {1: 0.7, 2: 0.5, 3: 0.5, 4: 0.5}
NAMES = {1: 'VEHICLE', 2: 'PEDESTRIAN', 3: 'SIGN', 4: 'CYCLIST'}


def outline(box):
    rectangle = shapely.box(-box[3] / 2, -box[4] / 2, box[3] / 2, box[4] / 2)
    rectangle = shapely.affinity.rotate(rectangle, box[6], origin=(0, 0), use_radians=True)
    return shapely.affinity.translate(rectangle, box[0], box[1])


def iou_3d(a, b):
    if min(*a[3:6], *b[3:6]) <= 1e-2:
        return 0.0
    height = min(a[2] + a[5] / 2, b[2] + b[5] / 2) - max(a[2] - a[5] / 2, b[2] - b[5] / 2)
    shared = max(height, 0) * outline(a).intersection(outline(b)).area
    return shared / (a[3] * a[4] * a[5] + b[3] * b[4] * b[5] - shared)


def definition(predictions, truth):
    """The score as the benchmark defines it: every frame, breakdown and cutoff for itself, the whole matrix each."""
    def rows(boxes):
        return [{field.name: getattr(boxes, field.name)[i] for field in fields(boxes)[1:]}
                | dict(segment=boxes.contexts[boxes.context[i]]) for i in range(len(boxes))]

    found, true = rows(predictions), [row for row in rows(truth) if row['num_points'] > 0]
    for row in true:
        row['difficulty'] = row['difficulty'] or (2 if row['num_points'] <= 5 else 1)
    frames = {(row['segment'], row['timestamp']) for row in (*found, *true)}
    shards = [(kind, low, high) for kind in NAMES for low, high in ((0, 1e9), (0, 30), (30, 50), (50, 1e9))]
    tallies = {shard: np.zeros((101, 5)) for shard in shards}  # TP, FP, heading, FN of level 1 and 2
    for frame, (kind, low, high) in itertools.product(frames, shards):
        here, there = ([row for row in part if (row['segment'], row['timestamp']) == frame and row['types'] == kind
                        and low <= np.linalg.norm(row['boxes'][:3]) < high] for part in (found, true))
        ious = np.array([[iou_3d(a['boxes'], b['boxes']) for b in there] for a in here]).reshape(len(here), len(there))
        weights = np.where(ious.astype(np.float32) >= np.float32(LIMITS[kind]), np.round(ious * 1e6), 0)
        for tally, cutoff in zip(tallies[kind, low, high], CUTOFFS):
            active = [i for i, row in enumerate(here) if row['scores'] >= cutoff]
            pairs = [(active[i], j) for i, j in zip(*linear_sum_assignment(weights[active], maximize=True))
                     if weights[active[i], j] > 0]
            tally[0] += len(pairs)
            tally[1] += sum(not here[i]['in_no_label_zone'] for i in set(active) - {i for i, _ in pairs})
            for i, j in pairs:
                gap = abs(here[i]['boxes'][6] - there[j]['boxes'][6]) % (2 * np.pi)
                tally[2] += 1 - min(gap, 2 * np.pi - gap) / np.pi
            for level in (1, 2):
                tally[2 + level] += sum(row['difficulty'] <= level for j, row in enumerate(there)
                                        if j not in {j for _, j in pairs})
    scores = {}
    for (kind, low, high), tally in tallies.items():
        part = {(0, 1e9): '', (0, 30): '_[0,30)', (30, 50): '_[30,50)', (50, 1e9): '_[50,inf)'}[low, high]
        for level in (1, 2):
            curves = {'AP': {}, 'APH': {}}
            for tp, fp, heading, *missed in tally:
                recall = tp / (tp + missed[level - 1]) if tp else 0.0
                for key, value in (('AP', tp), ('APH', heading)):
                    precision = value / (tp + fp) if recall else 1.0
                    curves[key][recall] = max(precision, curves[key].get(recall, 0))
            scores[f'{NAMES[kind]}{part}_LEVEL_{level}'] = {key: area(curve) for key, curve in curves.items()}
    return scores


def area(curve):
    curve = curve | {0.0: 1.0}
    recalls = sorted(curve, reverse=True)
    points, best = [], 0
    for recall in recalls:
        while points and points[-1][0] - recall > 0.05 + 1e-6:
            points.append((points[-1][0] - 0.05, best))
        best = max(best, curve[recall])
        points.append((recall, best))
    if len(points) == 1:
        return 0
    points[-1] = (0.0, points[-2][1])
    return sum((r - s) * (p + q) / 2 for (r, p), (s, q) in zip(points, points[1:]))


def assert_equal(scores, expected):
    assert scores.keys() == expected.keys()
    for name, values in expected.items():
        assert scores[name] == pytest.approx(values, abs=1e-7), name


@pytest.mark.parametrize('seed, predictions, truths, reach', [
    (0, 30, 12, 75), (1, 40, 8, 30), (2, 60, 30, 6), (3, 25, 40, 4), (4, 0, 5, 50), (5, 5, 0, 50), (6, 50, 3, 2)])
def test_equals_the_definition(seed, predictions, truths, reach):
    """Sparse, crowded (boxes overlap many truths), and one-sided frames."""
    parts = random_frames(3, predictions, truths, seed, reach)
    assert_equal(score_waymo(*parts), definition(*parts))
