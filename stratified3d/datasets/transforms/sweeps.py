"""Loading of keyframes and aligned sweeps, with errors that name damaged files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mmdet3d.datasets.transforms import LoadPointsFromFile, LoadPointsFromMultiSweeps
from mmdet3d.registry import TRANSFORMS

from stratified3d.datasets.io.info_files import missing_points


@TRANSFORMS.register_module()
class LoadKeyframe(LoadPointsFromFile):
    """mmdet3d's LoadPointsFromFile, with an error that names a truncated file."""

    def _load_points(self, pts_filename: str) -> np.ndarray:
        return _read(super()._load_points, pts_filename, self.load_dim)


@TRANSFORMS.register_module()
class LoadAlignedSweeps(LoadPointsFromMultiSweeps):
    """Add the nearest sweeps to a keyframe, each moved into the keyframe's LiDAR frame.

    With rotation R and translation t of the info file's lidar2sensor, a sweep's point p moves to
    R^-1 (p - t). mmdet3d 1.4 computes p R - t instead, which is 0.4 m off after half a second of an
    ordinary turn, and draws sweeps at random, by default also in tests. Takes the arguments of
    LoadPointsFromMultiSweeps. A keyframe without sweeps is not repeated.

    Args:
        every: 1 takes the nearest sweeps, 2 every second one, and so on.
    Raises:
        ValueError: every below 1.
    """

    def __init__(self, *args: Any, every: int = 1, **settings: Any):
        super().__init__(*args, **settings)
        if every < 1:
            raise ValueError(f'every is at least 1, not {every}')
        self.every = every

    def transform(self, results: dict) -> dict:
        """Replace the points [P, 5] of `results` by those of all sweeps.

        Column 4 is their age in seconds. `sweep_ages` are those of the sweeps, `sweep_poses` [4, 4]
        move their points from their LiDAR frame to the keyframe's.
        """
        keyframe = results['points']
        keyframe.tensor[:, 4] = 0
        parts = [keyframe]
        sweeps = results.get('lidar_sweeps', [])[self.every - 1 :: self.every][: self.sweeps_num]
        for sweep in sweeps:
            points = self._load_sweep(sweep['lidar_points'])
            points[:, 4] = results['timestamp'] - sweep['timestamp']
            parts.append(keyframe.new_point(points))
        results['sweep_ages'] = [results['timestamp'] - sweep['timestamp'] for sweep in sweeps]
        results['sweep_poses'] = [
            np.linalg.inv(np.asarray(sweep['lidar_points']['lidar2sensor'])) for sweep in sweeps
        ]
        results['points'] = keyframe.cat(parts)[:, self.use_dim]
        return results

    def _load_sweep(self, lidar: dict) -> np.ndarray:
        """[P, load_dim] points of a sweep in the keyframe's LiDAR frame."""
        numbers = _read(self._load_points, lidar['lidar_path'], self.load_dim)
        points = numbers.reshape(-1, self.load_dim).copy()
        if self.remove_close:
            points = self._remove_close(points)
        lidar2sensor = np.asarray(lidar['lidar2sensor'])
        rotation = lidar2sensor[:3, :3]
        offset = points[:, :3] - lidar2sensor[:3, 3]
        points[:, :3] = np.linalg.solve(rotation, offset.T).T
        return points


def _read(load: Callable[[str], np.ndarray], path: str, load_dim: int) -> np.ndarray:
    """Numbers of a point file, checked to be whole rows of load_dim."""
    try:
        numbers = load(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(missing_points(path)) from error
    except ValueError as error:
        raise ValueError(
            f'{path}: not a whole number of float32: the file is truncated ({error})'
        ) from error
    if numbers.size % load_dim:
        raise ValueError(
            f'{path}: {numbers.size} numbers are not a whole number of points of {load_dim} '
            'columns: the file is truncated, or load_dim is not its number of columns'
        )
    return numbers
