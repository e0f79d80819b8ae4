"""Maximum-weight matching of predictions and ground truths at every score cutoff, as the Waymo
benchmark matches them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stratified3d.evaluation.rotated_iou import WORKSPACE, pair_iou_3d
from stratified3d.jit import compiled

# a cutoff is compared with a score, and a threshold with an IoU, as float32, because the official
# program does
CUTOFFS = np.append(np.arange(100) * 0.01, 1.0).astype(np.float32)
IOU_THRESHOLDS = np.array([np.inf, 0.7, 0.5, 0.5, 0.5], np.float32)  # by type
_MIN_SIDE, _MAX_SIDE = 1e-2, 1e6  # meters; boxes beyond overlap nothing
_KEY_STEP = 256  # more than there are cutoffs


def count_cutoffs(scores: np.ndarray) -> np.ndarray:
    """How many of the ascending cutoffs each score reaches; it counts at those cutoffs."""
    return np.searchsorted(CUTOFFS, np.asarray(scores, np.float32), side='right')


def find_edges(
    boxes: np.ndarray,
    types: np.ndarray,
    starts: np.ndarray,
    gt_boxes: np.ndarray,
    gt_types: np.ndarray,
    gt_starts: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of one frame and type that overlap enough to match, with the weight of a match.

    Args:
        boxes, gt_boxes: [J, 7], [K, 7], frame after frame, see WaymoBoxes.
        types, gt_types: [J], [K].
        starts, gt_starts: [frames + 1], rows of each frame.
    Returns:
        prediction, ground truth, weight: [E] int64, sorted by prediction and then ground truth; the
        weight is the IoU in millionths.
    """
    edges = _find_edges(
        np.ascontiguousarray(boxes),
        _matchable_types(boxes, types),
        starts,
        np.ascontiguousarray(gt_boxes),
        _matchable_types(gt_boxes, gt_types),
        gt_starts,
        IOU_THRESHOLDS,
    )
    return edges[:, 0], edges[:, 1], edges[:, 2]


def _matchable_types(boxes: np.ndarray, types: np.ndarray) -> np.ndarray:
    """[N] types; 0 for unknown ones and for boxes too small or too large to overlap anything."""
    sides = boxes[:, 3:6]
    fits = (sides > _MIN_SIDE).all(1) & (sides < _MAX_SIDE).all(1)
    return np.where(fits & (types < len(IOU_THRESHOLDS)), types, 0)


@compiled
def _find_edges(
    boxes: np.ndarray,
    types: np.ndarray,
    starts: np.ndarray,
    gt_boxes: np.ndarray,
    gt_types: np.ndarray,
    gt_starts: np.ndarray,
    thresholds: np.ndarray,
) -> np.ndarray:
    polygons = np.empty(WORKSPACE)
    edges = np.empty((64, 3), np.int64)
    count = 0
    for frame in range(len(starts) - 1):
        for j in range(starts[frame], starts[frame + 1]):
            for k in range(gt_starts[frame], gt_starts[frame + 1]):
                if types[j] != gt_types[k]:
                    continue
                iou = np.float32(pair_iou_3d(boxes[j], gt_boxes[k], polygons))
                if not iou >= thresholds[types[j]]:
                    continue
                if count == len(edges):
                    edges = np.concatenate((edges, np.empty_like(edges)))
                weight = int(math.floor(iou * np.float32(1e6) + 0.5))
                edges[count] = j, k, weight
                count += 1
    return edges[:count]


def match_at_cutoffs(
    prediction: np.ndarray, ground_truth: np.ndarray, weight: np.ndarray, reached: np.ndarray
) -> np.ndarray:
    """Match at each cutoff the predictions that reach it, so that the sum of weights is maximal.

    A maximum-weight matching decomposes into the connected components of the graph, most of which
    are one ground truth and its predictions: there the heaviest wins. The others go to scipy's
    solver, once for each set of predictions. Of matchings with equal sums, the order of the
    predictions decides.

    Args:
        prediction, ground_truth, weight: [E] int64, see find_edges.
        reached: [J], see count_cutoffs.
    Returns:
        [M, 4] int64: prediction, ground truth, and the half-open range of cutoffs at which they are
        matched.
    """
    counts = reached[prediction] > 0
    prediction = prediction[counts]
    ground_truth = ground_truth[counts]
    weight = weight[counts]
    if not len(prediction):
        return np.zeros((0, 4), np.int64)

    is_contested = np.zeros(ground_truth.max() + 1, bool)
    has_choice = np.bincount(prediction)[prediction] > 1
    is_contested[ground_truth[has_choice]] = True
    hard = is_contested[ground_truth]
    easy = ~hard
    parts = [_match_uncontested(prediction[easy], ground_truth[easy], weight[easy], reached)]
    parts += _match_contested(prediction[hard], ground_truth[hard], weight[hard], reached)
    return np.concatenate(parts)


def _match_uncontested(
    prediction: np.ndarray, ground_truth: np.ndarray, weight: np.ndarray, reached: np.ndarray
) -> np.ndarray:
    """Matches where no prediction has a second ground truth: sorted by descending weight, each
    takes the cutoffs that are left."""
    order = np.lexsort((prediction, -weight, ground_truth))
    prediction = prediction[order]
    ground_truth = ground_truth[order]
    is_first = np.diff(ground_truth, prepend=-1) != 0
    base = np.cumsum(is_first) * _KEY_STEP  # rises from ground truth to ground truth
    highest = np.maximum.accumulate(base + reached[prediction])
    before = np.maximum(np.append(0, highest[:-1]), base)
    wins = highest > before
    return np.stack([prediction, ground_truth, before - base, highest - base], 1)[wins]


def _match_contested(
    prediction: np.ndarray, ground_truth: np.ndarray, weight: np.ndarray, reached: np.ndarray
) -> Iterator[np.ndarray]:
    """Matches of each connected component."""
    if not len(prediction):
        return
    rows, row = np.unique(prediction, return_inverse=True)
    columns, column = np.unique(ground_truth, return_inverse=True)
    nodes = len(rows) + len(columns)
    links = (row, column + len(rows))
    graph = coo_array((np.ones(len(row)), links), shape=(nodes, nodes))
    _, labels = connected_components(graph, directed=False)

    component = labels[row]  # [E]
    order = np.argsort(component, kind='stable')
    borders = np.flatnonzero(np.diff(component[order])) + 1
    for edges in np.split(order, borders):
        yield from _match_component(prediction[edges], ground_truth[edges], weight[edges], reached)


def _match_component(
    prediction: np.ndarray, ground_truth: np.ndarray, weight: np.ndarray, reached: np.ndarray
) -> Iterator[np.ndarray]:
    """Matches of the edges of one component, by scipy for each set of predictions."""
    rows, i = np.unique(prediction, return_inverse=True)
    columns, j = np.unique(ground_truth, return_inverse=True)
    weights = np.zeros((len(rows), len(columns)))
    weights[i, j] = weight
    cutoffs = reached[rows]
    start = 0
    for stop in np.unique(cutoffs):
        active = np.flatnonzero(cutoffs >= stop)
        i, j = linear_sum_assignment(weights[active], maximize=True)
        i = active[i]
        is_edge = weights[i, j] > 0
        found = rows[i[is_edge]]
        matched = columns[j[is_edge]]
        first = np.full_like(found, start)
        last = np.full_like(found, stop)
        yield np.stack([found, matched, first, last], 1)
        start = stop
