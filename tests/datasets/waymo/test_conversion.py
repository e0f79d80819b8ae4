"""Conversion of Waymo: what it writes, and that interruptions, processes and damage change nothing
else."""

import errno
import pickle
import runpy
import shutil
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from mmdet3d.datasets import WaymoDataset

from stratified3d.datasets.io.info_files import read_info_file
from stratified3d.datasets.waymo import conversion as waymo_conversion
from stratified3d.datasets.waymo import tables as waymo_tables
from stratified3d.datasets.waymo.conversion import ConversionSettings, convert_waymo
from stratified3d.datasets.waymo.ranks import Rank, find_rank
from stratified3d.datasets.waymo.records import Records
from stratified3d.datasets.waymo.segments import read_segment
from stratified3d.resumable import acquire_folder

pytestmark = pytest.mark.slow

EVERY = ConversionSettings(database_every=1)


def test_infos_have_the_keys_of_mmdet3d(waymo_set, converted_set, segment_names, tmp_path):
    """The keys of mmdet3d's own converter but for the cameras', boxes and poses of the parquet
    files."""
    content = read_info_file(converted_set / 'waymo_infos_train.pkl')
    assert content['metainfo']['dataset'] == 'waymo' and content['metainfo']['segments'] == 2
    frames = content['data_list']
    assert [frame['sample_idx'] for frame in frames] == [0, 1, 1000, 1001]
    assert (
        read_info_file(converted_set / 'waymo_infos_val.pkl')['data_list'][0]['sample_idx']
        == 1_000_000
    )
    for i, name in enumerate(segment_names(waymo_set)):
        for expected in read_segment(waymo_set / 'training', name, tmp_path):
            frame = frames[2 * i + expected.index]
            assert (frame['context_name'], frame['timestamp']) == (name, expected.timestamp)
            np.testing.assert_array_equal(frame['ego2global'], expected.pose)
            assert ('lidar_sweeps' in frame) == (expected.index == 1)
            boxes = [box for box in expected.boxes if box.num_points]
            assert len(boxes) == len(frame['instances']) > 5
            for box, row in zip(boxes, frame['instances']):
                x, y, z, dx, dy, dz, yaw = row['bbox_3d']
                assert (x, y, z + dz / 2, dx, dy, dz, yaw) == pytest.approx(box.numbers)
                assert row['bbox_label_3d'] == {1: 0, 2: 1, 4: 2}[box.type]
                assert (row['num_lidar_pts'], row['difficulty']) == (box.num_points, box.difficulty)
            points = np.fromfile(
                converted_set / 'training' / frame['lidar_points']['lidar_path'], np.float32
            )
            np.testing.assert_array_equal(points.reshape(-1, 6), expected.points[~expected.in_zone])
    sweep = frames[1]['lidar_sweeps'][0]
    assert sweep['lidar_points']['lidar_path'] == frames[0]['lidar_points']['lidar_path']
    np.testing.assert_allclose(
        np.array(sweep['ego2global']) @ sweep['lidar_points']['lidar2sensor'],
        frames[1]['ego2global'],
        atol=1e-8,
    )


def shape_of(value):
    """Keys and types of nested dicts and lists."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()}
    return [shape_of(value[0])] if isinstance(value, list) and value else type(value).__name__


def test_infos_have_the_types_of_a_real_info_file(converted_set, real_data):
    theirs = read_info_file(real_data / 'waymo/waymo_infos_val.pkl')
    mine = read_info_file(converted_set / 'waymo_infos_val.pkl')
    assert theirs['metainfo'].keys() <= mine['metainfo'].keys()
    frame, own = theirs['data_list'][0], mine['data_list'][0]
    assert frame.keys() - own.keys() == {'images', 'cam_instances', 'cam_sync_instances'}
    for key in frame.keys() & own.keys() - {'instances'}:
        assert shape_of(frame[key]) == shape_of(own[key]), key
    row, mine = shape_of(frame['instances'][0]), shape_of(own['instances'][0])
    assert row.items() <= mine.items()


def test_mmdet3d_dataset_reads_infos(converted_set):
    assert WaymoDataset.METAINFO['classes'] == waymo_conversion.CLASSES
    for split, name in (('training', 'train'), ('validation', 'val')):
        dataset = WaymoDataset(
            str(converted_set),
            f'waymo_infos_{name}.pkl',
            data_prefix=dict(pts=split, sweeps=split),
            modality=dict(use_lidar=True),
            metainfo=dict(classes=['Pedestrian', 'Car', 'Cyclist']),
        )
        assert len(dataset) == (4 if name == 'train' else 2)
        info = dataset.get_data_info(1)
        annotations = dataset.get_ann_info(1)
        assert len(annotations['gt_bboxes_3d']) == len(info['instances'])
        labels = annotations['gt_labels_3d']
        assert set(labels) <= {0, 1, 2} and (labels == 1).any()  # labels are mapped
        for path in (info['lidar_path'], info['lidar_sweeps'][0]['lidar_points']['lidar_path']):
            assert np.fromfile(path, np.float32).size % 6 == 0


def test_database_contains_the_points_of_the_boxes(converted_set):
    database = pickle.loads((converted_set / 'waymo_dbinfos_train.pkl').read_bytes())
    content = read_info_file(converted_set / 'waymo_infos_train.pkl')
    frames = {frame['sample_idx']: frame for frame in content['data_list']}
    entries = [entry for rows in database.values() for entry in rows]
    assert list(database) == ['Car', 'Pedestrian', 'Cyclist'] and len(entries) > 30
    assert [entry['group_id'] for entry in entries] == list(range(len(entries)))
    for entry in entries:
        row = frames[entry['image_idx']]['instances'][entry['gt_idx']]
        np.testing.assert_allclose(entry['box3d_lidar'], row['bbox_3d'], rtol=1e-6, atol=1e-5)
        cut = np.fromfile(converted_set / entry['path'], np.float32).reshape(-1, 6)
        assert len(cut) == entry['num_points_in_gt'] > 0
        assert np.linalg.norm(cut[:, :2], axis=1).max() <= np.hypot(*row['bbox_3d'][3:5]) / 2 + 1e-3
        assert cut[:, 2].min() >= -1e-3 and cut[:, 2].max() <= row['bbox_3d'][5] + 1e-3
    largest = max(entries, key=lambda entry: entry['num_points_in_gt'])
    row = frames[largest['image_idx']]['instances'][largest['gt_idx']]
    assert 0.8 < largest['num_points_in_gt'] / row['num_lidar_pts'] < 1.2


@pytest.mark.slow
def test_ranks_workers_and_interruption_change_no_file(
    small_set, converted_set, fingerprint, tmp_path, monkeypatch
):
    """Two ranks of Slurm one after the other, the second one interrupted in its segment and with
    two processes when it resumes: the files of one process."""
    out, whole = tmp_path / 'out', fingerprint(converted_set)
    monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '2')
    monkeypatch.setenv('SLURM_PROCID', '0')
    acquire_folder(out, asdict(EVERY), 'conversion.json')
    others = Records(out)
    others.begin()
    with others.working():  # the second rank is there
        first = convert_waymo(small_set, out, settings=EVERY, rank=find_rank())
    assert (first.files, first.failed, first.pending) == ([], {}, 1)
    monkeypatch.setenv('SLURM_PROCID', '1')
    monkeypatch.setattr(
        waymo_conversion, '_cut_objects', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        convert_waymo(small_set, out, settings=EVERY, rank=find_rank())
    monkeypatch.undo()
    assert not (out / 'waymo_infos_train.pkl').exists()
    next((out / 'training').glob('*.bin')).unlink()  # that segment is converted again
    last = convert_waymo(small_set, out, settings=EVERY, workers=2, rank=Rank())
    assert {path.name for path in last.files} == {
        'waymo_infos_train.pkl',
        'waymo_infos_val.pkl',
        'waymo_dbinfos_train.pkl',
    }
    assert fingerprint(out) == whole
    times = {path: path.stat().st_mtime_ns for path in out.rglob('*.bin')}
    convert_waymo(small_set, out, settings=EVERY)
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob('*.bin')}
    # the machine died before it was on disk
    next((out / '.conversion').glob('*/*.pkl')).write_bytes(b'')
    convert_waymo(small_set, out, settings=EVERY)
    assert fingerprint(out) == whole
    with pytest.raises(ValueError, match='database_every 1 instead of 10.*take another folder'):
        convert_waymo(small_set, out)


def run_converter(root, monkeypatch, capfd, *words):
    monkeypatch.setattr(sys, 'argv', ['waymo_convert.py', *map(str, words)])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(root / 'tools/waymo_convert.py'), run_name='__main__')
    return left.value.code, *capfd.readouterr()


@pytest.mark.slow
def test_damaged_segment_is_named_and_the_others_are_converted(
    root, small_set, converted_set, segment_names, tmp_path, monkeypatch, capfd
):
    bad, good = segment_names(small_set)
    path = small_set / 'training/lidar' / f'{bad}.parquet'
    content, out = path.read_bytes(), tmp_path / 'out'
    path.write_bytes(content[: len(content) // 3])
    options = (small_set, out, '--database-every', 1, '--splits', 'training')
    code, _, said = run_converter(root, monkeypatch, capfd, *options)
    assert code == 1 and f'training/{bad} could not be converted' in said and str(path) in said
    frames = read_info_file(out / 'waymo_infos_train.pkl')['data_list']
    assert {frame['context_name'] for frame in frames} == {good}
    path.write_bytes(content)
    kept = {path: path.stat().st_mtime_ns for path in out.glob(f'training/{good}*')}
    code, _, _ = run_converter(root, monkeypatch, capfd, *options)
    assert code == 0 and kept == {
        path: path.stat().st_mtime_ns for path in out.glob(f'training/{good}*')
    }
    assert (out / 'waymo_infos_train.pkl').read_bytes() == (
        converted_set / 'waymo_infos_train.pkl'
    ).read_bytes()


def test_conversion_of_the_test_split_with_all_zones_and_without_sweeps(
    small_set, segment_names, tmp_path
):
    """No-label zones are kept; segments of the test split have no boxes; no database, no sweeps."""
    shutil.rmtree(small_set / 'training')
    (small_set / 'validation').rename(small_set / 'testing')
    shutil.rmtree(small_set / 'testing/lidar_box')
    done = convert_waymo(small_set, tmp_path / 'out', settings=ConversionSettings(True, 0, 0))
    assert [path.name for path in done.files] == ['waymo_infos_test.pkl'] and not done.failed
    frames = read_info_file(done.files[0])['data_list']
    assert all(frame['instances'] == [] and 'lidar_sweeps' not in frame for frame in frames)
    name = segment_names(small_set, 'testing')[0]
    for expected in read_segment(small_set / 'testing', name, tmp_path, False):
        points = np.fromfile(
            tmp_path / f'out/testing/{name}_{expected.timestamp}.bin', np.float32
        ).reshape(-1, 6)
        np.testing.assert_array_equal(points, expected.points)


def test_full_disk_stops_the_conversion(small_set, tmp_path, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, 'No space left on device', str(path))

    monkeypatch.setattr(waymo_conversion, 'atomic_write', full)
    with pytest.raises(OSError, match='No space left'):
        convert_waymo(small_set, tmp_path / 'out', ['validation'])
    monkeypatch.undo()
    monkeypatch.setattr(waymo_tables, '_MAX_IN_MEMORY', 1)
    monkeypatch.setattr(waymo_tables.np, 'save', full)
    with pytest.raises(OSError, match='No space left'):  # not taken for damage of what is read
        convert_waymo(small_set, tmp_path / 'out', ['validation'])
    monkeypatch.undo()
    assert not list((tmp_path / 'out').rglob('*.failed')) and not list(
        (tmp_path / 'out').rglob('*.buffer')
    )
    assert convert_waymo(small_set, tmp_path / 'out', ['validation']).files


def assert_refused(source, out, message, **options):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        convert_waymo(source, out, **options)
    assert not (out / 'conversion.json').exists()


def test_sources_without_perception_v2_are_refused(waymo_set, tmp_path):
    out = tmp_path / 'out'
    assert_refused(tmp_path / 'none', out, 'there is no folder')
    assert_refused(tmp_path, out, 'no perception v2 there')
    assert_refused(waymo_set, out, 'the split testing', splits=['testing'])
    assert_refused(waymo_set, out, 'splits are training', splits=['train'])
    assert_refused(waymo_set, out, 'workers.* not 0', workers=0)
    (tmp_path / 'training').mkdir()
    (tmp_path / 'training/segment-1.tfrecord').write_bytes(b'')
    assert_refused(tmp_path, out, 'perception v1')
    out.mkdir()
    (out / 'mine.txt').write_text('mine')
    assert_refused(waymo_set, out, 'is not empty')
    with pytest.raises(ValueError, match='max_sweeps=-1'):
        ConversionSettings(max_sweeps=-1)


def test_real_tfrecord_is_refused(real_data, tmp_path):
    assert_refused(real_data / 'waymo', tmp_path / 'out', 'perception v1')


@pytest.mark.parametrize(
    ('environment', 'rank'),
    [
        ({}, Rank()),
        (dict(RANK='1', WORLD_SIZE='3'), Rank(1, 3, 'pytorch')),
        (dict(SLURM_PROCID='2', SLURM_STEP_NUM_TASKS='4'), Rank(2, 4, 'slurm')),
        (dict(SLURM_PROCID='0'), Rank()),
    ],
)
def test_rank_comes_from_the_environment(environment, rank, monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'SLURM_PROCID', 'SLURM_STEP_NUM_TASKS'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_rank() == rank and find_rank('none') == Rank()
    with pytest.raises(ValueError, match='launcher'):
        find_rank('slurm' if rank.launcher != 'slurm' else 'pytorch')
    monkeypatch.setenv('RANK', '3')
    monkeypatch.setenv('WORLD_SIZE', '3')
    with pytest.raises(ValueError, match='RANK=3 and WORLD_SIZE=3'):
        find_rank()
    every = list('abcdefg')
    assert (
        sorted(Rank(0, 3).share(every) + Rank(1, 3).share(every) + Rank(2, 3).share(every)) == every
    )


@pytest.mark.slow
def test_torchrun_shares_the_segments(root, small_set, converted_set, segment_names, tmp_path):
    """Two processes; a damaged segment of one does not end the other."""
    bad, good = segment_names(small_set)
    (small_set / 'training/lidar_box' / f'{bad}.parquet').write_bytes(b'PAR1')
    result = subprocess.run(
        [
            sys.executable,
            '-W',
            'ignore',
            '-m',
            'torch.distributed.run',
            '--nproc_per_node',
            '2',
            str(root / 'tools/waymo_convert.py'),
            str(small_set),
            str(tmp_path / 'out'),
            '--database-every',
            '1',
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0 and f'training/{bad} could not be converted' in result.stderr
    assert (tmp_path / 'out/waymo_infos_val.pkl').read_bytes() == (
        converted_set / 'waymo_infos_val.pkl'
    ).read_bytes()
    frames = read_info_file(tmp_path / 'out/waymo_infos_train.pkl')['data_list']
    assert {frame['context_name'] for frame in frames} == {good}
