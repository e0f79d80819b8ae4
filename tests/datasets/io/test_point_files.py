import numpy as np
import pytest

from stratified3d.datasets.io.point_files import read_points


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)


def write_cloud(path, points, is_ascii):
    import open3d

    cloud = open3d.t.geometry.PointCloud(points[:, :3].copy())
    cloud.point['intensity'] = points[:, 3:4].copy()
    open3d.t.io.write_point_cloud(str(path), cloud, write_ascii=is_ascii)


@pytest.mark.parametrize('suffix', ['.bin', '.pcd.bin', '.npy', '.pcd', '.ply'])
def test_every_format_gives_the_same_points(tmp_path, points, suffix):
    path = tmp_path / f'cloud{suffix}'
    if suffix == '.npy':
        np.save(path, points)
    elif suffix.endswith('.bin'):
        points[:, : 5 if suffix == '.pcd.bin' else 4].tofile(path)
    else:
        write_cloud(path, points, is_ascii=False)
    np.testing.assert_allclose(read_points(path), points[:, :4], atol=1e-6)


def test_damaged_point_files_are_named(tmp_path, points):
    with pytest.raises(FileNotFoundError, match='there is no point file .*none.bin'):
        read_points(tmp_path / 'none.bin')
    short = tmp_path / 'short.bin'
    short.write_bytes(points.tobytes()[:-3])
    with pytest.raises(ValueError, match='short.bin: 397 bytes .*points of 4'):
        read_points(short)
    (tmp_path / 'notes.txt').write_text('hello')
    with pytest.raises(ValueError, match='.bin, .npy, .pcd, .ply'):
        read_points(tmp_path / 'notes.txt')
    np.save(tmp_path / 'flat.npy', points[:, 0])
    with pytest.raises(ValueError, match=r'flat.npy: .*\(20,\)'):
        read_points(tmp_path / 'flat.npy')
    (tmp_path / 'broken.ply').write_bytes(b'ply\n')
    with pytest.raises(ValueError, match='broken.ply: .*no complete .ply header'):
        read_points(tmp_path / 'broken.ply')


@pytest.mark.parametrize('suffix', ['.pcd', '.ply'])
@pytest.mark.parametrize('is_ascii', [True, False])
@pytest.mark.parametrize('share', [0.0, 0.1, 0.6, 0.9])
def test_truncated_clouds_are_named(tmp_path, points, suffix, is_ascii, share):
    path = tmp_path / f'cloud{suffix}'
    write_cloud(path, points, is_ascii)
    np.testing.assert_allclose(read_points(path), points[:, :4], atol=1e-5)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match='truncated|no points could be read'):
        read_points(path)


@pytest.mark.parametrize('content', [b'', b'garbage', b'PK\x03\x04'])
def test_files_that_are_no_arrays_are_named(tmp_path, content):
    path = tmp_path / 'cloud.npy'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='cloud.npy: empty, truncated'):
        read_points(path)
