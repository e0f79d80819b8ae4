import pickle

import numpy as np
import pytest

from stratified3d.datasets.nuscenes.frames import read_frame


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)


@pytest.fixture
def info(tmp_path, points):
    points.tofile(tmp_path / 'a__LIDAR_TOP__1.pcd.bin')
    instance = dict(
        bbox_3d=[1.0, 2.0, 0.5, 4.0, 2.0, 1.0, 0.3],
        bbox_label_3d=1,
        velocity=[float('nan'), 2.0],
        num_lidar_pts=7,
    )
    content = dict(
        metainfo=dict(categories=dict(car=0, truck=1), dataset='nuscenes'),
        data_list=[
            dict(
                lidar_points=dict(lidar_path='a__LIDAR_TOP__1.pcd.bin', num_pts_feats=5),
                instances=[instance, instance | dict(bbox_label_3d=-1)],
            )
        ],
    )
    path = tmp_path / 'info.pkl'
    path.write_bytes(pickle.dumps(content))
    return path


def test_keyframe_has_its_points_boxes_and_counts(info, points):
    frame = read_frame(info)
    assert (
        np.array_equal(frame.points[:, :4], points[:, :4]) and not frame.points[:, 4].any()
    )  # the ring is no time
    assert frame.names == ['truck'] and frame.num_points.tolist() == [7]
    np.testing.assert_allclose(frame.boxes, [[1, 2, 0, 4, 2, 1, 0.3, 0, 2]], rtol=1e-6)


def test_real_keyframe_has_its_points_and_boxes(real_data):
    frame = read_frame(next((real_data / 'nuscenes_keyframe').glob('*.pkl')))
    assert frame.points.shape == (34688, 5) and len(frame.boxes) == len(frame.names) == 68
    assert frame.names.count('pedestrian') > 10


def test_info_files_without_the_frame_are_named(tmp_path, info):
    with pytest.raises(FileNotFoundError, match='there is no info file'):
        read_frame(tmp_path / 'none.pkl')
    with pytest.raises(ValueError, match='1 frames, there is no frame 4'):
        read_frame(info, 4)
    content = pickle.loads(info.read_bytes())
    info.write_bytes(pickle.dumps(content | dict(metainfo=dict(dataset='kitti', categories={}))))
    with pytest.raises(ValueError, match="written for dataset 'kitti'"):
        read_frame(info)
    info.write_bytes(pickle.dumps(content)[:50])
    with pytest.raises(ValueError, match='damaged'):
        read_frame(info)
    info.write_bytes(pickle.dumps([content]))
    with pytest.raises(ValueError, match='damaged'):
        read_frame(info)
    info.write_bytes(pickle.dumps(content))
    (tmp_path / 'a__LIDAR_TOP__1.pcd.bin').unlink()
    with pytest.raises(FileNotFoundError, match='its points are neither at'):
        read_frame(info)
