"""Compare the detections of a package with its model's, and explain the boxes that differ."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from stratified3d.detections import Detections
from stratified3d.ops.nms import rotated_iou

LIMIT = 1e-3  # m, rad, m/s and score within which boxes are equal
# what rounding can turn in fp32: the order of two scores, and the two sides of the limit of NMS
_TIE = 2e-5  # of scores
_NEAR = 1e-4  # of an IoU, or of a distance in meters


class FrameDifference(NamedTuple):
    """How far the detections of one frame are from the expected ones.

    Attributes:
        num_points: of the frame.
        num_boxes: of both sides together.
        box_gap: largest difference in any number of equal boxes (m, rad, m/s).
        score_gap: largest difference of their scores.
        reasons: a sentence for each box of either side without an equal.
        num_unexplained: how many of these name no reason.
    """

    num_points: int
    num_boxes: int
    box_gap: float
    score_gap: float
    reasons: list[str]
    num_unexplained: int


def vary_size(points: np.ndarray, i: int, count: int) -> np.ndarray:
    """Return a part of points [P, C], the i-th of count sizes from none to all of them.

    Every second part is a sector around the sensor, the others are drawn at random; the same i
    gives the same part.
    """
    rng = np.random.default_rng(i)
    size = round(len(points) * (i / max(count - 1, 1)) ** 2)
    if i % 2:
        azimuth = np.arctan2(points[:, 1], points[:, 0]) - rng.uniform(-np.pi, np.pi)
        chosen = np.argsort(azimuth % (2 * np.pi), kind='stable')[:size]
    else:
        chosen = rng.permutation(len(points))[:size]
    return points[np.sort(chosen)]


def compare_frames(
    detector: Callable[[np.ndarray], Detections],
    model: Any,
    detect: Callable[[Any, np.ndarray], Detections],
    frames: Iterable[np.ndarray],
    limit: float = LIMIT,
) -> Iterator[FrameDifference]:
    """Yield the difference of a detector from a model in each frame.

    Args:
        detector: called with points.
        model: with a `StratifiedCenterHead`.
        detect: called with the model and points, `apis.detect`.
        frames: points [P, 4 or 5] of each.
        limit: see `compare`.
    """
    for points in frames:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # parts of frames look like wrong ones
            found, expected = detector(points), detect(model, points)
            with _no_nms(model.head):
                candidates = detect(model, points)
        difference = compare(found, expected, candidates, model.head, limit)
        yield difference._replace(num_points=len(points))


@contextmanager
def _no_nms(head: Any) -> Iterator[None]:
    """Let a head return all boxes that NMS chooses from."""
    kept = head.nms, head.post_max_size
    # no distance is at most NaN
    head.nms = dict(type='circle', radius=[np.nan] * len(head.class_names))
    head.post_max_size = head.max_num
    try:
        yield
    finally:
        head.nms, head.post_max_size = kept


def compare(
    found: Detections,
    expected: Detections,
    candidates: Detections,
    head: Any,
    limit: float = LIMIT,
) -> FrameDifference:
    """Return how far the detections of a frame are from the expected ones.

    Boxes of one class are equal if no number of the box (m, rad, m/s; bottom center) and not the
    score differs by more than the limit. For every other box it is asked why the other list lacks
    it: two candidates whose scores or whose overlap leave NMS no clear choice, a score at the
    threshold, or the end of a list that is full. A found box that equals none of the candidates is
    never explained.

    Args:
        found, expected: detections of the two sides.
        candidates: those that the expected ones were chosen from by NMS.
        head: a `StratifiedCenterHead`, whose settings decide.
        limit: m, rad, m/s and score.
    """
    ours, theirs = _equal_pairs(found, expected, limit)
    boxes = _join(found, expected, ours, theirs, head)
    boxes.is_candidate[_equal_pairs(found, candidates, limit)[0]] = True
    reasons = _explain(boxes, head)
    names = [*found.names, *expected.names]
    sentences = []
    for row, reason in sorted(reasons.items()):
        side = 'only found' if row < len(found.names) else 'only expected'
        sentences.append(f'{names[row]} {boxes.scores[row]:.6f} {side}: {reason or "no reason"}')
    return FrameDifference(
        num_points=0,
        num_boxes=len(names),
        box_gap=float(_gap(found.boxes[ours], expected.boxes[theirs]).max(initial=0)),
        score_gap=float(np.abs(found.scores[ours] - expected.scores[theirs]).max(initial=0)),
        reasons=sentences,
        num_unexplained=sum(not reason for reason in reasons.values()),
    )


def render(differences: list[FrameDifference], limit: float = LIMIT) -> str:
    """Return a summary of all frames, and a line for each box without an equal."""
    points = [d.num_points for d in differences]
    missing = sum(len(d.reasons) for d in differences)
    lines = [
        f'{len(points)} frames of {min(points, default=0)} to {max(points, default=0)} points, '
        f'{sum(d.num_boxes for d in differences)} boxes of either side, {missing} without an equal '
        f'within {limit:g}, {sum(d.num_unexplained for d in differences)} of them without a reason',
        f'largest difference of equal boxes {max((d.box_gap for d in differences), default=0):.1e} '
        f'(m, rad, m/s), of their scores '
        f'{max((d.score_gap for d in differences), default=0):.1e}',
    ]
    for i, difference in enumerate(differences):
        lines += [f'frame {i}, {difference.num_points} points: {x}' for x in difference.reasons]
    return '\n'.join(lines)


def _gap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Largest difference in any number of boxes [..., 7+]; yaws may be a full turn apart."""
    gap = np.abs(a - b)
    gap[..., 6] = np.minimum(gap[..., 6], np.abs(2 * np.pi - gap[..., 6]))
    return gap.max(-1, initial=0)


def _equal_pairs(
    found: Detections, expected: Detections, limit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of equal boxes in both lists; no box has two partners, and the nearest meet first."""
    gap = _gaps_in_class(found, expected)
    rows, columns = np.nonzero(gap <= limit)
    partner: dict[int, int] = {}
    for k in gap[rows, columns].argsort(kind='stable'):
        row, column = int(rows[k]), int(columns[k])
        if row not in partner and column not in partner.values():
            partner[row] = column
    return np.array([*partner], int), np.array([*partner.values()], int)


def _gaps_in_class(found: Detections, expected: Detections) -> np.ndarray:
    """[F, E] largest difference of two boxes and their scores, infinite between classes."""
    gap = _gap(found.boxes[:, None], expected.boxes)
    gap = np.maximum(gap, np.abs(found.scores[:, None] - expected.scores))
    gap[np.array(found.names)[:, None] != np.array(expected.names)] = np.inf
    return gap


class _Boxes(NamedTuple):
    """The boxes of both sides, found ones first.

    boxes: [K, 7+]. scores: [K]. task: [K] index. is_found: [K] bool. has_equal: [K] bool.
    is_candidate: [K] bool, whether NMS of the expected side could choose it. lowest: [K], the
    lowest score of the other side's list of the task if it is full, else -inf.
    """

    boxes: np.ndarray
    scores: np.ndarray
    task: np.ndarray
    is_found: np.ndarray
    has_equal: np.ndarray
    is_candidate: np.ndarray
    lowest: np.ndarray


def _join(
    found: Detections, expected: Detections, ours: np.ndarray, theirs: np.ndarray, head: Any
) -> _Boxes:
    task_of = {name: i for i, names in enumerate(head.class_names) for name in names}
    task = np.array([task_of[name] for name in [*found.names, *expected.names]], int)
    is_found = np.arange(len(task)) < len(found.names)
    has_equal = np.zeros(len(task), bool)
    has_equal[ours] = True
    has_equal[len(found.names) + theirs] = True
    boxes = np.concatenate([found.boxes, expected.boxes])
    scores = np.concatenate([found.scores, expected.scores])
    lowest = _lowest_of_full(scores, task, is_found, head.post_max_size)
    return _Boxes(boxes, scores, task, is_found, has_equal, ~is_found, lowest)


def _lowest_of_full(
    scores: np.ndarray, task: np.ndarray, is_found: np.ndarray, size: int
) -> np.ndarray:
    """`_Boxes.lowest` where a list of this size is full."""
    lowest = np.full(len(scores), -np.inf)
    for t in np.unique(task):
        for side in (True, False):
            own = scores[(task == t) & (is_found == side)]
            if len(own) >= size:
                lowest[(task == t) & (is_found != side)] = own.min()
    return lowest


def _explain(x: _Boxes, head: Any) -> dict[int, str]:
    """For the rows of boxes without an equal, why the other side lacks them; '' is unknown."""
    reasons: dict[int, str] = {}
    lonely = np.flatnonzero(~x.has_equal)
    for row in lonely[x.scores[lonely].argsort(kind='stable')[::-1]].tolist():
        reasons[row] = _reason(row, x, head, reasons) if x.is_candidate[row] else ''
    return reasons


def _reason(row: int, x: _Boxes, head: Any, known: dict[int, str]) -> str:
    """Why the other side lacks a box, given the reasons of those with a higher score."""
    if x.scores[row] - head.score_threshold <= _TIE:
        return 'its score is at the threshold'
    if x.scores[row] <= x.lowest[row] + _TIE:
        return f'it would be the last of {head.post_max_size} boxes of its task'
    is_other = (x.is_found != x.is_found[row]) & (x.task == x.task[row])
    others = np.flatnonzero(is_other & x.is_candidate)
    over = _over_limit(x.boxes[row], x.boxes[others], head.nms, x.task[row])
    meets = over > -_NEAR
    has_choice = over < _NEAR
    return _reason_of_nms(x.scores[others] - x.scores[row], others, meets, has_choice, known)


def _reason_of_nms(
    lead: np.ndarray,
    others: np.ndarray,
    meets: np.ndarray,
    has_choice: np.ndarray,
    known: dict[int, str],
) -> str:
    """The same from the score by which others lead and whether they overlap too much, maybe."""
    if (meets & (np.abs(lead) <= _TIE)).any():
        return 'it ties with a box that overlaps it'
    is_better = meets & (lead > 0)
    if (is_better & has_choice).any():
        return 'its overlap with a better box is at the limit of NMS'
    if any(known.get(int(other)) for other in others[is_better]):
        return 'it gives way to a better box that the other list has'
    return ''


def _over_limit(box: np.ndarray, others: np.ndarray, nms: dict, task: int) -> np.ndarray:
    """How much more a box [7+] overlaps each of others [K, 7+] than NMS allows."""
    if nms['type'] == 'circle':
        return nms['radius'][task] - np.linalg.norm(others[:, :2] - box[:2], axis=1)
    first, second = (torch.from_numpy(x[:, [0, 1, 3, 4, 6]]) for x in (box[None], others))
    return rotated_iou(first.double(), second.double()).numpy() - nms['iou']
