"""Frames of random truths and of predictions near some of them, for tests and timings of scores."""

from __future__ import annotations

import numpy as np

from stratified3d.evaluation.waymo.boxes import WaymoBoxes, make_boxes

_SIDES = np.array(
    [[4.7, 2.1, 1.7], [0.9, 0.9, 1.75], [0.4, 0.6, 0.6], [1.8, 0.8, 1.75]]
)  # length, width, height, m
_SHARES = (0.6, 0.25, 0.05, 0.1)  # of the types
FRAMES_PER_SEGMENT = 200


def random_frames(
    frames: int, predictions: int, truths: int, seed: int, reach: float = 75.0, first: int = 0
) -> tuple[WaymoBoxes, WaymoBoxes]:
    """Predictions and ground truths of several frames.

    Predictions are inexact copies of two thirds of the truths; three in ten are carried off to
    where nothing is, one in ten is turned around.

    Args:
        frames: how many; predictions, truths: how many boxes in each.
        seed: of everything. reach: meters from the vehicle. first: number of the first frame.
    """
    rng = np.random.default_rng([seed, first])
    types = rng.choice(4, (frames, truths), p=_SHARES) + 1
    boxes = np.concatenate(
        [
            rng.uniform(-reach, reach, (frames, truths, 2)),
            rng.normal(1, 0.4, (frames, truths, 1)),
            _SIDES[types - 1] * rng.normal(1, 0.1, (frames, truths, 3)).clip(0.5),
            rng.uniform(-np.pi, np.pi, (frames, truths, 1)),
        ],
        -1,
    )
    points = np.where(rng.random((frames, truths)) < 0.05, 0, rng.geometric(0.02, (frames, truths)))
    given = rng.choice(3, (frames, truths), p=(0.8, 0.1, 0.1))
    # predictions: of a truth each, some carried off so far that they are nobody's
    of = rng.integers(0, max(2 * truths // 3, 1), (frames, predictions)) if truths else None
    if of is None:
        found = np.zeros((frames, predictions, 7)) + [0, 0, 1, *_SIDES[0], 0]
        kinds = np.ones((frames, predictions), int)
    else:
        found, kinds = np.take_along_axis(boxes, of[..., None], 1), np.take_along_axis(types, of, 1)
    found = found + rng.normal(0, 1, found.shape) * [0.15, 0.15, 0.1, 0, 0, 0, 0.08]
    found[..., 3:6] *= rng.normal(1, 0.05, found[..., 3:6].shape).clip(0.7)
    found[..., 6] += np.pi * (rng.random(kinds.shape) < 0.1)
    found[..., :2] += (rng.random(kinds.shape) < 0.3)[..., None] * rng.normal(
        0, 15, (*kinds.shape, 2)
    )
    scores, hidden = rng.beta(1, 2, kinds.shape), rng.random(kinds.shape) < 0.02

    number = first + np.arange(frames)
    names = [f'segment-{i}' for i in np.unique(number // FRAMES_PER_SEGMENT)]
    where = number // FRAMES_PER_SEGMENT - (number[0] // FRAMES_PER_SEGMENT if frames else 0)
    columns = [
        (np.repeat(where, count), np.repeat(number * 100_000, count))
        for count in (predictions, truths)
    ]
    return (
        make_boxes(
            names, *columns[0], found.reshape(-1, 7), kinds.ravel(), scores.ravel(), hidden.ravel()
        ),
        make_boxes(
            names,
            *columns[1],
            boxes.reshape(-1, 7),
            types.ravel(),
            difficulty=given.ravel(),
            num_points=points.ravel(),
        ),
    )
