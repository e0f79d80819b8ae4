"""Headers of .pcd files, right and wrong, and LZF."""

import time

import numpy as np
import pytest

from benchmarks.point_samples import WRITERS, random_sweep
from stratified3d.datasets.io.formats.lzf import decompress_lzf
from stratified3d.datasets.io.point_files import read_points


@pytest.fixture
def points():
    return random_sweep(1200)


def write_records(path, points, header=(), compressed=False):
    """A cloud with padding, a normal of three numbers and fields of many types."""
    kinds = [('ring', '<u2'), ('_', '<u1', (3,)), ('x', '<f8'), ('n', '<f4', (3,)), ('y', '<f4')]
    kinds += [('z', '<f4'), ('reflectivity', '<u1'), ('t', '<i8')]
    records = np.zeros(len(points), kinds)
    for name, column in zip(('x', 'y', 'z', 'reflectivity'), points.T):
        records[name] = column
    lines = {
        'FIELDS': 'ring _ x n y z reflectivity t',
        'SIZE': '2 1 8 4 4 4 1 8',
        'TYPE': 'U U F F F F U I',
        'COUNT': '1 3 1 3 1 1 1 1',
        'POINTS': len(points),
        'DATA': 'binary_compressed' if compressed else 'binary',
    }
    body = records.tobytes()
    if compressed:
        blocks = b''.join(records[name].tobytes() for name in records.dtype.names)
        runs = [blocks[start : start + 32] for start in range(0, len(blocks), 32)]
        packed = b''.join(bytes([len(run) - 1]) + run for run in runs)
        body = np.array([len(packed), len(blocks)], '<u4').tobytes() + packed
    lines.update(header)
    head = ''.join(f'{key} {value}\n' for key, value in lines.items() if value is not None)
    path.write_bytes(head.encode() + body)


@pytest.mark.parametrize('compressed', [False, True])
def test_fields_of_any_type_and_count(tmp_path, points, compressed):
    write_records(tmp_path / 'a.pcd', points, compressed=compressed)
    np.testing.assert_array_equal(read_points(tmp_path / 'a.pcd'), points)


@pytest.mark.parametrize('is_ascii, compressed', [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize('kind', [np.float32, np.float64])
def test_clouds_of_open3d(tmp_path, points, is_ascii, compressed, kind):
    import open3d

    cloud = open3d.t.geometry.PointCloud(points[:, :3].astype(kind))
    cloud.point['intensity'] = points[:, 3:4].astype(kind)
    open3d.t.io.write_point_cloud(
        str(tmp_path / 'a.pcd'), cloud, write_ascii=is_ascii, compressed=compressed
    )
    np.testing.assert_allclose(read_points(tmp_path / 'a.pcd'), points, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('encoding', ['ascii', 'binary', 'binary_compressed'])
def test_no_points(tmp_path, points, encoding):
    write_records(tmp_path / 'a.pcd', points[:0], dict(DATA=encoding), encoding != 'ascii')
    assert read_points(tmp_path / 'a.pcd').shape == (0, 4)


@pytest.mark.parametrize(
    'header, named',
    [
        (dict(COUNT='1 3 1 3 1 1 1 93387645941'), 'COUNT .*93387645941'),
        (dict(COUNT='1 3 1 3 1 1 1 -1'), 'COUNT .*-1'),
        (dict(COUNT='1 3 1 3 1 1 1 10903451'), 'damaged|truncated'),
        (dict(SIZE='2 1 8'), r'\[8, 3, 8, 8\]'),
        (dict(SIZE='2 1 8 4 4 4 1 7'), "'I', 7"),
        (dict(TYPE='U U F F F F U X'), "'X', 8"),
        (dict(FIELDS=''), r'\[0, 8, 8, 8\]'),
        (dict(POINTS=None), 'POINTS'),
        (dict(POINTS=1201), 'damaged|truncated'),
        (dict(POINTS=999999999), 'damaged|truncated'),
        (dict(DATA='zip'), "'zip'"),
        (dict(DATA=None), 'no points could be read'),
        (dict(DATA='ascii'), 'lines of numbers'),
    ],
)
@pytest.mark.parametrize('compressed', [False, True])
def test_wrong_headers_are_named_at_once(tmp_path, points, header, named, compressed):
    write_records(tmp_path / 'a.pcd', points, header, compressed)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f'a.pcd: .*({named})'):
        read_points(tmp_path / 'a.pcd')
    assert time.perf_counter() - start < 2


def test_lines_of_another_length_are_named(tmp_path, points):
    path = tmp_path / 'a.pcd'
    WRITERS['ascii.pcd'](path, points)
    whole = path.read_bytes()
    for header in (whole.replace(b' intensity\n', b'\n', 1), whole.replace(b'COUNT 1', b'COUNT 2')):
        path.write_bytes(header.replace(b'E 4 4 4 4', b'E 4 4 4').replace(b'F F F F', b'F F F'))
        with pytest.raises(ValueError, match='a.pcd: .*(numbers|FIELDS)'):
            read_points(path)


@pytest.mark.parametrize(
    'packed, expected',
    [
        (b'', b''),
        (b'\x02abc', b'abc'),
        (b'\x02abc\x20\x02', b'abcabc'),  # three bytes from three before
        (b'\x00a\x20\x00', b'aaaa'),  # a reference to what it writes
        (b'\x00a\xe0\x10\x00', b'a' * 26),  # a long one
        (b'\x01ab\xe0\x00\x01', b'ab' + b'abababa' + b'ba'),
    ],
)
def test_lzf(packed, expected):
    assert decompress_lzf(packed, len(expected)) == expected


@pytest.mark.parametrize(
    'packed, size',
    [
        (b'\x05abc', 6),  # literals end
        (b'\x02abc', 2),
        (b'\x02abc', 4),
        (b'\x20\x00', 3),  # nothing to refer to
        (b'\x00a\x20', 4),  # half a reference
        (b'\x00a\xe0', 10),
        (b'\x00a\xe0\xff', 264),
        (b'\x00a\xe0\xff\x00', 100),
    ],
)
def test_damaged_lzf(packed, size):
    with pytest.raises(ValueError, match='byte|data'):
        decompress_lzf(packed, size)


def test_bombs_are_refused(tmp_path):
    path = tmp_path / 'a.pcd'
    points = np.zeros((10**6, 4), np.float32)
    points[:, 0] = 1
    WRITERS['compressed.pcd'](path, points)
    with pytest.raises(ValueError, match='a.pcd: damaged: .*32000000 bytes'):
        read_points(path)
