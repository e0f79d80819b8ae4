"""Maximum-weight matching of predictions and truths at every score cutoff, as the Waymo benchmark
matches them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stratified3d.evaluation.rotated_iou import WORKSPACE, overlap_3d
from stratified3d.jit import compiled

# a cutoff is compared with a score, and a threshold with an IoU, as float32, because the official
# program does
CUTOFFS = np.append(np.arange(100) * 0.01, 1.0).astype(np.float32)
IOU_THRESHOLDS = np.array([np.inf, 0.7, 0.5, 0.5, 0.5], np.float32)  # by type
_MIN_SIDE, _MAX_SIDE = 1e-2, 1e6  # meters; boxes beyond overlap nothing
_KEY = 256  # more than there are cutoffs


def count_cutoffs(scores: np.ndarray) -> np.ndarray:
    """How many of the ascending cutoffs each score reaches: it counts at the cutoffs 0 to that
    number - 1."""
    return np.searchsorted(CUTOFFS, np.asarray(scores, np.float32), side='right')


def find_edges(
    boxes: np.ndarray,
    types: np.ndarray,
    starts: np.ndarray,
    true_boxes: np.ndarray,
    true_types: np.ndarray,
    true_starts: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of one frame and type that overlap enough to match, with the weight of a match.

    Args:
        boxes, true_boxes: [J, 7], [K, 7], frame after frame, see WaymoBoxes.
        types, true_types: [J], [K].
        starts, true_starts: [frames + 1], rows of each frame.
    Returns:
        prediction, truth, weight: [E] int64, by prediction and then truth; the weight is the IoU in
        millionths.
    """
    edges = _find_edges(
        np.ascontiguousarray(boxes),
        _matchable(boxes, types),
        starts,
        np.ascontiguousarray(true_boxes),
        _matchable(true_boxes, true_types),
        true_starts,
        IOU_THRESHOLDS,
    )
    return edges[:, 0], edges[:, 1], edges[:, 2]


def _matchable(boxes: np.ndarray, types: np.ndarray) -> np.ndarray:
    """[N] types, 0 where a box is too small or too large to overlap anything, or of no known
    type."""
    sides = boxes[:, 3:6]
    fits = (sides > _MIN_SIDE).all(1) & (sides < _MAX_SIDE).all(1) & (types < len(IOU_THRESHOLDS))
    return np.where(fits, types, 0)


@compiled
def _find_edges(
    boxes: np.ndarray,
    types: np.ndarray,
    starts: np.ndarray,
    true_boxes: np.ndarray,
    true_types: np.ndarray,
    true_starts: np.ndarray,
    thresholds: np.ndarray,
) -> np.ndarray:
    polygon, edges, count = np.empty(WORKSPACE), np.empty((64, 3), np.int64), 0
    for frame in range(len(starts) - 1):
        for j in range(starts[frame], starts[frame + 1]):
            for k in range(true_starts[frame], true_starts[frame + 1]):
                if types[j] != true_types[k]:
                    continue
                iou = np.float32(overlap_3d(boxes[j], true_boxes[k], polygon))
                if not iou >= thresholds[types[j]]:
                    continue
                if count == len(edges):
                    edges = np.concatenate((edges, np.empty_like(edges)))
                edges[count] = j, k, int(math.floor(iou * np.float32(1e6) + 0.5))
                count += 1
    return edges[:count]


def match_at_cutoffs(
    prediction: np.ndarray, truth: np.ndarray, weight: np.ndarray, reached: np.ndarray
) -> np.ndarray:
    """Match at each cutoff the predictions that reach it, so that the sum of the weights is
    greatest.

    A maximum-weight matching falls apart into the connected components of the graph, most of which
    are one truth and its predictions: there the heaviest wins. The others go to scipy's solver,
    once for each set of predictions. Of matchings with equal sums, the order of the predictions
    decides.

    Args:
        prediction, truth, weight: [E] int64, see find_edges.
        reached: [J], see count_cutoffs.
    Returns:
        [M, 4] int64: prediction, truth, and the half-open range of cutoffs at which they are
        matched.
    """
    alive = reached[prediction] > 0
    prediction, truth, weight = prediction[alive], truth[alive], weight[alive]
    if not len(prediction):
        return np.zeros((0, 4), np.int64)
    is_contested = np.zeros(truth.max() + 1, bool)
    is_contested[truth[np.bincount(prediction)[prediction] > 1]] = True
    hard = is_contested[truth]
    parts = [_match_alone(prediction[~hard], truth[~hard], weight[~hard], reached)]
    parts += _match_contested(prediction[hard], truth[hard], weight[hard], reached)
    return np.concatenate(parts)


def _match_alone(
    prediction: np.ndarray, truth: np.ndarray, weight: np.ndarray, reached: np.ndarray
) -> np.ndarray:
    """Matches where no prediction has a second truth: from heavy to light, each takes the cutoffs
    that are left."""
    order = np.lexsort((prediction, -weight, truth))
    prediction, truth = prediction[order], truth[order]
    base = np.cumsum(np.diff(truth, prepend=-1) != 0) * _KEY  # rises from truth to truth
    highest = np.maximum.accumulate(base + reached[prediction])
    before = np.maximum(np.append(0, highest[:-1]), base)
    wins = highest > before
    return np.stack([prediction, truth, before - base, highest - base], 1)[wins]


def _match_contested(
    prediction: np.ndarray, truth: np.ndarray, weight: np.ndarray, reached: np.ndarray
) -> Iterator[np.ndarray]:
    if not len(prediction):
        return
    rows, row = np.unique(prediction, return_inverse=True)
    columns, column = np.unique(truth, return_inverse=True)
    graph = coo_array(
        (np.ones(len(row)), (row, column + len(rows))), shape=(len(rows) + len(columns),) * 2
    )
    part = connected_components(graph, directed=False)[1][row]
    order = np.argsort(part, kind='stable')
    for edges in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
        here, i = np.unique(row[edges], return_inverse=True)
        there, j = np.unique(column[edges], return_inverse=True)
        weights = np.zeros((len(here), len(there)))
        weights[i, j] = weight[edges]
        start = 0
        for stop in np.unique(reached[rows[here]]):
            active = np.flatnonzero(reached[rows[here]] >= stop)
            i, j = linear_sum_assignment(weights[active], maximize=True)
            real = weights[active[i], j] > 0
            i, j = rows[here[active[i[real]]]], columns[there[j[real]]]
            yield np.stack([i, j, np.full_like(i, start), np.full_like(i, stop)], 1)
            start = stop
