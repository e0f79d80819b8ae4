"""Boxes of many frames as arrays, the way the Waymo score takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

VEHICLE, PEDESTRIAN, SIGN, CYCLIST = 1, 2, 3, 4
LEVEL_1, LEVEL_2 = 1, 2


@dataclass
class WaymoBoxes:
    """N labeled boxes, predictions or ground truths, in any order; boxes of a frame keep their
    order.

    contexts: names of driving segments; context: [N], index into them. timestamp: [N] int64,
        microseconds.
    boxes: [N, 7] x, y, z of the center, length, width, height (meters), heading (radians), in the
        vehicle frame.
    types: [N], 1 vehicle, 2 pedestrian, 3 sign, 4 cyclist, 0 unknown. scores: [N] float32.
    in_no_label_zone: [N] bool. difficulty: [N], 1 or 2, 0 where it is not given. num_points: [N],
    LiDAR points inside.
    camera: [N], 0 for boxes of the LiDAR, else the camera whose image they are of.
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

    def take(self, rows: np.ndarray) -> WaymoBoxes:
        """Some of the boxes: [K] indices or [N] bool."""
        return WaymoBoxes(
            self.contexts, *(getattr(self, field.name)[rows] for field in fields(self)[1:])
        )

    def check(self, name: str) -> None:
        """Raise ValueError, naming the box, where a number is not finite."""
        for values, what in ((self.boxes, 'coordinate'), (self.scores, 'score')):
            finite = (
                np.isfinite(values).reshape(len(values), values.size // max(len(values), 1)).all(1)
            )
            if not finite.all():
                row = int(finite.argmin())
                raise ValueError(
                    f'{name}: object {row}, of segment {self.contexts[self.context[row]]!r} at '
                    f'{self.timestamp[row]}, has a {what} that is not a finite number'
                )


def make_boxes(
    contexts: list[str],
    context: Sequence,
    timestamp: Sequence,
    boxes: Sequence,
    types: Sequence,
    scores: Sequence | float = 1.0,
    in_no_label_zone: Sequence | bool = False,
    difficulty: Sequence | int = 0,
    num_points: Sequence | int = 0,
    camera: Sequence | int = 0,
) -> WaymoBoxes:
    """WaymoBoxes of sequences of length N, or of one value for all; ValueError for another
    difficulty than 0, 1, 2."""
    count = len(context)
    if not np.isin(difficulty, (0, 1, 2)).all():
        raise ValueError(
            f'a difficulty is {np.unique(difficulty).tolist()}; 1, 2 or 0 (unknown) is meant'
        )
    columns = [
        (context, np.int64),
        (timestamp, np.int64),
        (types, np.uint8),
        (scores, np.float32),
        (in_no_label_zone, np.bool_),
        (difficulty, np.uint8),
        (num_points, np.int64),
        (camera, np.int64),
    ]
    context, timestamp, types, *rest = (
        np.broadcast_to(np.asarray(values, kind), (count,)) for values, kind in columns
    )
    return WaymoBoxes(
        contexts, context, timestamp, np.asarray(boxes, np.float64).reshape(count, 7), types, *rest
    )


def number_frames(*sets: WaymoBoxes) -> tuple[list[np.ndarray], int]:
    """Number the frames that any of the sets has boxes in: [N] int64 for each set, and how many
    frames there are.

    A frame is a segment, a timestamp and, for boxes of images, a camera; frames count by name and
    time, so that numbers do not depend on the order of the boxes.
    """
    names = sorted({name for boxes in sets for name in boxes.contexts})
    number = {name: i for i, name in enumerate(names)}
    keys = [
        np.concatenate(columns)
        for columns in zip(
            *(
                (
                    np.array([number[name] for name in boxes.contexts], np.int64)[boxes.context]
                    if len(boxes)
                    else boxes.context,
                    boxes.timestamp,
                    boxes.camera,
                )
                for boxes in sets
            )
        )
    ]
    order = np.lexsort(keys[::-1])
    begins = np.zeros(len(order), bool)
    for key in keys:
        begins[1:] |= key[order][1:] != key[order][:-1]
    frame = np.empty(len(order), np.int64)
    frame[order] = begins.cumsum()
    return np.split(frame, np.cumsum([len(boxes) for boxes in sets])[:-1]), int(begins.sum()) + (
        len(order) > 0
    )
