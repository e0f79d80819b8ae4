"""The Waymo score against hand-computed cases and against its definition, written out box by
box."""

import itertools
from dataclasses import astuple, fields, replace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from stratified3d.evaluation.waymo.boxes import make_boxes
from stratified3d.evaluation.waymo.matching import count_cutoffs, match_at_cutoffs
from stratified3d.evaluation.waymo.score import (
    BREAKDOWNS,
    area_under_curve,
    average_precisions,
    count_boxes,
    format_table,
    heading_accuracy,
    mean_scores,
    score_waymo,
)
from stratified3d.evaluation.waymo.synthetic_boxes import synthetic_frames

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


def definition(predictions, ground_truths):
    """The score as the benchmark defines it: every frame, breakdown and cutoff for itself, the
    whole matrix each."""

    def rows(boxes):
        return [
            {field.name: getattr(boxes, field.name)[i] for field in fields(boxes)[1:]}
            | dict(segment=boxes.contexts[boxes.context[i]])
            for i in range(len(boxes))
        ]

    found, true = rows(predictions), [row for row in rows(ground_truths) if row['num_points'] > 0]
    for row in true:
        row['difficulty'] = row['difficulty'] or (2 if row['num_points'] <= 5 else 1)
    frames = {(row['segment'], row['timestamp']) for row in (*found, *true)}
    shards = [
        (kind, low, high)
        for kind in NAMES
        for low, high in ((0, 1e9), (0, 30), (30, 50), (50, 1e9))
    ]
    tallies = {
        shard: np.zeros((101, 5)) for shard in shards
    }  # TP, FP, heading, FN of level 1 and 2
    for frame, (kind, low, high) in itertools.product(frames, shards):
        here, there = (
            [
                row
                for row in part
                if (row['segment'], row['timestamp']) == frame
                and row['types'] == kind
                and low <= np.linalg.norm(row['boxes'][:3]) < high
            ]
            for part in (found, true)
        )
        ious = np.array([[iou_3d(a['boxes'], b['boxes']) for b in there] for a in here]).reshape(
            len(here), len(there)
        )
        weights = np.where(
            ious.astype(np.float32) >= np.float32(LIMITS[kind]), np.round(ious * 1e6), 0
        )
        for tally, cutoff in zip(tallies[kind, low, high], CUTOFFS):
            active = [i for i, row in enumerate(here) if row['scores'] >= cutoff]
            pairs = [
                (active[i], j)
                for i, j in zip(*linear_sum_assignment(weights[active], maximize=True))
                if weights[active[i], j] > 0
            ]
            tally[0] += len(pairs)
            tally[1] += sum(
                not here[i]['in_no_label_zone'] for i in set(active) - {i for i, _ in pairs}
            )
            for i, j in pairs:
                gap = abs(here[i]['boxes'][6] - there[j]['boxes'][6]) % (2 * np.pi)
                tally[2] += 1 - min(gap, 2 * np.pi - gap) / np.pi
            for level in (1, 2):
                tally[2 + level] += sum(
                    row['difficulty'] <= level
                    for j, row in enumerate(there)
                    if j not in {j for _, j in pairs}
                )
    scores = {}
    for (kind, low, high), tally in tallies.items():
        part = {(0, 1e9): '', (0, 30): '_[0,30)', (30, 50): '_[30,50)', (50, 1e9): '_[50,inf)'}[
            low, high
        ]
        for level in (1, 2):
            curves = {'AP': {}, 'APH': {}}
            for tp, fp, heading, *missed in tally:
                recall = tp / (tp + missed[level - 1]) if tp else 0.0
                for key, value in (('AP', tp), ('APH', heading)):
                    precision = value / (tp + fp) if recall else 1.0
                    curves[key][recall] = max(precision, curves[key].get(recall, 0))
            scores[f'{NAMES[kind]}{part}_LEVEL_{level}'] = {
                key: area(curve) for key, curve in curves.items()
            }
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


@pytest.mark.parametrize(
    'seed, predictions, ground_truths, reach',
    [
        (0, 30, 12, 75),
        (1, 40, 8, 30),
        pytest.param(2, 40, 20, 6, marks=pytest.mark.slow),
        pytest.param(3, 40, 50, 0.3, marks=pytest.mark.slow),
        (4, 0, 5, 50),
        (5, 5, 0, 50),
        (6, 50, 3, 2),
    ],
)
def test_score_equals_the_definition(seed, predictions, ground_truths, reach):
    """Sparse, crowded (a box may match several ground truths: 3), and one-sided frames."""
    parts = synthetic_frames(3, predictions, ground_truths, seed, reach)
    assert_equal(score_waymo(*parts), definition(*parts))


def place(rows, **columns):
    """Boxes of 4 x 2 x 1.5 m, one per row (x, y, type, score or points[, heading])."""
    boxes = [
        [x, y, 0, 4, 2, 1.5, *rest] if rest else [x, y, 0, 4, 2, 1.5, 0]
        for x, y, _, _, *rest in rows
    ]
    return make_boxes(
        ['segment'], [0] * len(rows), [1] * len(rows), boxes, [row[2] for row in rows], **columns
    )


def scored(found, true, **columns):
    return score_waymo(
        place(found, scores=[row[3] for row in found], **columns),
        place(true, num_points=[row[3] for row in true]),
    )


def test_score_where_one_of_two_is_found():
    scores = scored([(10, 0, 1, 0.9), (20, 9, 1, 0.5)], [(10, 0, 1, 99), (-10, 0, 1, 99)])
    # recall 0.5 at precision 1 (cutoffs over 0.5), then at 1/2: the curve is level at 1 from 0 to
    # 0.5
    assert scores['VEHICLE_LEVEL_1'] == {'AP': pytest.approx(0.5), 'APH': pytest.approx(0.5)}
    assert scores['VEHICLE_[0,30)_LEVEL_2'] == scores['VEHICLE_LEVEL_1']
    assert scores['VEHICLE_[30,50)_LEVEL_1'] == {'AP': 0, 'APH': 0} == scores['CYCLIST_LEVEL_2']
    assert mean_scores(scores)['LEVEL_1']['AP'] == pytest.approx(0.5 / 3)
    assert len(scores) == 32 and set(scores) == {
        f'{name}_LEVEL_{i}' for name in BREAKDOWNS for i in (1, 2)
    }


def test_levels_share_true_and_false_positives():
    # the near ground truth has 5 points: LEVEL_2; found, it is a true positive of LEVEL_1 too;
    # missed, it is not a false negative there
    found, true = [(10, 0, 2, 0.9)], [(10, 0, 2, 5), (0, 10, 2, 6)]
    scores = scored(found, true)
    assert (
        scores['PEDESTRIAN_LEVEL_1']
        == scores['PEDESTRIAN_LEVEL_2']
        == {'AP': pytest.approx(0.5), 'APH': 0.5}
    )
    scores = scored(found, [(10, 0, 2, 6), (0, 10, 2, 5), (5, 10, 2, 0)])
    assert scores['PEDESTRIAN_LEVEL_1']['AP'] == pytest.approx(1)
    assert scores['PEDESTRIAN_LEVEL_2']['AP'] == pytest.approx(0.5)
    given_by_hand = replace(
        place(true, num_points=[row[3] for row in true]), difficulty=np.array([1, 2], np.uint8)
    )
    scores = score_waymo(place(found, scores=[0.9]), given_by_hand)
    assert [scores[f'PEDESTRIAN_LEVEL_{i}']['AP'] for i in (1, 2)] == [
        pytest.approx(1),
        pytest.approx(0.5),
    ]


def test_true_positives_of_aph_are_weighted_by_heading():
    for angle, accuracy in ((np.pi / 2, 0.5), (np.pi, 0), (-np.pi / 4, 0.75), (4 * np.pi, 1)):
        square = [[0, 0, 0, 2, 2, 2, angle]], [[0, 0, 0, 2, 2, 2, 0]]
        found, true = (make_boxes(['a'], [0], [0], boxes, [4], num_points=9) for boxes in square)
        scores = score_waymo(found, true)['CYCLIST_LEVEL_1']
        if angle == -np.pi / 4:  # IoU 0.707
            assert scores['AP'] == pytest.approx(1)
        assert scores['APH'] == pytest.approx(accuracy, abs=1e-8)
    assert heading_accuracy(np.array([np.pi - 0.1]), np.array([0.1 - np.pi]))[0] == pytest.approx(
        1 - 0.2 / np.pi
    )


def test_iou_equal_to_the_threshold_matches():
    for kind, overlap in ((1, 0.7), (2, 0.5), (3, 0.5), (4, 0.5)):
        for length, hit in ((overlap, 1), (overlap - 1e-6, 0)):
            found, true = (
                make_boxes(['a'], [0], [0], [[1, 2, 3, side, 2, 2, 0.3]], [kind], num_points=9)
                for side in (10 * length, 10)
            )
            assert score_waymo(found, true)[f'{BREAKDOWNS[kind - 1]}_LEVEL_1'][
                'AP'
            ] == pytest.approx(hit)


def test_boxes_do_not_match_across_a_border_of_range():
    scores = scored([(30.01, 0, 1, 0.9)], [(29.99, 0, 1, 50)])
    assert scores['VEHICLE_LEVEL_1']['AP'] == pytest.approx(1)
    assert scores['VEHICLE_[0,30)_LEVEL_1']['AP'] == scores['VEHICLE_[30,50)_LEVEL_1']['AP'] == 0


def test_false_positives_in_no_label_zones_do_not_count():
    found, true = [(10, 0, 1, 0.5), (20, 0, 1, 0.9)], [(10, 0, 1, 50)]
    assert scored(found, true)['VEHICLE_LEVEL_1']['AP'] == pytest.approx(0.5)
    assert scored(found, true, in_no_label_zone=[False, True])['VEHICLE_LEVEL_1'][
        'AP'
    ] == pytest.approx(1)


def test_matching_maximizes_the_sum_of_weights():
    # the first prediction fits both ground truths and the second only the left one: both are found
    found = [(10.2, 0, 2, 0.9), (9.2, 0, 2, 0.8)]
    true = [(10, 0, 2, 50), (11, 0, 2, 50)]
    assert scored(found, true)['PEDESTRIAN_LEVEL_1']['AP'] == pytest.approx(1)


def test_small_and_huge_boxes_overlap_nothing():
    for side in (1e-2, 1e6):
        both = make_boxes(['a'], [0], [0], [[0, 0, 0, side, 2, 2, 0]], [1], num_points=9)
        assert score_waymo(both, both)['VEHICLE_LEVEL_1']['AP'] == 0


def test_flipped_box_is_found_with_heading_accuracy_zero():
    """The official program misses a box that coincides with its ground truth except for half a
    turn; this one must not."""
    scores = scored([(10, 0, 1, 0.9, np.pi)], [(10, 0, 1, 50)])
    assert scores['VEHICLE_LEVEL_1'] == {'AP': pytest.approx(1), 'APH': pytest.approx(0, abs=1e-9)}


def test_area_under_curve_computed_by_hand():
    def under(*points):
        return area_under_curve(np.array([p for p, _ in points]), np.array([r for _, r in points]))

    assert under((1.0, 0.0)) == 0 == area_under_curve(np.zeros(0), np.zeros(0))
    assert under((0.8, 0.5)) == pytest.approx(0.4)  # level from 0 to 0.5
    assert under((0.5, 0.04), (0.2, 0.08)) == pytest.approx(
        0.5 * 0.04 + 0.35 * 0.04
    )  # straight over a small gap
    # over a gap of 0.12 the upper precision holds down to the second filled point, 0.02 above the
    # lower recall
    assert under((1.0, 0.02), (0.5, 0.14)) == pytest.approx(0.02 + 0.75 * 0.02 + 0.5 * 0.1)
    assert under((0.2, 0.3), (0.6, 0.3), (0.9, 0.3)) == pytest.approx(0.27)
    assert under((0.3, 0.1), (0.9, 0.2)) == pytest.approx(
        0.18
    )  # precision never falls with lower recall


def test_counts_do_not_depend_on_the_order_or_the_sharding_of_frames():
    found, true = synthetic_frames(9, 40, 15, seed=3, reach=20)
    whole = count_boxes(found, true)
    rng = np.random.default_rng(0)
    for _ in range(3):
        moved = []
        for boxes in (found, true):  # frames in another order, boxes of a frame in theirs
            names = [
                f'{i}' for i in rng.permutation(len(boxes.contexts) + 3)
            ]  # segments sort otherwise too
            frames = rng.permutation(9)
            rows = np.concatenate([np.flatnonzero(boxes.timestamp == 100_000 * i) for i in frames])
            moved.append(replace(boxes.take(rows), contexts=[f'{boxes.contexts[0]}', *names]))
        for part, other in zip(astuple(count_boxes(*moved)), astuple(whole)):
            np.testing.assert_array_equal(part, other)
    parts = [
        count_boxes(*(boxes.take(boxes.timestamp // 100_000 % 3 == i) for boxes in (found, true)))
        for i in (2, 0, 1)
    ]
    summed = parts[0] + parts[1] + parts[2]
    assert average_precisions(summed) == average_precisions(whole)
    np.testing.assert_array_equal(summed.heading, whole.heading)
    assert 'VEHICLE_[0,30)' in format_table(average_precisions(whole), whole.ground_truths)


def test_frames_are_told_apart_by_segment_time_and_camera():
    box = dict(boxes=[[0, 0, 0, 4, 2, 1, 0]], types=[1], num_points=9)
    true = make_boxes(['a'], [0], [7], **box)
    for contexts, time, camera, hit in (
        (['a'], 7, 0, 1),
        (['b'], 7, 0, 0),
        (['a'], 8, 0, 0),
        (['a'], 7, 1, 0),
    ):
        found = make_boxes(contexts, [0], [time], camera=[camera], **box)
        assert score_waymo(found, true)['VEHICLE_LEVEL_1']['AP'] == pytest.approx(hit)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5), st.integers(1, 9)), max_size=25),
    st.lists(st.integers(0, 101), min_size=8, max_size=8),
)
def test_matching_has_the_maximal_weight_at_every_cutoff(edges, reached):
    """Against scipy on the whole matrix; weights tie often, so sums are compared."""
    weights = np.zeros((8, 6))
    for j, k, weight in edges:
        weights[j, k] = weight
    j, k = np.nonzero(weights)
    reached = np.array(reached)
    matches = match_at_cutoffs(j, k, weights[j, k].astype(np.int64), reached)
    for cutoff in {0, 100, *reached, *(reached - 1).clip(0)}:
        now = matches[(matches[:, 2] <= cutoff) & (cutoff < matches[:, 3])]
        assert len(set(now[:, 0])) == len(set(now[:, 1])) == len(now)
        assert (reached[now[:, 0]] > cutoff).all()
        active = weights[reached > cutoff]
        best = active[linear_sum_assignment(active, maximize=True)].sum()
        assert weights[now[:, 0], now[:, 1]].sum() == best


def test_scores_and_cutoffs_are_compared_as_float32():
    scores = np.array([0, 0.01, 0.07, 0.29, 0.57, 0.99, 1, -0.1, 2])
    assert count_cutoffs(scores).tolist() == [1, 2, 8, 30, 58, 100, 101, 0, 101]


def test_box_with_a_number_that_is_not_finite_is_named():
    found, true = synthetic_frames(2, 3, 3, seed=0)
    found.boxes[4, 6] = np.nan
    with pytest.raises(
        ValueError,
        match="predictions: object 4, .*'segment-0' at 100000, .*coordinate",
    ):
        score_waymo(found, true)
    with pytest.raises(ValueError, match='ground truths: object 0, .*score'):
        score_waymo(true, replace(true, scores=np.full(6, np.inf)))
