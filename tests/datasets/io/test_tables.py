"""Lines of numbers, tables of Arrow, surveys."""

import sys

import numpy as np
import pytest

from benchmarks.point_samples import WRITERS, random_sweep
from stratified3d.datasets.io.formats.columns import errors_named
from stratified3d.datasets.io.point_files import read_points


@pytest.fixture
def points():
    return random_sweep(1200)


def rows(points, mark):
    return ''.join(mark.join(f'{number:.9g}' for number in row) + '\n' for row in points)


@pytest.mark.parametrize('mark', [',', ';', '\t', '  '])
@pytest.mark.parametrize('suffix', ['.txt', '.csv'])
@pytest.mark.parametrize(
    'names',
    ['', 'X{0}Y{0}Z{0}Intensity', '# x{0}y{0}z{0}i', '"x"{0}"y"{0}"z"{0}"i"', '# made by x'],
)
def test_lines_with_and_without_names(tmp_path, points, mark, suffix, names):
    head = names.format(mark) + '\n\n' * bool(names)
    (tmp_path / f'a{suffix}').write_text(head + rows(points, mark), encoding='utf-8-sig')
    np.testing.assert_array_equal(read_points(tmp_path / f'a{suffix}'), points)


def test_columns_are_chosen_by_name(tmp_path, points):
    mixed = np.column_stack([points[:, 3], points[:, 2], np.ones(len(points)), points[:, :2]])
    (tmp_path / 'a.csv').write_text('reflectance,z,time,x,y\n' + rows(mixed, ','))
    np.testing.assert_array_equal(read_points(tmp_path / 'a.csv'), points)


@pytest.mark.parametrize(
    'text, named',
    [
        ('hello\n', 'no column x, y, z.*hello'),
        ('1 2\n3 4\n', r'\(2, 2\)'),
        ('1 2 3 4\n5 6 seven 8\n', 'seven'),
        ('1 2 3 4\n5 6 7\n', 'lines of numbers'),
        ('x,y,z,i\n1,2,3\n', 'names 4 columns but has 3'),
        ('1 2 3 4' * 2000, 'too long'),
        ('x,y,z,i\n\n1,2,,4\n5,6,7,8\n', "line 3 is not numbers: '1,2,,4'"),
        ('# X Y Z\n1 2 3 four\n', "line 2 is not numbers: '1 2 3 four'"),
        ('x,y,z,i\n1,2,3,\n', 'names 4 columns but has 3'),
        ('x,y,z,i,\n1,2,3,4,\n5,6,7,8,9\n', "'9' to float64 at row 1"),
    ],
)
def test_other_lines_are_named(tmp_path, text, named):
    (tmp_path / 'a.txt').write_text(text)
    with pytest.raises(ValueError, match=f'a.txt: .*{named}'):
        read_points(tmp_path / 'a.txt')


@pytest.mark.parametrize('head', ['', 'x,y,z,i\n', 'x,y,z,i,\n'])
def test_lines_may_end_in_a_delimiter(tmp_path, points, head):
    (tmp_path / 'a.csv').write_text(head + rows(points, ',').replace('\n', ', \n'))
    np.testing.assert_array_equal(read_points(tmp_path / 'a.csv'), points)
    (tmp_path / 'a.csv').write_text(head + rows(points, ','))
    np.testing.assert_array_equal(read_points(tmp_path / 'a.csv'), points)


def test_names_alone_have_no_points(tmp_path):
    (tmp_path / 'a.csv').write_text('x,y,z,i\n')
    assert read_points(tmp_path / 'a.csv').shape == (0, 4)


@pytest.mark.parametrize('compression', ['uncompressed', 'lz4', 'zstd'])
def test_sweeps_of_argoverse(tmp_path, points, compression):
    import pyarrow.feather

    columns = dict(x=points[:, 0].astype(np.float16), y=points[:, 1].astype(np.float16))
    columns |= dict(z=points[:, 2].astype(np.float16), intensity=points[:, 3].astype(np.uint8))
    columns['laser_number'] = np.zeros(len(points), np.uint8)
    table = pyarrow.table(columns)
    pyarrow.feather.write_feather(table, tmp_path / 'a.feather', compression, chunksize=500)
    np.testing.assert_allclose(read_points(tmp_path / 'a.feather'), points, rtol=1e-3)


def test_other_tables_are_named(tmp_path, points):
    import pyarrow.feather

    path = tmp_path / 'a.feather'
    pyarrow.feather.write_feather(pyarrow.table(dict(length_m=[4.0], category=['CAR'])), path)
    with pytest.raises(ValueError, match="a.feather: .*no column x, y, z.*'length_m', 'category'"):
        read_points(path)
    columns = dict(zip(('x', 'y', 'z'), points.T), intensity=['bright'] * len(points))
    pyarrow.feather.write_feather(pyarrow.table(columns), path)
    with pytest.raises(ValueError, match='a.feather: column intensity is object'):
        read_points(path)
    zeros = np.zeros(10**6, np.float32)
    pyarrow.feather.write_feather(pyarrow.table(dict(x=zeros, y=zeros, z=zeros)), path)
    with pytest.raises(ValueError, match='a.feather: damaged: .*over 8 times'):
        read_points(path)


@pytest.mark.parametrize('suffix', ['.las', '.laz'])
def test_surveys_need_laspy(tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(sys.modules, 'laspy', None)
    (tmp_path / f'a{suffix}').write_bytes(b'LASF')
    with pytest.raises(ValueError, match=f'a{suffix}: .*pip install laspy lazrs'):
        read_points(tmp_path / f'a{suffix}')


def test_compressed_surveys_need_lazrs(tmp_path, monkeypatch):
    laspy = pytest.importorskip('laspy', reason='needs laspy')
    monkeypatch.setattr(laspy.LazBackend, 'detect_available', lambda: ())
    (tmp_path / 'a.laz').write_bytes(b'LASF')
    with pytest.raises(ValueError, match='a.laz: .*pip install laspy lazrs'):
        read_points(tmp_path / 'a.laz')


def overwrite(path, place, number, size=4):
    content = bytearray(path.read_bytes())
    content[place : place + size] = number.to_bytes(size, 'little')
    path.write_bytes(content)


@pytest.mark.parametrize(
    'place, number', [(0, 0), (96, 2**31), (100, 2**31), (107, 2**31), (105, 3)]
)
@pytest.mark.parametrize('name', ['survey.las', 'survey.laz'])
def test_damaged_surveys_are_named(tmp_path, points, name, place, number):
    pytest.importorskip('laspy', reason='needs laspy')
    pytest.importorskip('lazrs', reason='needs lazrs')
    path = tmp_path / name
    WRITERS[name](path, points)
    overwrite(path, place, number, 2 if place == 105 else 4)
    with pytest.raises(ValueError, match=f'{name}: '):
        read_points(path)


def test_a_table_of_too_many_chunks_is_refused(tmp_path, points):
    pytest.importorskip('lazrs', reason='needs lazrs')
    path = tmp_path / 'survey.laz'
    WRITERS['survey.laz'](path, points)
    start = int.from_bytes(path.read_bytes()[96:100], 'little')
    table = int.from_bytes(path.read_bytes()[start : start + 8], 'little')
    overwrite(path, table + 4, 2**31)
    with pytest.raises(ValueError, match='survey.laz: truncated'):
        read_points(path)


class PanicException(BaseException):
    """Of the name that libraries in Rust raise."""


def test_panics_are_errors_and_interrupts_are_not(tmp_path):
    with pytest.raises(ValueError, match='a.laz: .*no item'), errors_named(tmp_path / 'a.laz', ''):
        raise PanicException('no item')
    with pytest.raises(KeyboardInterrupt), errors_named(tmp_path / 'a.laz', ''):
        raise KeyboardInterrupt


def test_map_coordinates_are_refused(tmp_path, points):
    places = points.astype(np.float64) + [480_000, 5_400_000, 500, 0]
    (tmp_path / 'a.csv').write_text('x,y,z,i\n' + rows(places, ','))
    with pytest.raises(ValueError, match='a.csv: .*map coordinates.*subtract'):
        read_points(tmp_path / 'a.csv')
