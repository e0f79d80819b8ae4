"""Files of float32 without a header: the number of columns is found, asked for, or given."""

import numpy as np
import pytest

from benchmarks.point_samples import random_sweep
from stratified3d.datasets.io.point_files import read_points

COUNT = 2520  # rows of any width from 3 to 10 fill rows of any other


def with_columns(points, width, seed=0):
    """Points with ring, time and other columns behind them."""
    rng = np.random.default_rng(seed)
    count = len(points)
    others = [
        rng.integers(0, 64, count),
        np.linspace(0, 0.1, count),
        rng.uniform(0, 1000, count),
        rng.uniform(0, 255, count),
        np.zeros(count),
    ]
    return np.column_stack([points, *others])[:, :width].astype(np.float32)


@pytest.mark.parametrize('suffix', ['.bin', '.pcd.bin'])
@pytest.mark.parametrize('width', [4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize('count', [100, COUNT, 20 * COUNT])
def test_columns_are_found(tmp_path, suffix, width, count):
    path = tmp_path / f'a{suffix}'
    points = random_sweep(count)
    with_columns(points, width).tofile(path)
    np.testing.assert_array_equal(read_points(path), points)
    np.testing.assert_array_equal(read_points(path, width), points)


@pytest.mark.parametrize('suffix', ['.bin', '.pcd.bin'])
def test_coordinates_alone_are_found(tmp_path, suffix):
    path = tmp_path / f'a{suffix}'
    points = random_sweep(COUNT)
    points[:, :3].tofile(path)
    with pytest.warns(UserWarning, match='no intensity'):
        np.testing.assert_array_equal(read_points(path)[:, :3], points[:, :3])


def test_sensors_that_fire_up_and_down_have_four_columns(tmp_path):
    points = random_sweep(COUNT)
    points[::2, 2] += 6
    points.tofile(tmp_path / 'a.bin')
    np.testing.assert_array_equal(read_points(tmp_path / 'a.bin'), points)


@pytest.mark.parametrize('count', [0, 1, 5, 20])
def test_the_name_decides_about_few_points(tmp_path, count):
    points = random_sweep(count)
    points[:, 3] = 1
    for suffix, width in (('.bin', 4), ('.pcd.bin', 5)):
        path = tmp_path / f'a{suffix}'
        with_columns(points, width).tofile(path)
        np.testing.assert_array_equal(read_points(path), points)


def test_numbers_that_do_not_tell_are_asked_for(tmp_path):
    path = tmp_path / 'a.bin'
    points = random_sweep(20)
    with_columns(points, 7).tofile(path)
    with pytest.raises(ValueError, match=r'a.bin: .* points of .*7 .*load_dim'):
        read_points(path)
    np.testing.assert_array_equal(read_points(path, 7), points)


def test_real_sweeps_need_no_load_dim(real_data, tmp_path):
    kitti = real_data / 'kitti_frame/000008.bin'
    (nuscenes,) = (real_data / 'nuscenes_keyframe').glob('*.bin')
    for path, width in ((kitti, 4), (nuscenes, 5)):
        rows = np.fromfile(path, np.float32).reshape(-1, width)
        np.testing.assert_array_equal(read_points(path), rows[:, :4])
        for name in ('other.bin', 'other.pcd.bin'):
            (tmp_path / name).write_bytes(path.read_bytes())
            np.testing.assert_array_equal(read_points(tmp_path / name), rows[:, :4])


@pytest.mark.slow
def test_simulated_sweeps_need_no_load_dim(tiny_set, tmp_path):
    path = next((tiny_set / 'samples/LIDAR_TOP').iterdir())
    rows = np.fromfile(path, np.float32).reshape(-1, 5)
    (tmp_path / 'other.bin').write_bytes(path.read_bytes())
    np.testing.assert_array_equal(read_points(path), rows[:, :4])
    np.testing.assert_array_equal(read_points(tmp_path / 'other.bin'), rows[:, :4])


@pytest.mark.parametrize('load_dim', [None, 4])
@pytest.mark.parametrize(
    'change',
    [
        lambda points: points,
        lambda points: points / 7,
        lambda points: points.round(2),
        lambda points: points.round(),
        lambda points: 1000 * points,
    ],
)
def test_float64_is_refused_with_the_remedy(tmp_path, load_dim, change):
    path = tmp_path / 'a.bin'
    change(random_sweep(1500).astype(np.float64)).tofile(path)
    with pytest.raises(ValueError, match=r'a.bin: .*float64.*astype\(np.float32\).tofile'):
        read_points(path, load_dim)


@pytest.mark.parametrize('kind, named', [('i4', 'int32'), ('i2', 'float32'), ('f2', 'float32')])
def test_other_numbers_are_refused_with_the_remedy(tmp_path, kind, named):
    (100 * random_sweep(1500)).astype(kind).tofile(tmp_path / 'a.bin')
    with pytest.raises(ValueError, match=rf'a.bin: .*{named}.*tofile'):
        read_points(tmp_path / 'a.bin')


def test_wrong_sizes_are_named(tmp_path):
    path = tmp_path / 'a.bin'
    random_sweep(20).tofile(path)
    for load_dim in (0, 2):
        with pytest.raises(ValueError, match=f'load_dim is {load_dim}'):
            read_points(path, load_dim)
    with pytest.raises(ValueError, match='a.bin: 320 bytes .*points of 6.*truncated.*load_dim'):
        read_points(path, 6)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match='a.bin: 317 bytes .*points of 4.*truncated.*load_dim'):
        read_points(path)
