"""One-to-one matching of boxes by center distance, the way nuScenes counts a hit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def match_centers(
    truth: np.ndarray, predicted: np.ndarray, max_distance: float = 2.0
) -> np.ndarray:
    """Give every prediction, in order, the nearest truth that is still free.

    The matching of the nuScenes detection benchmark (Caesar et al. 2020, section 3.1), for one
    class of one frame.

    Args:
        truth: [K, >= 2] x, y meters.
        predicted: [J, >= 2], by falling score.
        max_distance: meters in the ground plane; a truth farther away is no match.
    Returns:
        [J] int64, the matched truth of each prediction or -1.
    """
    matched = np.full(len(predicted), -1)
    free = np.ones(len(truth), bool)
    for j, center in enumerate(predicted):
        distance = np.where(free, np.linalg.norm(truth[:, :2] - center[:2], axis=1), np.inf)
        if len(distance) and distance.min() < max_distance:
            matched[j] = distance.argmin()
            free[matched[j]] = False
    return matched


def count_matches(
    truth: np.ndarray,
    truth_names: Sequence[str],
    predicted: np.ndarray,
    scores: np.ndarray,
    predicted_names: Sequence[str],
    max_distance: float = 2.0,
) -> dict[str, tuple[int, int]]:
    """Per class: how many truths the class's best predictions find, when it may make only as many
    as there are truths.

    Args:
        truth: [K, >= 2]; truth_names: K class names.
        predicted: [J, >= 2]; scores: [J]; predicted_names: J class names.
        max_distance: meters in the ground plane.
    Returns:
        {class: (found, truths)} for every class that has a truth, in alphabetical order.
    """
    truth_names, predicted_names = np.asarray(truth_names), np.asarray(predicted_names)
    found = {}
    for name in sorted(set(truth_names.tolist())):
        mine = truth[truth_names == name]
        chosen = np.flatnonzero(predicted_names == name)
        chosen = chosen[np.argsort(-scores[chosen], kind='stable')][: len(mine)]
        found[name] = (
            int((match_centers(mine, predicted[chosen], max_distance) >= 0).sum()),
            len(mine),
        )
    return found
