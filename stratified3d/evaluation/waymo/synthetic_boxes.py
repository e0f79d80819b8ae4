"""Synthetic ground truths and predictions near some of them, for tests and timings of the score."""

from __future__ import annotations

import numpy as np

from stratified3d.evaluation.waymo.boxes import WaymoBoxes, make_boxes

# length, width, height (m) of a vehicle, pedestrian, sign, cyclist
_SIDES = np.array([[4.7, 2.1, 1.7], [0.9, 0.9, 1.75], [0.4, 0.6, 0.6], [1.8, 0.8, 1.75]])
_SHARES = (0.6, 0.25, 0.05, 0.1)  # of the types
_NOISE = np.array([0.15, 0.15, 0.1, 0, 0, 0, 0.08])  # of predicted centers (m) and headings (rad)
FRAMES_PER_SEGMENT = 200


def synthetic_frames(
    frames: int,
    predictions: int,
    ground_truths: int,
    seed: int,
    reach: float = 75.0,
    first: int = 0,
) -> tuple[WaymoBoxes, WaymoBoxes]:
    """Predictions and ground truths of several frames.

    Predictions are inexact copies of two thirds of the ground truths; three in ten are moved to
    where nothing is, one in ten is turned around.

    Args:
        frames: how many.
        predictions, ground_truths: how many boxes in each frame.
        seed: of everything.
        reach: meters from the vehicle.
        first: number of the first frame.
    """
    rng = np.random.default_rng([seed, first])
    shape = (frames, ground_truths)
    types = rng.choice(4, shape, p=_SHARES) + 1
    boxes = _draw_boxes(rng, types, reach)
    num_points = np.where(rng.random(shape) < 0.05, 0, rng.geometric(0.02, shape))
    difficulty = rng.choice(3, shape, p=(0.8, 0.1, 0.1))
    found, found_types = _draw_predictions(rng, boxes, types, predictions)
    scores = rng.beta(1, 2, found_types.shape)
    in_zone = rng.random(found_types.shape) < 0.02

    number = first + np.arange(frames)
    segment = number // FRAMES_PER_SEGMENT
    names = [f'segment-{i}' for i in np.unique(segment)]
    context = segment - (segment[0] if frames else 0)
    timestamp = number * 100_000
    predicted = make_boxes(
        names,
        np.repeat(context, predictions),
        np.repeat(timestamp, predictions),
        found.reshape(-1, 7),
        found_types.ravel(),
        scores.ravel(),
        in_zone.ravel(),
    )
    expected = make_boxes(
        names,
        np.repeat(context, ground_truths),
        np.repeat(timestamp, ground_truths),
        boxes.reshape(-1, 7),
        types.ravel(),
        difficulty=difficulty.ravel(),
        num_points=num_points.ravel(),
    )
    return predicted, expected


def _draw_boxes(rng: np.random.Generator, types: np.ndarray, reach: float) -> np.ndarray:
    """[*types.shape, 7] boxes of these types."""
    xy = rng.uniform(-reach, reach, (*types.shape, 2))
    z = rng.normal(1, 0.4, (*types.shape, 1))
    sides = _SIDES[types - 1] * rng.normal(1, 0.1, (*types.shape, 3)).clip(0.5)
    heading = rng.uniform(-np.pi, np.pi, (*types.shape, 1))
    return np.concatenate([xy, z, sides, heading], -1)


def _draw_predictions(
    rng: np.random.Generator, boxes: np.ndarray, types: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count inexact copies of boxes in each frame: boxes [F, count, 7], types [F, count]."""
    frames, ground_truths = types.shape
    shape = (frames, count)
    if ground_truths:
        copied = rng.integers(0, max(2 * ground_truths // 3, 1), shape)
        found = np.take_along_axis(boxes, copied[..., None], 1)
        found_types = np.take_along_axis(types, copied, 1)
    else:
        found = np.zeros((*shape, 7)) + [0, 0, 1, *_SIDES[0], 0]
        found_types = np.ones(shape, int)

    return _disturb(rng, found), found_types


def _disturb(rng: np.random.Generator, boxes: np.ndarray) -> np.ndarray:
    """Boxes [..., 7] with noise, some of them turned around or moved away."""
    shape = boxes.shape[:-1]
    boxes = boxes + rng.normal(0, 1, boxes.shape) * _NOISE
    boxes[..., 3:6] *= rng.normal(1, 0.05, (*shape, 3)).clip(0.7)
    is_turned = rng.random(shape) < 0.1
    boxes[..., 6] += np.pi * is_turned
    is_moved = rng.random(shape) < 0.3
    boxes[..., :2] += is_moved[..., None] * rng.normal(0, 15, (*shape, 2))
    return boxes
