"""Arrays of numpy, right and wrong."""

import zipfile

import numpy as np
import pytest

from benchmarks.point_samples import random_sweep
from stratified3d.datasets.io.point_files import read_points


@pytest.fixture
def points():
    return random_sweep(1200)


@pytest.mark.parametrize('kind', [np.float16, np.float64, '>f4'])
@pytest.mark.parametrize('order', ['C', 'F'])
def test_arrays_of_any_kind(tmp_path, points, kind, order):
    rows = np.column_stack([points, points[:, :2]])
    np.save(tmp_path / 'a.npy', np.array(rows, kind, order=order))
    np.testing.assert_allclose(read_points(tmp_path / 'a.npy'), points, rtol=1e-3)


def test_arrays_with_fields(tmp_path, points):
    kinds = [('x', 'f4'), ('y', 'f4'), ('z', 'f4'), ('ring', 'u2'), ('intensity', 'f4')]
    records = np.zeros(len(points), kinds)
    for name, column in zip(('x', 'y', 'z', 'intensity'), points.T):
        records[name] = column
    np.save(tmp_path / 'a.npy', records)
    np.testing.assert_array_equal(read_points(tmp_path / 'a.npy'), points)


@pytest.mark.parametrize(
    'arrays',
    [
        lambda p: dict(x=p[:, 0], y=p[:, 1], z=p[:, 2], intensity=p[:, 3], label=p[:9, 0]),
        lambda p: dict(points=p, boxes=np.zeros((3, 7))),
        lambda p: dict(sweep=p),
        lambda p: dict(positions=p[:, :3], intensity=p[:, 3], labels=np.array(['a', None])),
    ],
)
def test_names_of_an_archive(tmp_path, points, arrays):
    np.savez(tmp_path / 'a.npz', **arrays(points))
    np.testing.assert_array_equal(read_points(tmp_path / 'a.npz'), points)


@pytest.mark.parametrize(
    'array, named',
    [
        (np.zeros(20), r'\(20,\)'),
        (np.zeros((20, 2)), r'\(20, 2\)'),
        (np.zeros((4, 4, 4)), r'\(4, 4, 4\)'),
        (np.zeros((20, 4), complex), 'complex128'),
        (np.full((20, 4), 'word'), '<U4'),
        (np.array([[None] * 4]), 'object'),
        (np.zeros((20, 4), 'V0'), 'V0|V'),
    ],
)
def test_other_arrays_are_named(tmp_path, array, named):
    np.save(tmp_path / 'a.npy', array, allow_pickle=True)
    with pytest.raises(ValueError, match=f'a.npy: .*({named})'):
        read_points(tmp_path / 'a.npy')


def header(text, version=b'\1\0'):
    return b'\x93NUMPY' + version + len(text).to_bytes(2, 'little') + text.encode()


@pytest.mark.parametrize(
    'content',
    [
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 4)}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (20, 4)}") + bytes(319),
        header("{'descr': 'O', 'fortran_order': False, 'shape': (20, 4)}") + bytes(640),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (2\n"),
        header('(' * 5000),
        header('1' * 20000),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4)}", b'\7\0'),
    ],
)
def test_damaged_headers_are_named(tmp_path, content):
    (tmp_path / 'a.npy').write_bytes(content)
    with pytest.raises(ValueError, match='a.npy: '):
        read_points(tmp_path / 'a.npy')


def test_archives_without_points_are_named(tmp_path):
    np.savez(tmp_path / 'a.npz', boxes=np.zeros((3, 7)), names=np.zeros(3))
    with pytest.raises(ValueError, match="a.npz: .*'boxes', 'names'.*points"):
        read_points(tmp_path / 'a.npz')
    np.savez(tmp_path / 'b.npz', x=np.zeros(3), y=np.zeros(3), z=np.zeros(2), i=np.zeros(3))
    with pytest.raises(ValueError, match='b.npz: column z .*3 numbers'):
        read_points(tmp_path / 'b.npz')


def test_bombs_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('points.npy', bytes(10**7))
    with pytest.raises(ValueError, match='a.npz: damaged: .*10000000 bytes'):
        read_points(tmp_path / 'a.npz')
