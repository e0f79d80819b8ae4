"""Frames of a segment of Waymo's perception v2 (parquet), one at a time, whatever order its rows
are in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stratified3d.datasets.waymo.components import (
    IMAGES,
    LASERS,
    POSE,
    TOP,
    Box,
    Image,
    Laser,
    naming_damage,
    read_calibrations,
    read_lasers,
    read_lidar_boxes,
    read_rows,
    read_vehicle_poses,
)
from stratified3d.datasets.waymo.range_images import beam_inclinations, image_points
from stratified3d.resumable import name_file

_HELD = 16  # rows that wait for others in memory; further ones wait on disk


class WaymoFrame(NamedTuple):
    """index in time; timestamp (microseconds); pose [4, 4] vehicle to world; points [P, 6] float32
    x, y, z (m, vehicle frame), intensity (unbounded), elongation, pixel of TOP's range image or -1,
    return 1 of all lasers before return 2; in_zone [P] bool, in a no-label zone; boxes; absent,
    what the files do not have of it: 'FRONT', 'TOP return 2'."""

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
    """The frames of a segment, each once all its rows were met; one that has none, with a pose
    only, has no points.

    One row is held at a time, and as many finished ones as wait for others; beyond a few these wait
    in files, since nothing is said about the order of rows, and it may differ between components.

    Args:
        split: folder that holds the components' folders.
        context: the segment's name.
        buffer: folder for rows that wait; it exists.
        is_annotated: whether there are boxes to read; those of the test split are not public.
    Raises:
        FileNotFoundError, ValueError: a component is missing, damaged or contradicts the others;
        names it.
        OSError: the buffer's disk is full.
    """
    paths = {
        part: split / part / f'{context}.parquet'
        for part in (
            'lidar',
            'lidar_pose',
            'lidar_calibration',
            'vehicle_pose',
            *(['lidar_box'] if is_annotated else []),
        )
    }
    for path in paths.values():
        if not path.is_file():
            raise FileNotFoundError(
                f'there is no {path}: download the component {path.parent.name} of this segment'
            )
    poses = read_vehicle_poses(paths['vehicle_pose'])
    lasers = read_calibrations(paths['lidar_calibration'])
    boxes = read_lidar_boxes(paths['lidar_box']) if is_annotated else {}
    present = _lasers_by_frame(paths, set(lasers), set(poses))
    if unknown := boxes.keys() - poses.keys():
        raise ValueError(
            f'{paths["lidar_box"]}: has boxes of {len(unknown)} frames that {paths["vehicle_pose"]} does '
            f'not have, {min(unknown)} first'
        )
    index = {stamp: i for i, stamp in enumerate(sorted(poses))}
    for stamp in sorted(poses.keys() - present.keys()):
        yield WaymoFrame(
            index[stamp],
            stamp,
            poses[stamp],
            np.zeros((0, 6), np.float32),
            np.zeros(0, bool),
            boxes.get(stamp, []),
            list(LASERS.values()),
        )
    waiting, missing = _Buffer(buffer), {stamp: len(found) for stamp, found in present.items()}
    absent = {
        stamp: [name for laser, name in LASERS.items() if laser not in found]
        for stamp, found in present.items()
    }
    pixel_poses = _PixelPoses(paths['lidar_pose'], waiting)
    for stamp, laser, *images in read_rows(paths['lidar'], IMAGES):
        pose = (
            pixel_poses.take(stamp)
            if laser == TOP and any(image is not None for image in images)
            else None
        )
        with naming_damage(paths['lidar']):
            returns = [
                _points(image, number, lasers[laser], pose, poses[stamp])
                for number, image in enumerate(images)
            ]
        for number, points in enumerate(returns):
            waiting.put(f'{stamp}_{number}_{laser}', points)
            if images[number] is None:
                absent[stamp].append(f'{LASERS[laser]} return {number + 1}')
        missing[stamp] -= 1
        if not missing[stamp]:
            every = np.concatenate(
                [
                    waiting.take(f'{stamp}_{number}_{laser}')
                    for number in (0, 1)
                    for laser in sorted(present[stamp])
                ]
            )
            yield WaymoFrame(
                index[stamp],
                stamp,
                poses[stamp],
                every[:, :6],
                every[:, 6] == 1,
                boxes.get(stamp, []),
                sorted(absent[stamp]),
            )


def _points(
    image: Image, number: int, laser: Laser, pose: np.ndarray | None, vehicle_pose: np.ndarray
) -> np.ndarray:
    """[P, 7] float32 of one return: a frame's columns, then whether a no-label zone holds the point
    (1)."""
    if image is None:
        return np.zeros((0, 7), np.float32)
    values = _shaped(image, 4)
    rows, columns = values.shape[:2]
    inclinations = beam_inclinations(*laser.inclinations, rows)
    if pose is not None and pose.shape[:2] != (rows, columns):
        raise ValueError(
            f'a range image of {rows} x {columns} pixels has {pose.shape[0]} x {pose.shape[1]} poses in '
            'lidar_pose'
        )
    points, pixel = image_points(values, inclinations, laser.extrinsic, pose, vehicle_pose)
    found = np.empty((len(points), 7), np.float32)
    found[:, :3] = points
    found[:, [3, 4, 6]] = values.reshape(-1, 4)[pixel, 1:]
    found[:, 5] = -1 if pose is None else number * rows * columns + pixel
    if np.isnan(found).any():
        raise ValueError(
            'a range image holds an intensity, elongation or zone that is not a number'
        )
    return found


def _shaped(image: Image, channels: int) -> np.ndarray:
    values, shape = image
    if len(shape) != 3 or shape[2] != channels or np.prod(shape) != len(values):
        raise ValueError(
            f'a range image of shape {list(shape)} has {len(values)} values; [rows, columns, {channels}] '
            'is meant'
        )
    return values.reshape(shape)


class _PixelPoses:
    """Pixel poses by timestamp, from rows in an order of their own."""

    def __init__(self, path: Path, waiting: _Buffer):
        self._path, self._rows, self._waiting, self._left = (
            path,
            read_rows(path, [POSE]),
            waiting,
            set(),
        )

    def take(self, stamp: int) -> np.ndarray:
        """[H, W, 6] of TOP; ValueError if there is none."""
        if stamp in self._left:
            self._left.remove(stamp)
            return self._waiting.take(f'{stamp}_pose')
        for other, laser, image in self._rows:
            if laser != TOP:
                continue
            with naming_damage(self._path):
                if image is None:
                    raise ValueError(f'frame {other} has no pixel poses')
                pose = _shaped(image, 6)
            if other == stamp:
                return pose
            self._left.add(other)
            self._waiting.put(f'{other}_pose', pose)
        raise ValueError(f'{self._path}: has no pixel poses of TOP for frame {stamp}')


class _Buffer:
    """Arrays by name, taken once; the few latest in memory, the others as files."""

    def __init__(self, folder: Path):
        self._folder, self._held = folder, {}

    def put(self, name: str, array: np.ndarray) -> None:
        """Keep one."""
        self._held[name] = array.copy() if array.base is not None else array
        if len(self._held) > _HELD:
            oldest = next(iter(self._held))
            path = self._folder / f'{oldest}.npy'
            with name_file(path):
                np.save(path, self._held.pop(oldest))

    def take(self, name: str) -> np.ndarray:
        """Give one back."""
        if name in self._held:
            return self._held.pop(name)
        path = self._folder / f'{name}.npy'
        array = np.load(path)
        path.unlink()
        return array


def _lasers_by_frame(
    paths: dict[str, Path], calibrated: set[int], posed: set[int]
) -> dict[int, set[int]]:
    """{timestamp: lasers with a row of range images}, after a look at all keys."""
    found = read_lasers(paths['lidar'])
    for stamp, lasers in found.items():
        if len(set(lasers)) < len(lasers) or set(lasers) - calibrated:
            raise ValueError(
                f'{paths["lidar"]}: frame {stamp} has rows of the lasers {sorted(lasers)}, '
                f'{paths["lidar_calibration"]} calibrates {sorted(calibrated)}'
            )
    if lost := found.keys() - posed:
        raise ValueError(
            f'{paths["lidar"]}: {len(lost)} of its frames are not in vehicle_pose, {min(lost)} first'
        )
    return {stamp: set(lasers) for stamp, lasers in found.items()}
