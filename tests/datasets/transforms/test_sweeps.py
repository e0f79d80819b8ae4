import numpy as np
import pytest
import torch
from mmdet3d.datasets.transforms import LoadPointsFromMultiSweeps
from mmdet3d.structures import LiDARPoints
from scipy.spatial.transform import Rotation

from stratified3d.datasets.transforms.sweeps import LoadAlignedSweeps, LoadKeyframe

COLUMNS = [0, 1, 2, 3, 4]


def pose(angle, x, y, z=0.0):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler('zyx', [angle, 0.02, -0.01]).as_matrix()
    matrix[:3, 3] = x, y, z
    return matrix


@pytest.fixture
def turn(tmp_path):
    """A static world seen from a car that drives 8 m/s and turns 11.5 degrees/s; sweeps 0.05 to 0.5
    s old."""
    world = np.random.default_rng(0).uniform(-30, 30, (400, 4)) + [5000, 3000, 0, 40]
    poses = [pose(-0.2 * age, 5000 - 8 * age, 3000, 1.8) for age in np.arange(11) * 0.05]
    clouds = []
    for i, sensor2global in enumerate(poses):
        local = np.linalg.inv(sensor2global) @ np.vstack([world[:, :3].T, np.ones(len(world))])
        cloud = np.column_stack([local[:3].T, world[:, 3], np.full(len(world), 7.0)]).astype(
            np.float32
        )
        cloud.tofile(tmp_path / f'{i}.bin')
        clouds.append(cloud)
    sweeps = [
        dict(
            timestamp=100 - 0.05 * i,
            lidar_points=dict(
                lidar_path=str(tmp_path / f'{i}.bin'),
                lidar2sensor=(np.linalg.inv(poses[i]) @ poses[0]).tolist(),
            ),
        )
        for i in range(1, 11)
    ]

    def load(transform):
        results = dict(
            points=LiDARPoints(torch.from_numpy(clouds[0].copy()), points_dim=5),
            timestamp=100.0,
            lidar_sweeps=sweeps,
        )
        return transform.transform(results)['points'].tensor.numpy()

    return load, clouds[0]


def test_static_surfaces_agree_across_sweeps(turn):
    load, key = turn
    points = load(LoadAlignedSweeps(sweeps_num=10, remove_close=False, use_dim=COLUMNS)).reshape(
        11, -1, 5
    )
    assert np.abs(points[..., :3] - key[:, :3]).max() < 1e-3
    np.testing.assert_allclose(points[:, 0, 4], np.arange(11) * 0.05, atol=1e-5)
    assert np.array_equal(points[0, :, 3], key[:, 3])


def test_mmdet3d_is_off_by_decimeters(turn):
    """What is replaced: if this fails, mmdet3d has fixed it and the class is no longer
    needed."""
    load, key = turn
    stock = LoadPointsFromMultiSweeps(
        sweeps_num=10, test_mode=True, remove_close=False, use_dim=COLUMNS
    )
    points = load(stock).reshape(11, -1, 5)
    error = np.linalg.norm(points[10, :, :3] - key[:, :3], axis=1)
    assert error.min() > 0.2


def test_the_nearest_sweeps_are_taken_every_time(turn):
    load, _ = turn
    transform = LoadAlignedSweeps(sweeps_num=3, remove_close=False, use_dim=COLUMNS)
    first, second = load(transform), load(transform)
    assert np.array_equal(first, second)
    assert np.allclose(np.unique(first[:, 4].round(3)), [0, 0.05, 0.1, 0.15])


def test_close_points_of_sweeps_are_removed(turn):
    load, key = turn
    removed = load(LoadAlignedSweeps(sweeps_num=10, remove_close=True, use_dim=COLUMNS))
    kept = load(LoadAlignedSweeps(sweeps_num=10, remove_close=False, use_dim=COLUMNS))
    assert len(key) < len(removed) <= len(kept)


def test_without_sweeps_the_keyframe_stands_alone():
    points = LiDARPoints(torch.ones(5, 5), points_dim=5)
    transform = LoadAlignedSweeps(sweeps_num=9, pad_empty_sweeps=True, use_dim=COLUMNS)
    results = transform.transform(dict(points=points, timestamp=1.0))
    assert results['points'].tensor.shape == (5, 5) and not results['points'].tensor[:, 4].any()


def test_truncated_files_are_named(turn, tmp_path):
    load, _ = turn
    path = tmp_path / '2.bin'
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match='2.bin: 1998 numbers .*points of 5'):
        load(LoadAlignedSweeps(sweeps_num=10, use_dim=COLUMNS))
    keyframe = LoadKeyframe(coord_type='LIDAR', load_dim=5, use_dim=5)
    with pytest.raises(ValueError, match='2.bin: 1998 numbers'):
        keyframe.transform(dict(lidar_points=dict(lidar_path=str(path))))
