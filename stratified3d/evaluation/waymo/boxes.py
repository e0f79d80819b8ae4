"""Boxes of many frames as arrays, the way the Waymo score takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

VEHICLE, PEDESTRIAN, SIGN, CYCLIST = 1, 2, 3, 4
LEVEL_1, LEVEL_2 = 1, 2


Column = Sequence | np.ndarray


@dataclass
class WaymoBoxes:
    """N labeled boxes, predictions or ground truths; boxes of a frame keep their order.

    Attributes:
        contexts: names of driving segments.
        context: [N], index into contexts.
        timestamp: [N] int64, microseconds.
        boxes: [N, 7] x, y, z of the center, length, width, height (meters), heading (radians), in
            the vehicle frame.
        types: [N], 1 vehicle, 2 pedestrian, 3 sign, 4 cyclist, 0 unknown.
        scores: [N] float32.
        in_no_label_zone: [N] bool.
        difficulty: [N], 1 or 2, 0 where it is not given.
        num_points: [N], LiDAR points inside.
        camera: [N], 0 for boxes of the LiDAR, else the camera whose image they belong to.
    """

    contexts: list[str]
    context: np.ndarray
    timestamp: np.ndarray
    boxes: np.ndarray
    types: np.ndarray
    scores: np.ndarray
    in_no_label_zone: np.ndarray
    difficulty: np.ndarray
    num_points: np.ndarray
    camera: np.ndarray

    def __len__(self) -> int:
        return len(self.context)

    def take(self, rows: np.ndarray | slice) -> WaymoBoxes:
        """Some of the boxes: [K] indices, [N] bool or a slice."""
        columns = [getattr(self, field.name)[rows] for field in fields(self)[1:]]
        return WaymoBoxes(self.contexts, *columns)

    def check(self, name: str) -> None:
        """Raise ValueError, naming the box, where a number is not finite."""
        for finite, what in (
            (np.isfinite(self.boxes).all(1), 'coordinate'),
            (np.isfinite(self.scores), 'score'),
        ):
            if not finite.all():
                row = int(finite.argmin())
                raise ValueError(
                    f'{name}: object {row}, of segment {self.contexts[self.context[row]]!r} at '
                    f'{self.timestamp[row]}, has a {what} that is not a finite number'
                )


def make_boxes(
    contexts: list[str],
    context: Column,
    timestamp: Column,
    boxes: Column,
    types: Column,
    scores: Column | float = 1.0,
    in_no_label_zone: Column | bool = False,
    difficulty: Column | int = 0,
    num_points: Column | int = 0,
    camera: Column | int = 0,
) -> WaymoBoxes:
    """WaymoBoxes of columns of length N, or of one value for all boxes.

    Raises:
        ValueError: another difficulty than 0, 1, 2.
    """
    if not np.isin(difficulty, (0, 1, 2)).all():
        raise ValueError(
            f'difficulties are {np.unique(difficulty).tolist()}; allowed are 1, 2 and 0 (unknown)'
        )
    count = len(context)

    def column(values: Column | float, kind: type) -> np.ndarray:
        return np.broadcast_to(np.asarray(values, kind), (count,))

    return WaymoBoxes(
        contexts,
        column(context, np.int64),
        column(timestamp, np.int64),
        np.asarray(boxes, np.float64).reshape(count, 7),
        column(types, np.uint8),
        column(scores, np.float32),
        column(in_no_label_zone, np.bool_),
        column(difficulty, np.uint8),
        column(num_points, np.int64),
        column(camera, np.int64),
    )


def number_frames(*sets: WaymoBoxes) -> tuple[list[np.ndarray], int]:
    """Number the frames that any of the sets has boxes in.

    A frame is a segment, a timestamp and, for boxes of images, a camera; frames are sorted by name
    and time, so that numbers do not depend on the order of the boxes.

    Returns:
        [N] int64 frame of each box, for each set; how many frames there are.
    """
    keys = _frame_keys(sets)
    order = np.lexsort(keys[::-1])
    is_next = np.zeros(len(order), bool)  # whether a frame begins, except the first one
    for key in keys:
        ordered = key[order]
        is_next[1:] |= ordered[1:] != ordered[:-1]

    frame = np.empty(len(order), np.int64)
    frame[order] = is_next.cumsum()
    count = int(is_next.sum()) + (len(order) > 0)
    ends = np.cumsum([len(boxes) for boxes in sets])
    return np.split(frame, ends[:-1]), count


def _frame_keys(sets: Sequence[WaymoBoxes]) -> list[np.ndarray]:
    """Segment, timestamp and camera of all boxes, set after set; segments numbered by name."""
    contexts = sorted({name for boxes in sets for name in boxes.contexts})
    number = {name: i for i, name in enumerate(contexts)}
    segments = [_renumber(boxes, number) for boxes in sets]
    timestamps = [boxes.timestamp for boxes in sets]
    cameras = [boxes.camera for boxes in sets]
    return [np.concatenate(parts) for parts in (segments, timestamps, cameras)]


def _renumber(boxes: WaymoBoxes, number: dict[str, int]) -> np.ndarray:
    """[N] numbers of the boxes' segments."""
    if not len(boxes):
        return boxes.context
    numbers = np.array([number[name] for name in boxes.contexts], np.int64)
    return numbers[boxes.context]
