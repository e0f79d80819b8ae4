"""AP and APH of the Waymo Open Dataset's 3D detection benchmark, from boxes as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

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
# heading accuracies are summed as integers, in units of 1 / _UNIT, so that the order of the frames
# does not matter
_UNIT = 2**30
_FRAMES = 500  # matched at a time


@dataclass
class Counts:
    """Counts of each breakdown (B) at each cutoff (C); counts of different frames add up.

    Attributes:
        true_positives, false_positives: [B, C] int64.
        heading: [B, C] int64, heading accuracies of the true positives in units of 2^-30.
        false_negatives: [2, B, C] int64, by level.
        ground_truths: [2, B] int64, by level.
    """

    true_positives: np.ndarray
    false_positives: np.ndarray
    heading: np.ndarray
    false_negatives: np.ndarray
    ground_truths: np.ndarray

    @classmethod
    def zeros(cls) -> Counts:
        """Counts of no frame."""
        shape = (len(BREAKDOWNS), len(CUTOFFS))
        levels = len(LEVELS)
        return cls(
            true_positives=np.zeros(shape, np.int64),
            false_positives=np.zeros(shape, np.int64),
            heading=np.zeros(shape, np.int64),
            false_negatives=np.zeros((levels, *shape), np.int64),
            ground_truths=np.zeros((levels, len(BREAKDOWNS)), np.int64),
        )

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))


class _SortedFrames(NamedTuple):
    """Boxes of a set by frame: order [N] of the boxes, starts [frames + 1] of the frames in it."""

    boxes: WaymoBoxes
    order: np.ndarray
    starts: np.ndarray

    def cut(self, first: int, count: int) -> tuple[WaymoBoxes, np.ndarray]:
        """Boxes of count frames from the first on, and starts [count + 1] of these frames."""
        starts = self.starts[first : first + count + 1]
        rows = self.order[starts[0] : starts[-1]]
        return self.boxes.take(rows), starts - starts[0]


def score_waymo(
    predictions: WaymoBoxes,
    ground_truths: WaymoBoxes,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, dict[str, float]]:
    """AP and APH of a set of frames.

    Args:
        predictions, ground_truths: see WaymoBoxes; the frames of both count.
        progress: wraps the loop, for a progress bar.
    Returns:
        {'VEHICLE_LEVEL_1': {'AP': 0 to 1, 'APH': 0 to 1}, ...}, see average_precisions.
    Raises:
        ValueError: boxes or scores that are not finite.
    """
    return average_precisions(count_boxes(predictions, ground_truths, progress))


def count_boxes(
    predictions: WaymoBoxes,
    ground_truths: WaymoBoxes,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Counts:
    """Match and count, see score_waymo; Counts of parts of the frames, in any order, add up to
    those of all."""
    predictions.check('predictions')
    ground_truths.check('ground truths')
    ground_truths = ground_truths.take(ground_truths.num_points > 0)
    (frame, gt_frame), frames = number_frames(predictions, ground_truths)
    sorted_predictions = _sort_frames(predictions, frame, frames)
    sorted_ground_truths = _sort_frames(ground_truths, gt_frame, frames)

    counts = Counts.zeros()
    for first in progress(range(0, frames, _FRAMES)):
        part, starts = sorted_predictions.cut(first, _FRAMES)
        gt_part, gt_starts = sorted_ground_truths.cut(first, _FRAMES)
        counts += _count_frames(part, gt_part, starts, gt_starts)
    return counts


def _sort_frames(boxes: WaymoBoxes, frame: np.ndarray, frames: int) -> _SortedFrames:
    order = np.argsort(frame, kind='stable')
    starts = np.searchsorted(frame[order], np.arange(frames + 1))
    return _SortedFrames(boxes, order, starts)


def _count_frames(
    predictions: WaymoBoxes, ground_truths: WaymoBoxes, starts: np.ndarray, gt_starts: np.ndarray
) -> Counts:
    """Counts of frames whose boxes are sorted by frame; starts: [frames + 1]."""
    reached = count_cutoffs(predictions.scores)
    edges = find_edges(
        predictions.boxes,
        predictions.types,
        starts,
        ground_truths.boxes,
        ground_truths.types,
        gt_starts,
    )
    by_points = np.where(ground_truths.num_points > 5, LEVEL_1, LEVEL_2)
    given = ground_truths.difficulty
    difficulty = np.where(given > 0, given, by_points)

    counts = Counts.zeros()
    for rows, gt_rows in zip(_breakdowns(predictions), _breakdowns(ground_truths)):
        same = rows[edges[0]] == gt_rows[edges[1]]
        matches = match_at_cutoffs(edges[0][same], edges[1][same], edges[2][same], reached)
        counts += _count_matches(
            predictions, ground_truths, rows, gt_rows, difficulty, reached, matches
        )
    return counts


def _count_matches(
    predictions: WaymoBoxes,
    ground_truths: WaymoBoxes,
    rows: np.ndarray,
    gt_rows: np.ndarray,
    difficulty: np.ndarray,
    reached: np.ndarray,
    matches: np.ndarray,
) -> Counts:
    """Counts of matches.

    Args:
        rows, gt_rows: breakdown of each box or -1.
        difficulty: of each ground truth, known for all.
        reached: see count_cutoffs; matches: see match_at_cutoffs.
    """
    prediction, ground_truth, start, stop = matches.T
    matched_rows = rows[prediction]
    accuracy = heading_accuracy(
        predictions.boxes[prediction, 6], ground_truths.boxes[ground_truth, 6]
    )
    heading = np.round(_UNIT * accuracy)

    # all predictions outside of no-label zones, less the matched ones
    is_outside = ~predictions.in_no_label_zone
    false_positives = _sum_by_cutoff(rows, 0, reached, (rows >= 0) & is_outside)
    false_positives -= _sum_by_cutoff(matched_rows, start, stop, is_outside[prediction])

    # all ground truths of a level, less the matched ones
    false_negatives = []
    totals = []
    for level in LEVELS:
        in_level = difficulty <= level
        counted = (gt_rows >= 0) & in_level
        missed = _sum_by_cutoff(gt_rows, 0, len(CUTOFFS), counted)
        missed -= _sum_by_cutoff(gt_rows[ground_truth], start, stop, in_level[ground_truth])
        false_negatives.append(missed)
        totals.append(np.bincount(gt_rows[counted], minlength=len(BREAKDOWNS)))
    return Counts(
        _sum_by_cutoff(matched_rows, start, stop),
        false_positives,
        _sum_by_cutoff(matched_rows, start, stop, heading),
        np.stack(false_negatives),
        np.stack(totals),
    )


def _breakdowns(boxes: WaymoBoxes) -> tuple[np.ndarray, np.ndarray]:
    """[N] row of BREAKDOWNS by type, and by type and range; -1 where the type is unknown."""
    is_known = (boxes.types > 0) & (boxes.types <= len(TYPES))
    kind = np.where(is_known, boxes.types, 1).astype(np.int64) - 1
    distance = np.sqrt((boxes.boxes[:, :3] ** 2).sum(1))
    reach = np.searchsorted(_BORDERS, distance, side='right')
    by_range = len(TYPES) + len(RANGES) * kind + reach
    return np.where(is_known, kind, -1), np.where(is_known, by_range, -1)


def _sum_by_cutoff(
    rows: np.ndarray,
    start: np.ndarray | int,
    stop: np.ndarray | int,
    amounts: np.ndarray | None = None,
) -> np.ndarray:
    """Sum amounts of each breakdown at each cutoff.

    Args:
        rows: [N] breakdown of each amount; -1 leaves it out.
        start, stop: [N], or one for all; an amount counts at the cutoffs from start up to stop.
        amounts: [N], 1 by default.
    Returns:
        [B, C] int64.
    """
    width = len(CUTOFFS) + 1
    weights = np.ones(len(rows)) if amounts is None else amounts.astype(np.float64)
    is_known = rows >= 0
    weights = weights[is_known]
    size = len(BREAKDOWNS) * width
    begins = np.bincount((rows * width + start)[is_known], weights, size)
    ends = np.bincount((rows * width + stop)[is_known], -weights, size)
    change = (begins + ends).reshape(-1, width)
    return change.cumsum(1)[:, :-1].astype(np.int64)


def heading_accuracy(heading: np.ndarray, gt_heading: np.ndarray) -> np.ndarray:
    """1 for equal headings (radians) to 0 for opposite ones."""
    gap = np.abs(heading - gt_heading) % (2 * np.pi)
    return np.clip(1 - np.minimum(gap, 2 * np.pi - gap) / np.pi, 0, 1)


def average_precisions(counts: Counts) -> dict[str, dict[str, float]]:
    """AP and APH of every breakdown and level.

    Returns:
        {'VEHICLE_LEVEL_1': {'AP': 0 to 1, 'APH': 0 to 1}, 'VEHICLE_LEVEL_2': ...,
        'VEHICLE_[0,30)_LEVEL_1': ...} for the types VEHICLE, PEDESTRIAN, SIGN, CYCLIST and the
        ranges [0,30), [30,50), [50,inf); 0 without ground truths.
    """
    found = counts.true_positives
    made = np.maximum(found + counts.false_positives, 1)
    scores = {}
    for row, name in enumerate(BREAKDOWNS):
        values = dict(AP=found[row], APH=counts.heading[row] / _UNIT)
        for level, missed in zip(LEVELS, counts.false_negatives):
            recall = found[row] / np.maximum(found[row] + missed[row], 1)
            entry = {}
            for key, value in values.items():
                precision = np.where(recall > 0, value / made[row], 1.0)
                entry[key] = area_under_curve(precision, recall)
            scores[f'{name}_LEVEL_{level}'] = entry
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

    recalls: list[float] = []
    precisions: list[float] = []
    highest = 0.0
    for r in sorted(best, reverse=True):
        while recalls and recalls[-1] - r > _MAX_GAP + 1e-6:
            recalls.append(recalls[-1] - _MAX_GAP)
            precisions.append(highest)
        highest = max(highest, best[r])
        recalls.append(r)
        precisions.append(highest)
    if len(recalls) < 2:
        return 0.0

    precisions[-1] = precisions[-2]
    widths = np.subtract(recalls[:-1], recalls[1:])
    heights = np.add(precisions[:-1], precisions[1:])
    return float((widths * heights).sum() / 2)


def mean_scores(scores: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """{'LEVEL_1': {'AP': , 'APH': }, 'LEVEL_2': ...}: the benchmark's mean of vehicles, pedestrians
    and cyclists."""
    names = [name for name in TYPES if name != 'SIGN']
    means = {}
    for level in LEVELS:
        rows = [scores[f'{name}_LEVEL_{level}'] for name in names]
        means[f'LEVEL_{level}'] = {
            key: float(np.mean([row[key] for row in rows])) for key in ('AP', 'APH')
        }
    return means


def format_table(scores: dict[str, dict[str, float]], ground_truths: np.ndarray) -> str:
    """Scores as text: a line for each breakdown that has a ground truth, and the means.

    Args:
        scores: see average_precisions.
        ground_truths: [2, B], see Counts.
    """
    columns = f'{"boxes":>8}{"AP":>8}{"APH":>8}'
    lines = [f'{"":<20}{"LEVEL_1":>24}{"LEVEL_2":>27}', f'{"":<20}{columns}   {columns}']
    by_range = [name for name in BREAKDOWNS if name not in TYPES]
    for name in (*TYPES, *by_range):
        counts = ground_truths[:, BREAKDOWNS.index(name)]
        if counts[1]:
            levels = [scores[f'{name}_LEVEL_{level}'] for level in LEVELS]
            lines.append(_format_row(name, zip(counts, levels)))
    means = [('', mean) for mean in mean_scores(scores).values()]
    lines.append(_format_row('mean without SIGN', means))
    return '\n'.join(lines)


def _format_row(name: str, cells: Iterable[tuple[object, dict[str, float]]]) -> str:
    columns = [f'{count:>8}{score["AP"]:>8.4f}{score["APH"]:>8.4f}' for count, score in cells]
    return f'{name:<20}' + '   '.join(columns)
