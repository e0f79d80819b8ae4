"""Frames of a segment of Waymo's perception v2 (parquet), one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stratified3d.datasets.waymo.components import (
    IMAGES,
    LASERS,
    TOP,
    Box,
    naming_damage,
    read_rows,
)
from stratified3d.datasets.waymo.range_images import decode_return
from stratified3d.datasets.waymo.tables import (
    ArrayBuffer,
    PixelPoses,
    SegmentTables,
    read_tables,
)


@dataclass(frozen=True)
class WaymoFrame:
    """A frame of a segment.

    Attributes:
        index: in time.
        timestamp: microseconds.
        pose: [4, 4] vehicle to world.
        points: [P, 6] float32 x, y, z (m, vehicle frame), intensity (unbounded), elongation, pixel
            of TOP's range image or -1; return 1 of all lasers before return 2.
        in_zone: [P] bool, in a no-label zone.
        boxes: its labels.
        absent: what the files do not have of it: 'FRONT', 'TOP return 2'.
    """

    index: int
    timestamp: int
    pose: np.ndarray
    points: np.ndarray
    in_zone: np.ndarray
    boxes: list[Box]
    absent: list[str]


def read_segment(
    split: Path, context: str, buffer: Path, is_annotated: bool = True
) -> Iterator[WaymoFrame]:
    """Frames of a segment, each as soon as all its rows were read.

    Frames with a pose but without rows of range images come first and have no points. One row is
    in memory at a time, and as many decoded ones as wait for others of their frame. Beyond a few
    these wait in files, because the format does not define the order of rows, which may differ
    between components.

    Args:
        split: folder that contains the components' folders.
        context: the segment's name.
        buffer: folder for rows that wait; it exists.
        is_annotated: whether there are boxes to read; those of the test split are not public.
    Raises:
        FileNotFoundError, ValueError: a component is missing, damaged or contradicts the others;
            names it.
        OSError: the buffer's disk is full.
    """
    tables = read_tables(split, context, is_annotated)
    waiting = ArrayBuffer(buffer)
    pixel_poses = PixelPoses(tables.paths['lidar_pose'], waiting)
    frames = _FrameAssembler(tables, waiting)
    yield from frames.without_rows()

    path = tables.paths['lidar']
    for stamp, laser, images in read_rows(path, IMAGES):
        has_points = any(image is not None for image in images)
        pose = pixel_poses.take(stamp) if laser == TOP and has_points else None
        with naming_damage(path):
            returns = [
                decode_return(image, number, tables.calibrations[laser], pose, tables.poses[stamp])
                for number, image in enumerate(images)
            ]
        absent = [number for number, image in enumerate(images) if image is None]
        frames.add(stamp, laser, returns, absent)
        if frames.is_complete(stamp):
            yield frames.take(stamp)


class _FrameAssembler:
    """Frames from the points of their rows, which come in any order."""

    def __init__(self, tables: SegmentTables, waiting: ArrayBuffer):
        self._tables = tables
        self._waiting = waiting
        self._index = {stamp: i for i, stamp in enumerate(sorted(tables.poses))}
        self._missing = {stamp: len(lasers) for stamp, lasers in tables.lasers.items()}
        self._absent = {
            stamp: [name for laser, name in LASERS.items() if laser not in lasers]
            for stamp, lasers in tables.lasers.items()
        }

    def without_rows(self) -> Iterator[WaymoFrame]:
        """Frames that have a pose only."""
        for stamp in sorted(self._tables.poses.keys() - self._tables.lasers.keys()):
            yield self._make(stamp, np.zeros((0, 7), np.float32), list(LASERS.values()))

    def add(self, stamp: int, laser: int, returns: list[np.ndarray], absent: list[int]) -> None:
        """Keep the returns of a row, see `decode_return`; absent: numbers of those it lacks."""
        for number, points in enumerate(returns):
            self._waiting.put(f'{stamp}_{number}_{laser}', points)
        self._absent[stamp] += [f'{LASERS[laser]} return {number + 1}' for number in absent]
        self._missing[stamp] -= 1

    def is_complete(self, stamp: int) -> bool:
        """Whether all rows of a frame were added."""
        return not self._missing[stamp]

    def take(self, stamp: int) -> WaymoFrame:
        """The frame, once it is complete."""
        lasers = sorted(self._tables.lasers[stamp])
        parts = [
            self._waiting.take(f'{stamp}_{number}_{laser}') for number in (0, 1) for laser in lasers
        ]
        return self._make(stamp, np.concatenate(parts), sorted(self._absent[stamp]))

    def _make(self, stamp: int, points: np.ndarray, absent: list[str]) -> WaymoFrame:
        """Frame of points [P, 7], see `decode_return`."""
        return WaymoFrame(
            self._index[stamp],
            stamp,
            self._tables.poses[stamp],
            points[:, :6],
            points[:, 6] == 1,
            self._tables.boxes.get(stamp, []),
            absent,
        )
