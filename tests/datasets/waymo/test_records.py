"""Conversion of Waymo: gaps in the source, several sources, and processes at the same time."""

import functools
import os
import pickle
import re
import threading
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stratified3d.datasets.io.info_files import read_info_file
from stratified3d.datasets.waymo import records as waymo_records
from stratified3d.datasets.waymo.conversion import ConversionSettings, convert_waymo, find_segments
from stratified3d.datasets.waymo.records import Records, Segment
from stratified3d.datasets.waymo.segments import read_segment
from stratified3d.resumable import acquire_folder

pytestmark = pytest.mark.slow

EVERY = ConversionSettings(database_every=1)
STAMP, LASER = 'key.frame_timestamp_micros', 'key.laser_name'


@pytest.fixture
def convert(root, tool_process, tmp_path):
    """Start the tool on a source and tmp_path/out."""

    def start(source, name='log'):
        words = [
            str(root / 'tools/waymo_convert.py'),
            str(source),
            str(tmp_path / 'out'),
            '--database-every',
            '1',
        ]
        return tool_process(words, tmp_path / name)

    return start


@pytest.fixture
def begun(tmp_path):
    """Records of tmp_path/out, begun with the tool's settings above."""
    acquire_folder(tmp_path / 'out', asdict(EVERY), 'conversion.json')
    records = Records(tmp_path / 'out')
    records.begin()
    return records


def test_a_record_that_would_run_code_is_refused(begun, tmp_path):
    segment, marker = Segment('training', 'a'), tmp_path / 'harmed'
    begun.prepare(segment)
    path = begun._path(segment, 'pkl')
    path.write_bytes(pickle.dumps(functools.partial(os.mkdir, str(marker))))
    with pytest.raises(ValueError, match='a.pkl: .*functools.partial'):
        begun.read(segment)
    assert not marker.exists()


@pytest.mark.parametrize('content', [b'', pickle.dumps(dict(frames=[]))[:9], pickle.dumps([1])])
def test_a_damaged_record_is_forgotten(begun, content):
    segment = Segment('training', 'a')
    begun.prepare(segment)
    begun._path(segment, 'pkl').write_bytes(content)
    assert begun.read(segment) is None and not begun._path(segment, 'pkl').exists()


def without(stamp, laser):
    return lambda table: table.filter(
        pc.invert(pc.and_(pc.equal(table[STAMP], stamp), pc.equal(table[LASER], laser)))
    )


def without_return(number, row):
    def change(table):
        index = table.schema.get_field_index(f'[LiDARComponent].range_image_return{number}.values')
        column = table[index]
        empty = pa.array([None], column.type)
        return table.set_column(
            index,
            table.schema.field(index),
            pa.chunked_array([*column.slice(0, row).chunks, empty, *column.slice(row + 1).chunks]),
        )

    return change


@pytest.mark.slow
def test_gaps_of_frames_are_reported_and_the_rest_converted(
    small_set, converted_set, convert, segment_names, rewrite, tmp_path
):
    """A LiDAR without a row, one without its second return, and a frame with neither."""
    first, second = segment_names(small_set)
    stamps = {
        name: sorted(
            set(pq.read_table(small_set / 'training/lidar' / f'{name}.parquet')[STAMP].to_pylist())
        )
        for name in (first, second)
    }
    path = small_set / 'training/lidar' / f'{first}.parquet'
    rewrite(path, without_return(2, 9))  # REAR's in the second frame
    rewrite(path, without(stamps[first][0], 3))
    rewrite(
        small_set / 'training/lidar' / f'{second}.parquet',
        lambda table: table.filter(pc.not_equal(table[STAMP], stamps[second][0])),
    )
    for _ in range(2):  # the second time nothing is left to do, but gaps are reported again
        status, said = convert(small_set).wait()
        assert status == 0, said
        first_gaps = (
            f'without SIDE_LEFT: frame {stamps[first][0]}; '
            f'without REAR return 2: frame {stamps[first][1]}'
        )
        assert f'training/{first} is incomplete, {first_gaps}\n' in said
        second_gap = f'left out, without a LiDAR point: frame {stamps[second][0]}'
        assert f'training/{second} is incomplete, {second_gap}\n' in said
    frames = read_info_file(tmp_path / 'out/waymo_infos_train.pkl')['data_list']
    assert [(frame['sample_idx'], frame['timestamp']) for frame in frames] == [
        (0, stamps[first][0]),
        (1, stamps[first][1]),
        (1000, stamps[second][1]),
    ]
    assert 'lidar_sweeps' not in frames[2]
    (tmp_path / 'buffer').mkdir()
    frame = next(read_segment(small_set / 'training', first, tmp_path / 'buffer'))
    assert frame.absent == ['SIDE_LEFT']
    whole = np.fromfile(
        converted_set / 'training' / frames[0]['lidar_points']['lidar_path'], np.float32
    )
    mine = np.fromfile(
        tmp_path / 'out/training' / frames[0]['lidar_points']['lidar_path'], np.float32
    )
    rows = {row.tobytes() for row in whole.reshape(-1, 6)}
    assert 0 < len(mine) < len(whole) and all(row.tobytes() in rows for row in mine.reshape(-1, 6))
    groups = np.load(tmp_path / 'out/waymo_dbinfos_train.pkl', allow_pickle=True)
    used = {entry['image_idx'] for rows in groups.values() for entry in rows}
    assert used == {0, 1, 1000}


def test_lidar_without_calibration_and_rows_is_reported(
    small_set, segment_names, rewrite, tmp_path
):
    (name,) = segment_names(small_set, 'validation')
    for part in ('lidar', 'lidar_calibration'):
        rewrite(
            small_set / 'validation' / part / f'{name}.parquet',
            lambda table: table.filter(pc.not_equal(table[LASER], 5)),
        )
    done = convert_waymo(small_set, tmp_path / 'out', ['validation'])
    assert (
        list(done.gaps) == [f'validation/{name}']
        and 'without REAR: frames ' in done.gaps[f'validation/{name}']
    )


def test_segment_without_a_component_is_named(small_set, segment_names, tmp_path):
    (name,) = segment_names(small_set, 'validation')
    (small_set / 'validation/lidar' / f'{name}.parquet').unlink()
    assert find_segments(small_set, ['validation']) == {'validation': [name]}
    done = convert_waymo(small_set, tmp_path / 'out', ['validation'])
    assert (
        done.files == [] and 'download the component lidar of' in done.failed[f'validation/{name}']
    )


@pytest.mark.slow
def test_sources_one_after_the_other_give_the_files_of_one(
    small_set, converted_set, fingerprint, convert, segment_names, tmp_path
):
    """The files list what both contained, as if it had been converted at once; a deleted point file
    is reported."""
    first, second = segment_names(small_set)
    for part in (small_set / 'training').iterdir():
        (tmp_path / 'more/training' / part.name).mkdir(parents=True)
        (part / f'{second}.parquet').rename(
            tmp_path / 'more/training' / part.name / f'{second}.parquet'
        )
    status, said = convert(small_set).wait()
    assert status == 0 and 'converted earlier' not in said
    assert len(read_info_file(tmp_path / 'out/waymo_infos_train.pkl')['data_list']) == 2
    status, said = convert(tmp_path / 'more').wait()
    assert status == 0, said
    assert re.search(f'1 of the segments .* not in {tmp_path / "more"}', said)
    assert fingerprint(tmp_path / 'out') == fingerprint(converted_set)
    next((tmp_path / 'out/training').glob(f'{first}*')).unlink()
    status, said = convert(tmp_path / 'more').wait()
    assert (
        status == 1 and f'training/{first} could not be converted' in said and 'point files' in said
    )
    assert len(read_info_file(tmp_path / 'out/waymo_infos_train.pkl')['data_list']) == 2


@pytest.mark.slow
def test_processes_at_the_same_time_share_the_work(
    small_set, converted_set, fingerprint, convert, tmp_path
):
    running = [convert(small_set, f'log{i}') for i in range(3)]
    for process in running:
        status, said = process.wait()
        assert status == 0, said
    assert fingerprint(tmp_path / 'out') == fingerprint(converted_set)


@pytest.mark.slow
def test_segment_of_another_process_is_left_to_it(
    small_set, converted_set, fingerprint, convert, begun, segment_names, tmp_path
):
    segment = Segment('training', segment_names(small_set)[0])
    begun.prepare(segment)
    partial_files = [
        tmp_path / 'out/waymo_infos_train.pkl.host.1.partial',
        tmp_path / 'out/training/x_1.bin.partial',
    ]
    for path in partial_files:
        path.write_bytes(b'half')
    begun.buffer(segment).mkdir()
    with begun.working(), begun.acquire(segment) as is_acquired:
        assert is_acquired
        status, said = convert(small_set).wait()
        assert status == 0 and 'still convert 1 segments' in said
        assert not (tmp_path / 'out/waymo_infos_train.pkl').exists() and begun.read(segment) is None
        # the other process may be writing them
        assert all(path.exists() for path in partial_files)
    assert convert(small_set).wait()[0] == 0
    # and the partial files are gone
    assert fingerprint(tmp_path / 'out') == fingerprint(converted_set)
    assert not list((tmp_path / 'out').rglob('*.buffer'))


@pytest.mark.slow
def test_late_record_is_waited_for(
    small_set, converted_set, fingerprint, begun, segment_names, tmp_path, monkeypatch, capfd
):
    """As on NFS, when another rank has just ended; one that never comes is an error that names the
    segment."""
    source = Segment('training', segment_names(small_set)[0])
    begun.prepare(source)
    # the segment is locked, though no process is working: this process is the last one
    with begun.acquire(source):
        monkeypatch.setattr(waymo_records, 'PATIENCE', 0.3)
        done = convert_waymo(small_set, tmp_path / 'out', settings=EVERY)
        assert (done.files, done.failed, done.abandoned) == ([], {}, [f'training/{source.name}'])
        assert 'waiting up to 0 s for 1 segments' in capfd.readouterr().out
    monkeypatch.setattr(waymo_records, 'PATIENCE', 60.0)
    hidden = tmp_path / 'hidden.pkl'
    convert_waymo(small_set, tmp_path / 'out', settings=EVERY)
    record = begun._path(source, 'pkl')
    record.rename(hidden)
    with begun.acquire(source):
        timer = threading.Timer(2, hidden.rename, [record])
        timer.start()
        done = convert_waymo(small_set, tmp_path / 'out', settings=EVERY)
    assert len(done.files) == 3 and not done.abandoned
    assert fingerprint(tmp_path / 'out') == fingerprint(converted_set)


def test_abandoned_segment_is_named_by_the_tool(
    root, small_set, begun, segment_names, tmp_path, monkeypatch, tool_process
):
    segment = Segment('validation', segment_names(small_set, 'validation')[0])
    begun.prepare(segment)
    monkeypatch.setattr(waymo_records, 'PATIENCE', 0.1)  # the tool is forked
    with begun.acquire(segment):
        status, said = tool_process(
            [
                str(root / 'tools/waymo_convert.py'),
                str(small_set),
                str(tmp_path / 'out'),
                '--database-every',
                '1',
                '--splits',
                'validation',
            ],
            tmp_path / 'log',
        ).wait()
    assert status == 1 and f'{segment}: not converted' in said
    assert 'Traceback' not in said
