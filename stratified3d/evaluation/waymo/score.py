"""AP and APH of the Waymo Open Dataset's 3D detection benchmark, from boxes as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from stratified3d.evaluation.waymo.boxes import LEVEL_1, LEVEL_2, WaymoBoxes, number_frames
from stratified3d.evaluation.waymo.matching import (
    CUTOFFS,
    count_cutoffs,
    find_edges,
    match_at_cutoffs,
)

TYPES = ('VEHICLE', 'PEDESTRIAN', 'SIGN', 'CYCLIST')  # in the order of their numbers, from 1
RANGES = ('[0,30)', '[30,50)', '[50,inf)')  # meters from the vehicle
BREAKDOWNS = (*TYPES, *(f'{name}_{reach}' for name in TYPES for reach in RANGES))
LEVELS = (LEVEL_1, LEVEL_2)
_BORDERS = (30.0, 50.0)
_MAX_GAP = 0.05  # of recall, over which a curve is filled in
_UNIT = (
    2**30
)  # heading accuracies are summed as whole numbers of 1 / _UNIT: the order of the frames cannot matter
_FRAMES = 500  # matched at a time


@dataclass
class Counts:
    """What is counted of each breakdown at each cutoff; counts of different frames add up.

    true_positives, false_positives: [B, C] int64. heading: [B, C] int64, heading accuracies of the
    true positives in units of 2^-30. false_negatives: [2, B, C] int64, by level. truths: [2, B]
    int64, by level.
    """

    true_positives: np.ndarray
    false_positives: np.ndarray
    heading: np.ndarray
    false_negatives: np.ndarray
    truths: np.ndarray

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            *(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values()))
        )


def score_waymo(
    predictions: WaymoBoxes, truth: WaymoBoxes, progress: Callable[[Iterable], Iterable] = iter
) -> dict[str, dict[str, float]]:
    """Score a set of frames.

    Args:
        predictions, truth: see WaymoBoxes; the frames of both count.
        progress: wraps the loop, for a progress bar.
    Returns:
        {'VEHICLE_LEVEL_1': {'AP': 0 to 1, 'APH': 0 to 1}, ...}, see average_precisions.
    Raises:
        ValueError: boxes or scores that are not finite.
    """
    return average_precisions(count_boxes(predictions, truth, progress))


def count_boxes(
    predictions: WaymoBoxes, truth: WaymoBoxes, progress: Callable[[Iterable], Iterable] = iter
) -> Counts:
    """Match and count, see score_waymo; Counts of parts of the frames, in any order, add up to
    those of all."""
    predictions.check('predictions')
    truth.check('ground truths')
    truth = truth.take(truth.num_points > 0)
    (frame, true_frame), frames = number_frames(predictions, truth)
    sets = []
    for boxes, number in ((predictions, frame), (truth, true_frame)):
        order = np.argsort(number, kind='stable')
        sets.append((boxes, order, np.searchsorted(number[order], np.arange(frames + 1))))
    counts = _count_frames(
        predictions.take(slice(0)), truth.take(slice(0)), np.zeros(1, int), np.zeros(1, int)
    )
    for first in progress(range(0, frames, _FRAMES)):
        parts, bounds = [], []
        for boxes, order, starts in sets:
            starts = starts[first : first + _FRAMES + 1]
            parts.append(boxes.take(order[starts[0] : starts[-1]]))
            bounds.append(starts - starts[0])
        counts += _count_frames(*parts, *bounds)
    return counts


def _count_frames(
    predictions: WaymoBoxes, truth: WaymoBoxes, starts: np.ndarray, true_starts: np.ndarray
) -> Counts:
    """Counts of frames whose boxes are sorted by frame; starts: [frames + 1]."""
    reached = count_cutoffs(predictions.scores)
    edges = find_edges(
        predictions.boxes, predictions.types, starts, truth.boxes, truth.types, true_starts
    )
    difficulty = np.where(
        truth.difficulty > 0, truth.difficulty, np.where(truth.num_points > 5, LEVEL_1, LEVEL_2)
    )
    total = None
    for rows, true_rows in zip(_breakdowns(predictions), _breakdowns(truth)):
        same = rows[edges[0]] == true_rows[edges[1]]
        prediction, true, start, stop = match_at_cutoffs(*(part[same] for part in edges), reached).T
        heading = np.round(
            _UNIT * heading_accuracy(predictions.boxes[prediction, 6], truth.boxes[true, 6])
        )
        known, true_known = rows >= 0, true_rows >= 0
        open_zone = ~predictions.in_no_label_zone
        false = _spread(rows, 0, reached, known & open_zone) - _spread(
            rows[prediction], start, stop, open_zone[prediction]
        )
        counts = Counts(
            _spread(rows[prediction], start, stop),
            false,
            _spread(rows[prediction], start, stop, heading),
            np.stack(
                [
                    _spread(true_rows, 0, len(CUTOFFS), true_known & (difficulty <= level))
                    - _spread(true_rows[true], start, stop, difficulty[true] <= level)
                    for level in LEVELS
                ]
            ),
            np.stack(
                [
                    np.bincount(
                        true_rows[true_known & (difficulty <= level)], minlength=len(BREAKDOWNS)
                    )
                    for level in LEVELS
                ]
            ),
        )
        total = counts if total is None else total + counts
    return total


def _breakdowns(boxes: WaymoBoxes) -> tuple[np.ndarray, np.ndarray]:
    """[N] row of BREAKDOWNS by type, and by type and range; -1 where the type is unknown."""
    known = (boxes.types > 0) & (boxes.types <= len(TYPES))
    kind = np.where(known, boxes.types, 1).astype(np.int64) - 1
    reach = np.searchsorted(_BORDERS, np.sqrt((boxes.boxes[:, :3] ** 2).sum(1)), side='right')
    return np.where(known, kind, -1), np.where(known, len(TYPES) + len(RANGES) * kind + reach, -1)


def _spread(
    rows: np.ndarray,
    start: np.ndarray | int,
    stop: np.ndarray | int,
    amount: np.ndarray | None = None,
) -> np.ndarray:
    """Sum amounts, 1 by default, over rows and the cutoffs from start to stop: [B, C] int64."""
    width = len(CUTOFFS) + 1
    amount = np.ones(len(rows)) if amount is None else amount.astype(np.float64)
    change = sum(
        np.bincount(
            (rows * width + edge)[rows >= 0], sign * amount[rows >= 0], len(BREAKDOWNS) * width
        )
        for edge, sign in ((start, 1), (stop, -1))
    )
    return change.reshape(-1, width).cumsum(1)[:, :-1].astype(np.int64)


def heading_accuracy(heading: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """1 for equal headings (radians) to 0 for opposite ones."""
    gap = np.abs(heading - truth) % (2 * np.pi)
    return np.clip(1 - np.minimum(gap, 2 * np.pi - gap) / np.pi, 0, 1)


def average_precisions(counts: Counts) -> dict[str, dict[str, float]]:
    """AP and APH of every breakdown and level.

    Returns:
        {'VEHICLE_LEVEL_1': {'AP': 0 to 1, 'APH': 0 to 1}, 'VEHICLE_LEVEL_2': ...,
        'VEHICLE_[0,30)_LEVEL_1': ...} for the types VEHICLE, PEDESTRIAN, SIGN, CYCLIST and the
        ranges [0,30), [30,50), [50,inf); 0 without truths.
    """
    found, scores = counts.true_positives, {}
    made = np.maximum(found + counts.false_positives, 1)
    for row, name in enumerate(BREAKDOWNS):
        for level, missed in zip(LEVELS, counts.false_negatives):
            recall = found[row] / np.maximum(found + missed, 1)[row]
            values = (found[row], counts.heading[row] / _UNIT)
            scores[f'{name}_LEVEL_{level}'] = {
                key: area_under_curve(np.where(recall > 0, value / made[row], 1.0), recall)
                for key, value in zip(('AP', 'APH'), values)
            }
    return scores


def area_under_curve(precision: np.ndarray, recall: np.ndarray) -> float:
    """Area under a curve of precision over recall, [C] each, as the Waymo benchmark interpolates
    it.

    Of several precisions at one recall the highest counts, and every precision is at least that at
    any higher recall. A gap of recall over 0.05 is filled every 0.05, from above, with the
    precision at its upper end; between points the curve is straight. From the least recall down to
    0 it is level.
    """
    best = {0.0: 1.0}
    for p, r in zip(precision.tolist(), recall.tolist()):
        best[r] = max(p, best.get(r, 0.0))
    points, highest = [], 0.0
    for r in sorted(best, reverse=True):
        while points and points[-1][0] - r > _MAX_GAP + 1e-6:
            points.append((points[-1][0] - _MAX_GAP, highest))
        highest = max(highest, best[r])
        points.append((r, highest))
    if len(points) < 2:
        return 0.0
    r, p = np.array(points).T
    p[-1] = p[-2]
    return float(((r[:-1] - r[1:]) * (p[:-1] + p[1:])).sum() / 2)


def mean_scores(scores: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """{'LEVEL_1': {'AP': , 'APH': }, 'LEVEL_2': ...}: the benchmark's mean of vehicles, pedestrians
    and cyclists."""
    return {
        f'LEVEL_{level}': {
            key: float(
                np.mean([scores[f'{name}_LEVEL_{level}'][key] for name in TYPES if name != 'SIGN'])
            )
            for key in ('AP', 'APH')
        }
        for level in LEVELS
    }


def format_table(scores: dict[str, dict[str, float]], truths: np.ndarray) -> str:
    """Scores as text: a line for each breakdown that has a truth, and the means; truths: [2, B],
    see Counts."""
    lines = [
        f'{"":<20}{"LEVEL_1":>24}{"LEVEL_2":>27}',
        f'{"":<20}{"truths":>8}{"AP":>8}{"APH":>8}{"truths":>11}{"AP":>8}{"APH":>8}',
    ]
    for row, name in sorted(
        enumerate(BREAKDOWNS), key=lambda item: item[1].split('_')[0] != item[1]
    ):
        if truths[1, row]:
            lines.append(
                _line(
                    name,
                    [
                        (truths[i, row], scores[f'{name}_LEVEL_{level}'])
                        for i, level in enumerate(LEVELS)
                    ],
                )
            )
    means = mean_scores(scores)
    return '\n'.join(
        [*lines, _line('mean without SIGN', [('', means[f'LEVEL_{level}']) for level in LEVELS])]
    )


def _line(name: str, cells: list[tuple[object, dict[str, float]]]) -> str:
    return f'{name:<20}' + '   '.join(
        f'{count:>8}{score["AP"]:>8.4f}{score["APH"]:>8.4f}' for count, score in cells
    )
