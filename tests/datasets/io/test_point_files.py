"""Every format gives its points; what is damaged, unknown or no sweep is refused with a remedy."""

import struct
import tracemalloc
import warnings

import numpy as np
import pytest

from benchmarks.point_samples import WRITERS, available_samples, random_sweep
from stratified3d.datasets.io.point_files import SUFFIXES, read_points


@pytest.fixture
def points():
    return random_sweep(1500)


@pytest.mark.parametrize('name', WRITERS)
@pytest.mark.parametrize('count', [1, 1500])
def test_every_format_gives_the_same_points(tmp_path, name, count):
    if name not in available_samples():
        pytest.skip('needs laspy and lazrs')
    points = random_sweep(count)
    WRITERS[name](tmp_path / name, points)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found = read_points(tmp_path / name)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, points, atol=1e-3 if 'survey' in name else 0)


@pytest.mark.parametrize('name', WRITERS)
@pytest.mark.parametrize('count', [2000, 20_000])
def test_a_file_takes_less_memory_than_ten_times_its_size(tmp_path, name, count):
    if name not in available_samples():
        pytest.skip('needs laspy and lazrs')
    path = tmp_path / name
    WRITERS[name](path, random_sweep(count))
    read_points(path)  # imports what it needs
    assert traced_memory(path) < 10 * path.stat().st_size


@pytest.mark.parametrize('rows', [3, 4, 5, 12])
def test_transposed_arrays_are_refused(tmp_path, rows):
    points = np.hstack([random_sweep(200), np.zeros((200, 8))])[:, :rows]
    np.save(tmp_path / 'a.npy', points.T)
    np.savez(tmp_path / 'a.npz', points=points.T)
    for name in ('a.npy', 'a.npz'):
        with pytest.raises(ValueError, match=rf'{name}: .*\({rows}, 200\).*transpose'):
            read_points(tmp_path / name)
    np.save(tmp_path / 'few.npy', points[:rows])
    assert len(read_points(tmp_path / 'few.npy')) == rows


def traced_memory(path):
    """Bytes that reading a file takes at most."""
    tracemalloc.start()
    try:
        read_points(path)
    except ValueError:  # refused
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize('name', ['arrays.npz', 'bytes.npz', 'survey.laz'])
def test_files_that_grow_as_much_as_allowed_take_ten_times_their_size(tmp_path, name):
    """Points that are mostly alike are compressed to little; 1.5 MiB are free for each file."""
    if name not in (*available_samples(), 'bytes.npz'):
        pytest.skip('needs laspy and lazrs')
    path = tmp_path / name
    outcomes = set()
    for share in (0.1, 0.5, 1.0):
        points = random_sweep(200_000).clip(-100, 100)
        points[int(share * len(points)) :] = points[:1]
        if name == 'bytes.npz':
            np.savez_compressed(path, points=points[:, :3].astype(np.int8))
        else:
            WRITERS[name](path, points)
        assert traced_memory(path) < 10 * path.stat().st_size + 3 * 2**19
        outcomes.add(is_too_large(path))
    assert outcomes == {True, False}


def is_too_large(path):
    try:
        read_points(path)
    except ValueError as error:
        return 'over 8 times as many' in str(error)
    return False


def test_every_suffix_has_a_sample():
    assert {'.' + name.rsplit('.')[-1] for name in WRITERS} == set(SUFFIXES)


def test_suffixes_may_be_in_capitals(tmp_path, points):
    WRITERS['binary.pcd'](tmp_path / 'CLOUD.PCD', points)
    np.testing.assert_array_equal(read_points(tmp_path / 'CLOUD.PCD'), points)


def test_missing_and_unknown_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.bin'):
        read_points(tmp_path / 'none.bin')
    for name, remedy in [('a.png', r'\.bin, \.npy'), ('a.bag', 'pcl_ros'), ('a.mcap', 'bag')]:
        (tmp_path / name).write_text('hello')
        with pytest.raises(ValueError, match=f'{name}.*{remedy}'):
            read_points(tmp_path / name)


@pytest.mark.parametrize(
    'name', [name for name in WRITERS if not name.endswith(('.bin', '.txt', '.csv'))]
)
@pytest.mark.parametrize('share', [0.0, 0.01, 0.1, 0.6, 0.9])
def test_truncated_files_are_named(tmp_path, points, name, share):
    if name not in available_samples():
        pytest.skip('needs laspy and lazrs')
    path = tmp_path / name
    WRITERS[name](path, points)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=f'{name}.*(truncated|no points could be read)'):
        read_points(path)


def test_compressed_points_of_another_size_are_named(tmp_path, points):
    if 'survey.laz' not in available_samples():
        pytest.skip('needs laspy and lazrs')
    path = tmp_path / 'survey.laz'
    WRITERS['survey.laz'](path, points)
    content = path.read_bytes()
    item = struct.pack('<3H', 6, 20, 2)  # what every compressed point begins with
    assert content.count(item) == 1
    path.write_bytes(content.replace(item, struct.pack('<3H', 6, 20 + 8192, 2)))
    with pytest.raises(ValueError, match='points of 34 bytes, its compression of 8226'):
        read_points(path)


@pytest.mark.parametrize('content', [b'', b'garbage', b'PK\x03\x04', b'\x93NUMPY\x01\x00'])
@pytest.mark.parametrize('suffix', sorted(set(SUFFIXES) - {'.bin', '.las', '.laz'}))
def test_files_of_another_kind_are_named(tmp_path, content, suffix):
    path = tmp_path / f'cloud{suffix}'
    path.write_bytes(content)
    if not content and suffix in ('.txt', '.csv'):
        with pytest.warns(UserWarning, match='no intensity'):
            assert read_points(path).shape == (0, 4)
        return
    with pytest.raises(ValueError, match='cloud'):
        read_points(path)


@pytest.mark.parametrize('name', ['crash.pcd', 'hang.pcd', 'header.npy', 'header.ply'])
def test_files_that_ended_other_readers(real_data, name):
    with pytest.raises(ValueError, match=name):
        read_points(real_data / 'point_files' / name)


@pytest.mark.parametrize('suffix', ['.csv', '.npz', '.feather'])
@pytest.mark.parametrize(
    'name', ['Intensity', 'i', 'reflectivity', 'REFLECTANCE', 'scalar_Intensity', 'remission']
)
def test_intensity_has_many_names(tmp_path, points, suffix, name):
    path = tmp_path / f'cloud{suffix}'
    columns = dict(zip(('x', 'Y', 'z', name), points.T))
    if suffix == '.npz':
        np.savez(path, **columns)
    elif suffix == '.feather':
        import pyarrow.feather

        pyarrow.feather.write_feather(pyarrow.table(columns), path)
    else:
        np.savetxt(path, points, delimiter=',', header=','.join(columns), comments='')
    np.testing.assert_allclose(read_points(path), points, rtol=1e-6)


def test_missing_intensity_is_a_warning(tmp_path, points):
    np.savetxt(tmp_path / 'a.csv', points, delimiter=',', header='x,y,z,range', comments='')
    with pytest.warns(UserWarning, match='a.csv: .*no intensity.*remission.*range') as caught:
        found = read_points(tmp_path / 'a.csv')
    assert len(caught) == 1
    np.testing.assert_allclose(found[:, :3], points[:, :3], rtol=1e-6)
    assert not found[:, 3].any()


def test_missing_coordinates_are_named(tmp_path, points):
    np.savetxt(tmp_path / 'a.csv', points, delimiter=',', header='x,y,height,i', comments='')
    with pytest.raises(ValueError, match='a.csv: .*no column z.*height'):
        read_points(tmp_path / 'a.csv')


def test_numbers_that_are_no_sweep_are_refused(tmp_path, points):
    points[:, 2] = np.hypot(points[:, 0], points[:, 1])
    for name in ('array.npy', 'binary.pcd', 'plain.txt'):
        WRITERS[name](tmp_path / name, points)
        with pytest.raises(ValueError, match=f'{name}: z is the distance'):
            read_points(tmp_path / name)


def test_organized_clouds_may_be_mostly_empty(tmp_path, points):
    points[: len(points) * 3 // 4] = np.nan
    for name in ('binary.pcd', 'ascii.pcd'):
        WRITERS[name](tmp_path / name, points)
        np.testing.assert_array_equal(read_points(tmp_path / name), points)
    WRITERS['array.npy'](tmp_path / 'array.npy', points)
    with pytest.raises(ValueError, match='array.npy: 75% .*NaN'):
        read_points(tmp_path / 'array.npy')


@pytest.mark.parametrize(
    'scale, kind, seen', [(1000, np.int32, 'int32.* from -'), (2, np.uint8, 'uint8.* from 0')]
)
def test_integers_are_refused_unless_they_are_meters(tmp_path, points, scale, kind, seen):
    np.save(tmp_path / 'a.npy', np.abs(points * scale) if kind == np.uint8 else points * scale)
    array = np.load(tmp_path / 'a.npy').astype(kind)
    np.save(tmp_path / 'a.npy', array)
    with pytest.raises(ValueError, match=f'a.npy: .*integers.*{seen}'):
        read_points(tmp_path / 'a.npy')
    np.save(tmp_path / 'a.npy', points.astype(np.int16))
    np.testing.assert_array_equal(read_points(tmp_path / 'a.npy'), points.astype(np.int16))
