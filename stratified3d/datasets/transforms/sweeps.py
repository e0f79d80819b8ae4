"""Loading keyframes and sweeps, where mmdet3d 1.4 misplaces sweeps and reads damaged files without
a word."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mmdet3d.datasets.transforms import LoadPointsFromFile, LoadPointsFromMultiSweeps
from mmdet3d.registry import TRANSFORMS

from stratified3d.datasets.io.info_files import missing_points


@TRANSFORMS.register_module()
class LoadKeyframe(LoadPointsFromFile):
    """mmdet3d's LoadPointsFromFile, arguments and all, with an error that names a truncated
    file."""

    def _load_points(self, pts_filename: str) -> np.ndarray:
        return _read(super()._load_points, pts_filename, self.load_dim)


@TRANSFORMS.register_module()
class LoadAlignedSweeps(LoadPointsFromMultiSweeps):
    """Add the nearest sweeps to a keyframe, each moved into the keyframe's LiDAR frame.

    With M = lidar2sensor of the info file, a sweep's point p belongs at R^-1 (p - t), R and t being
    M's rotation and translation. mmdet3d 1.4 computes p R - t instead, which is 0.4 m off after
    half a second of an ordinary turn, and draws sweeps at random, in tests too unless told
    otherwise. Takes the arguments of LoadPointsFromMultiSweeps. Without sweeps the keyframe stands
    alone: it is not repeated.
    """

    def transform(self, results: dict) -> dict:
        """Replace results['points'] [P, 5] by the points of all sweeps, column 4 their age in
        seconds."""
        points = results['points']
        points.tensor[:, 4] = 0
        clouds = [points]
        for sweep in results.get('lidar_sweeps', [])[: self.sweeps_num]:
            path = sweep['lidar_points']['lidar_path']
            cloud = _read(self._load_points, path, self.load_dim).reshape(-1, self.load_dim).copy()
            if self.remove_close:
                cloud = self._remove_close(cloud)
            matrix = np.asarray(sweep['lidar_points']['lidar2sensor'])
            cloud[:, :3] = np.linalg.solve(matrix[:3, :3], (cloud[:, :3] - matrix[:3, 3]).T).T
            cloud[:, 4] = results['timestamp'] - sweep['timestamp']
            clouds.append(points.new_point(cloud))
        results['points'] = points.cat(clouds)[:, self.use_dim]
        return results


def _read(load: Callable[[str], np.ndarray], path: str, load_dim: int) -> np.ndarray:
    try:
        numbers = load(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(missing_points(path)) from error
    except ValueError as error:
        raise ValueError(
            f'{path}: no whole number of float32: the file is truncated ({error})'
        ) from error
    if numbers.size % load_dim:
        raise ValueError(
            f'{path}: {numbers.size} numbers are no whole number of points of {load_dim} columns: the '
            'file is truncated, or load_dim is not its number of columns'
        )
    return numbers
