"""A segment of Waymo's perception v2 as tables keyed by timestamp and laser, in whatever order the
rows of its files are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stratified3d.datasets.waymo.components import (
    POSE,
    TOP,
    Box,
    naming_damage,
    read_calibrations,
    read_lasers,
    read_lidar_boxes,
    read_rows,
    read_vehicle_poses,
)
from stratified3d.datasets.waymo.range_images import LaserCalibration, shape_image
from stratified3d.resumable import name_file

_MAX_IN_MEMORY = 16  # arrays that wait in memory; further ones wait on disk


@dataclass(frozen=True)
class SegmentTables:
    """What is known of a segment before its range images are read.

    Attributes:
        paths: {component: its file}.
        poses: {timestamp: [4, 4] vehicle to world}; every frame has one.
        calibrations: {laser: its calibration}.
        boxes: {timestamp: its boxes}; frames without boxes are absent.
        lasers: {timestamp: lasers that have a row of range images}; frames without are absent.
    """

    paths: dict[str, Path]
    poses: dict[int, np.ndarray]
    calibrations: dict[int, LaserCalibration]
    boxes: dict[int, list[Box]]
    lasers: dict[int, set[int]]


def read_tables(split: Path, context: str, is_annotated: bool = True) -> SegmentTables:
    """Tables of all small components, and the keys of the range images.

    Args:
        split: folder that contains the components' folders.
        context: the segment's name.
        is_annotated: whether there are boxes to read.
    Raises:
        FileNotFoundError, ValueError: a component is missing, damaged or contradicts the others;
            names it.
    """
    paths = _find_components(split, context, is_annotated)
    poses = read_vehicle_poses(paths['vehicle_pose'])
    calibrations = read_calibrations(paths['lidar_calibration'])
    boxes = read_lidar_boxes(paths['lidar_box']) if is_annotated else {}
    lasers = read_lasers(paths['lidar'])

    _check_lasers(paths, lasers, set(calibrations))
    if lost := lasers.keys() - poses.keys():
        raise ValueError(
            f'{paths["lidar"]}: {len(lost)} of its frames are not in vehicle_pose, the first at '
            f'timestamp {min(lost)}'
        )
    if lost := boxes.keys() - poses.keys():
        raise ValueError(
            f'{paths["lidar_box"]}: contains boxes of {len(lost)} frames that '
            f'{paths["vehicle_pose"]} does not have, the first at timestamp {min(lost)}'
        )
    unique = {stamp: set(names) for stamp, names in lasers.items()}
    return SegmentTables(paths, poses, calibrations, boxes, unique)


def _find_components(split: Path, context: str, is_annotated: bool) -> dict[str, Path]:
    components = ['lidar', 'lidar_pose', 'lidar_calibration', 'vehicle_pose']
    if is_annotated:
        components.append('lidar_box')
    paths = {component: split / component / f'{context}.parquet' for component in components}
    for component, path in paths.items():
        if not path.is_file():
            raise FileNotFoundError(
                f'{path} does not exist: download the component {component} of this segment'
            )
    return paths


def _check_lasers(paths: dict[str, Path], lasers: dict[int, list[int]], known: set[int]) -> None:
    """Raise ValueError where a frame has two rows of a laser, or one that is not calibrated."""
    for stamp, found in lasers.items():
        if len(set(found)) < len(found) or set(found) - known:
            raise ValueError(
                f'{paths["lidar"]}: frame {stamp} has rows of the lasers {sorted(found)}, '
                f'{paths["lidar_calibration"]} calibrates {sorted(known)}'
            )


class ArrayBuffer:
    """Arrays by name, each taken once; the latest few in memory, the others as files."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._in_memory: dict[str, np.ndarray] = {}

    def put(self, name: str, array: np.ndarray) -> None:
        """Keep an array until it is taken.

        Raises:
            OSError: the disk is full; names the file.
        """
        # a view would keep all that it is a view of
        self._in_memory[name] = array.copy() if array.base is not None else array
        if len(self._in_memory) > _MAX_IN_MEMORY:
            oldest = next(iter(self._in_memory))
            path = self._folder / f'{oldest}.npy'
            with name_file(path):
                np.save(path, self._in_memory.pop(oldest))

    def take(self, name: str) -> np.ndarray:
        """Give an array back and forget it."""
        if name in self._in_memory:
            return self._in_memory.pop(name)
        path = self._folder / f'{name}.npy'
        array = np.load(path)
        path.unlink()
        return array


class PixelPoses:
    """Pixel poses of TOP by timestamp; rows that are met before they are asked for wait."""

    def __init__(self, path: Path, waiting: ArrayBuffer):
        self._path = path
        self._rows = read_rows(path, [POSE])
        self._waiting = waiting
        self._waiting_stamps: set[int] = set()

    def take(self, stamp: int) -> np.ndarray:
        """[H, W, 6] of a frame, once.

        Raises:
            ValueError: there are none, or the file is damaged; names it.
        """
        if stamp in self._waiting_stamps:
            self._waiting_stamps.remove(stamp)
            return self._waiting.take(f'{stamp}_pose')

        for row in self._rows:
            if row.laser != TOP:
                continue
            with naming_damage(self._path):
                image = row.images[0]
                if image is None:
                    raise ValueError(f'frame {row.timestamp} has no pixel poses')
                pose = shape_image(image, 6)
            if row.timestamp == stamp:
                return pose
            self._waiting_stamps.add(row.timestamp)
            self._waiting.put(f'{row.timestamp}_pose', pose)
        raise ValueError(f'{self._path}: has no pixel poses of TOP for frame {stamp}')
