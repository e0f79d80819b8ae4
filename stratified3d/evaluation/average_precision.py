"""Average precision by center distance, as the nuScenes benchmark defines it, on arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stratified3d.evaluation.matching import match_centers

_RECALLS = np.linspace(0, 1, 101)


def average_precision(
    truth: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    max_distance: float,
    min_recall: float = 0.1,
    min_precision: float = 0.1,
) -> float:
    """AP of one class over all frames (Caesar et al. 2020, section 3.1).

    Precision is interpolated at 101 recalls; what lies at or below the least recall or precision
    counts nothing, and the rest is normalized to 1.

    Args:
        truth: one [K, >= 2] of centers (x, y in meters) a frame.
        predicted: one [J, >= 2] a frame; scores: one [J] a frame.
        max_distance: meters in the ground plane.
    Returns:
        0 to 1; NaN where there is no truth.
    """
    total = sum(map(len, truth))
    if not total:
        return float('nan')
    hits, confidence = [], []
    for here, boxes, score in zip(truth, predicted, scores):
        order = np.argsort(-score, kind='stable')
        hits.append(match_centers(here, boxes[order], max_distance) >= 0)
        confidence.append(score[order])
    hits, confidence = np.concatenate(hits), np.concatenate(confidence)
    if not hits.any():
        return 0.0
    true = np.cumsum(hits[np.argsort(-confidence, kind='stable')])
    precision, recall = true / np.arange(1, len(true) + 1), true / total
    curve = np.interp(_RECALLS, recall, precision, right=0)[round(100 * min_recall) + 1 :]
    return float(np.clip(curve - min_precision, 0, None).mean() / (1 - min_precision))
