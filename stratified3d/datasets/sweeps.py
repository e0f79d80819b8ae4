"""Loading sweeps where mmdet3d 1.4 misplaces them."""
from __future__ import annotations

import numpy as np
from mmdet3d.datasets.transforms import LoadPointsFromMultiSweeps
from mmdet3d.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadAlignedSweeps(LoadPointsFromMultiSweeps):
    """Add the nearest sweeps to a keyframe, each moved into the keyframe's LiDAR frame.

    With M = lidar2sensor of the info file, a sweep's point p belongs at R^-1 (p - t), R and t being M's rotation and
    translation. mmdet3d 1.4 computes p R - t instead, which is 0.4 m off after half a second of an ordinary turn, and
    draws sweeps at random, in tests too unless told otherwise. Takes the arguments of LoadPointsFromMultiSweeps.
    Without sweeps the keyframe stands alone: it is not repeated.
    """

    def transform(self, results: dict) -> dict:
        """Replace results['points'] [P, 5] by the points of all sweeps, column 4 their age in seconds."""
        points = results['points']
        points.tensor[:, 4] = 0
        clouds = [points]
        for sweep in results.get('lidar_sweeps', [])[:self.sweeps_num]:
            cloud = self._load_points(sweep['lidar_points']['lidar_path']).reshape(-1, self.load_dim).copy()
            if self.remove_close:
                cloud = self._remove_close(cloud)
            matrix = np.asarray(sweep['lidar_points']['lidar2sensor'])
            cloud[:, :3] = np.linalg.solve(matrix[:3, :3], (cloud[:, :3] - matrix[:3, 3]).T).T
            cloud[:, 4] = results['timestamp'] - sweep['timestamp']
            clouds.append(points.new_point(cloud))
        results['points'] = points.cat(clouds)[:, self.use_dim]
        return results
