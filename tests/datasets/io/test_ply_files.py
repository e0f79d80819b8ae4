"""Headers of .ply files, right and wrong."""

import numpy as np
import pytest

from benchmarks.point_samples import WRITERS, random_sweep
from stratified3d.datasets.io.point_files import read_points


@pytest.fixture
def points():
    return random_sweep(1200)


@pytest.mark.parametrize('is_ascii', [True, False])
@pytest.mark.parametrize('kind', [np.float32, np.float64])
def test_clouds_of_open3d(tmp_path, points, is_ascii, kind):
    import open3d

    cloud = open3d.t.geometry.PointCloud(points[:, :3].astype(kind))
    cloud.point['scalar_Intensity'] = points[:, 3:4].astype(kind)
    open3d.t.io.write_point_cloud(str(tmp_path / 'a.ply'), cloud, write_ascii=is_ascii)
    np.testing.assert_allclose(read_points(tmp_path / 'a.ply'), points, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('encoding', ['ascii', 'binary_little_endian', 'binary_big_endian'])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_other_elements_are_left_out(tmp_path, points, encoding, end):
    order = '>' if 'big' in encoding else '<'
    kinds = [('red', f'{order}u1'), ('x', f'{order}f8'), ('y', f'{order}f4'), ('z', f'{order}f4')]
    records = np.zeros(len(points), [*kinds, ('i', f'{order}u2')])
    for name, column in zip(('x', 'y', 'z', 'i'), points.T):
        records[name] = column
    lines = [
        'ply',
        f'format {encoding} 1.0',
        'comment by a test',
        'obj_info none',
        'element camera 2',
        'property uchar view',
        'property double angle',
        f'element vertex {len(points)}',
        'property uchar red',
        'property double x',
        'property float32 y',
        'property float z',
        'property ushort i',
        'element face 1',
        'property list uchar int vertex_indices',
        'end_header',
    ]
    if encoding == 'ascii':
        rows = [f'0 {x:.9g} {y:.9g} {z:.9g} {i:g}' for x, y, z, i in points]
        body = '\n'.join(['1 2.5', '3 4.5', *rows, '3 0 1 2', '']).encode()
    else:
        body = bytes(18) + records.tobytes() + b'\3' + bytes(12)
    path = tmp_path / 'a.ply'
    path.write_bytes((end.join(lines) + end).encode() + body)
    np.testing.assert_array_equal(read_points(path), points)


@pytest.mark.parametrize('name', ['ascii.ply', 'little.ply'])
@pytest.mark.parametrize(
    'old, new, named',
    [
        (b'property float y', b'property', "'property'"),
        (b'property float y', b'property real y', "'property real y'"),
        (b'property float y', b'property list uchar int y', 'lists'),
        (b'property float y\n', b'', 'no column y|numbers|damaged'),
        (b'element vertex 1200', b'element vertex 12000000000', '12000000000'),
        (b'element vertex 1200', b'element vertex 1300', 'truncated'),
        (b'element vertex 1200', b'element vertex -1', '-1'),
        (b'element vertex', b'element points', 'no element vertex'),
        (
            b'element vertex',
            b'element faces 1\nproperty list uchar int a\nelement vertex',
            'lists|points',
        ),
        (b'comment any', b'property float x', 'property float x'),
        (b'end_header', b'end', 'no points could be read'),
        (b'ply', b'plx', 'no points could be read'),
        (b' 1.0', b'', "'format"),
    ],
)
def test_wrong_headers_are_named(tmp_path, points, name, old, new, named):
    path = tmp_path / 'a.ply'
    WRITERS[name](path, points)
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(ValueError, match=f'a.ply: .*({named})'):
        read_points(path)


def test_a_header_needs_a_format(tmp_path):
    (tmp_path / 'a.ply').write_bytes(b'ply\nelement vertex 0\nend_header\n')
    with pytest.raises(ValueError, match='a.ply: .*format'):
        read_points(tmp_path / 'a.ply')
