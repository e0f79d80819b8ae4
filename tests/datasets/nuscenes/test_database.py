import os
import pickle
import runpy
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import mmdet3d
import numpy as np
import pytest
from mmdet3d.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from nuscenes import NuScenes

from stratified3d.datasets.nuscenes.database import FOLDER, create_database

pytestmark = pytest.mark.slow

DATABASE = 'nuscenes_dbinfos_train.pkl'


def load(path):
    return pickle.loads(path.read_bytes())


@pytest.fixture(scope='module')
def frames(prepared_set):
    return load(prepared_set / 'nuscenes_infos_train.pkl')['data_list']


@pytest.fixture(scope='module')
def database(prepared_set):
    return load(prepared_set / DATABASE)


@pytest.fixture
def bare_set(prepared_set, tmp_path):
    """The tiny set with info files of its own and no database."""
    for part in ('samples', 'sweeps', 'v1.0-mini', 'maps'):
        (tmp_path / part).symlink_to(prepared_set / part)
    for path in prepared_set.glob('nuscenes_infos_*.pkl'):
        shutil.copy(path, tmp_path)
    return tmp_path


def aligned_cloud(root, frame, sweeps):
    """Keyframe and sweeps in the keyframe's LiDAR frame by way of the global one, [P, 5]."""

    def to_global(record, lidar):
        return np.array(record['ego2global']) @ np.array(lidar['lidar2ego'])

    lidar = frame['lidar_points']
    cloud = np.fromfile(root / 'samples/LIDAR_TOP' / lidar['lidar_path'], np.float32).reshape(-1, 5)
    cloud[:, 4] = 0
    clouds, from_global = [cloud], np.linalg.inv(to_global(frame, lidar))
    for sweep in frame.get('lidar_sweeps', [])[:sweeps]:
        cloud = np.fromfile(root / sweep['lidar_points']['lidar_path'], np.float32).reshape(-1, 5)
        cloud = cloud[(np.abs(cloud[:, :2]) >= 1).any(1)]
        matrix = from_global @ to_global(sweep, sweep['lidar_points'])
        cloud[:, :3] = cloud[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
        cloud[:, 4] = frame['timestamp'] - sweep['timestamp']
        clouds.append(cloud)
    return np.vstack(clouds)


def depth(points, box):
    """How far points lie inside a box of bottom center, size, yaw: negative outside."""
    offset = points[:, :3] - box[:3] - [0, 0, box[5] / 2]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    local = np.column_stack(
        [
            offset[:, 0] * cos + offset[:, 1] * sin,
            offset[:, 1] * cos - offset[:, 0] * sin,
            offset[:, 2],
        ]
    )
    return (box[3:6] / 2 - np.abs(local)).min(1)


def test_points_are_those_in_the_boxes_of_the_aligned_cloud(prepared_set, frames, database):
    clouds = [aligned_cloud(prepared_set, frame, 9) for frame in frames]
    entries = [entry for group in database.values() for entry in group]
    assert len(entries) > 100
    for entry in entries:
        points = np.fromfile(prepared_set / entry['path'], np.float32).reshape(-1, 5)
        assert len(points) == entry['num_points_in_gt'] > 0
        box = entry['box3d_lidar'].astype(float)
        points[:, :3] += entry['box3d_lidar'][:3]
        cloud = clouds[entry['image_idx']]
        inside = depth(cloud, box)
        sure, possible = cloud[inside > 1e-3], cloud[inside > -1e-3]
        assert len(sure) <= len(points) <= len(possible), entry
        if len(points) == len(possible):  # no point on a face: the very same ones
            assert np.array_equal(np.sort(points[:, 3]), np.sort(possible[:, 3]))
            np.testing.assert_allclose(np.sort(points[:, 4]), np.sort(possible[:, 4]), atol=1e-4)
            np.testing.assert_allclose(points[:, :3].mean(0), possible[:, :3].mean(0), atol=1e-3)
    ages = np.unique(
        np.concatenate([np.fromfile(prepared_set / e['path'], np.float32)[4::5] for e in entries])
    )
    assert len(np.unique(ages.round(2))) == 10  # the keyframe and nine sweeps


def test_every_annotated_object_is_there_under_its_own_class(frames, database):
    order = list(database)
    for label, name in enumerate(order):
        found = sorted((e['image_idx'], e['gt_idx']) for e in database[name])
        assert len(set(found)) == len(found) and {e['name'] for e in database[name]} <= {name}
        with_points = [
            i
            for f in frames
            for i in f['instances']
            if i['bbox_label_3d'] == label and i['num_lidar_pts']
        ]
        valid = [
            i
            for f in frames
            for i in f['instances']
            if i['bbox_label_3d'] == label and i['bbox_3d_isvalid']
        ]
        assert 0.9 * len(with_points) <= len(found) <= len(valid), name
    others = [
        i for f in frames for i in f['instances'] if i['bbox_label_3d'] < 0 and i['num_lidar_pts']
    ]
    assert len(others) > 2, 'the test needs debris and the like to be left out'
    groups = [e['group_id'] for group in database.values() for e in group]
    assert sorted(groups) == list(range(len(groups)))


def test_velocities_are_those_of_the_annotations(prepared_set, frames, database):
    """Displacement of the box between the neighboring keyframes over time, turned into the LiDAR
    frame."""
    tables = NuScenes('v1.0-mini', str(prepared_set), verbose=False)
    moving = 0
    for entry in (entry for group in database.values() for entry in group):
        frame = frames[entry['image_idx']]
        lidar2global = np.array(frame['ego2global']) @ np.array(frame['lidar_points']['lidar2ego'])
        box = entry['box3d_lidar'].astype(float)
        center = lidar2global @ [*box[:2], box[2] + box[5] / 2, 1]
        annotations = [
            tables.get('sample_annotation', t) for t in tables.get('sample', frame['token'])['anns']
        ]
        record = min(
            annotations, key=lambda a: np.linalg.norm(np.array(a['translation']) - center[:3])
        )
        assert np.linalg.norm(np.array(record['translation']) - center[:3]) < 1e-2
        ends = [
            tables.get('sample_annotation', record[side]) if record[side] else record
            for side in ('prev', 'next')
        ]
        times = [tables.get('sample', end['sample_token'])['timestamp'] / 1e6 for end in ends]
        if times[0] == times[1]:
            assert not box[7:].any()  # seen once
            continue
        truth = np.subtract(ends[1]['translation'], ends[0]['translation']) / (times[1] - times[0])
        found = lidar2global[:3, :3] @ [*box[7:], 0]
        assert np.abs(found[:2] - truth[:2]).max() < 0.05
        moving += np.linalg.norm(truth) > 1
    assert moving > 10


def test_mmdet3d_files_everything_else_under_barrier(bare_set, frames, database):
    """What is replaced: if this fails, mmdet3d has fixed it."""
    code = (
        'from tools.dataset_converters import create_gt_database\n'
        'create = create_gt_database.create_groundtruth_database\n'
        f'create("NuScenesDataset", {str(bare_set)!r}, "stock", "nuscenes_infos_train.pkl")'
    )
    result = subprocess.run(
        [
            sys.executable,
            '-W',
            'ignore',
            '-c',
            'from mmengine.registry import init_default_scope\n'
            'import mmdet3d.datasets\ninit_default_scope("mmdet3d")\n' + code,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(Path(mmdet3d.__file__).parent / '.mim')},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    stock = load(bare_set / 'stock_dbinfos_train.pkl')
    valid = [i['bbox_label_3d'] for f in frames for i in f['instances'] if i['bbox_3d_isvalid']]
    assert len(stock['barrier']) == valid.count(9) + valid.count(-1) > valid.count(9)
    assert len(database['barrier']) <= valid.count(9)


def test_training_samples_draw_from_it(root, prepared_set, database, monkeypatch):
    """Through the base nuScenes config's own pipeline, resampling included."""
    monkeypatch.setenv('NUSCENES_ROOT', str(prepared_set))
    config = Config.fromfile(
        root / 'configs/stratified/stratified-centerpoint_tiny_1xb2-cyclic-20e_nus-3d.py'
    )
    init_default_scope('mmdet3d')
    settings = config.train_dataloader.dataset
    (sample,) = (t for t in settings.dataset.pipeline if t.type == 'ObjectSample')
    settings.dataset.pipeline = settings.dataset.pipeline[
        : settings.dataset.pipeline.index(sample) + 1
    ]
    settings.dataset.filter_empty_gt = False
    np.random.seed(0)
    dataset = DATASETS.build(settings)
    added = 0
    for index in (0, len(dataset) - 1):
        results = dataset[index]
        before = len(results['ann_info']['gt_bboxes_3d'])
        boxes, labels = results['gt_bboxes_3d'].numpy()[before:], results['gt_labels_3d'][before:]
        points = results['points'].numpy()
        for box, label in zip(boxes, labels):
            (entry,) = (
                e
                for e in database[config.class_names[label]]
                if np.array_equal(e['box3d_lidar'], box)
            )
            cut = np.fromfile(prepared_set / entry['path'], np.float32).reshape(-1, 5)
            cut[:, :3] += box[:3]
            assert entry['num_points_in_gt'] >= 5
            there = points[depth(points, box.astype(float)) > -1e-3]
            assert len(there) >= len(cut)  # its own points, others only from objects that touch it
            assert {row.tobytes() for row in cut} <= {row.tobytes() for row in there}
        added += len(boxes)
    assert added > 5


def test_killed_database_resumes(bare_set, prepared_set):
    """kill -9 inside the second frame, one of its files half written, and half a line of
    progress."""
    code = (
        'import os, signal\nfrom stratified3d.datasets.nuscenes import database as module\n'
        'whole = module._cut_frame\n'
        'def cut(root, sweeps, frame):\n'
        '    line = whole(root, sweeps, frame)\n'
        '    if frame["sample_idx"] == 1:\n'
        '        entry = module.json.loads(line)[0]["path"]\n'
        '        (root / entry).write_bytes(b"half")\n'
        '        os.kill(os.getpid(), signal.SIGKILL)\n'
        '    return line\n'
        'module._cut_frame = cut\n'
        f'module.create_database({str(bare_set)!r})'
    )
    killed = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    progress = bare_set / FOLDER / 'progress.jsonl'
    assert not (bare_set / DATABASE).exists() and len(progress.read_text().splitlines()) == 1
    with open(progress, 'a') as file:
        file.write('[{"name": "car", "pa')
    first = next((bare_set / FOLDER).glob('0_*.bin'))
    before = first.stat().st_mtime_ns
    assert_same(create_database(bare_set), prepared_set / DATABASE)
    assert first.stat().st_mtime_ns == before and not progress.exists()


def assert_same(ours, theirs):
    a, b = load(ours), load(theirs)
    assert list(a) == list(b)
    for name in a:
        assert len(a[name]) == len(b[name])
        for x, y in zip(a[name], b[name]):
            assert x.keys() == y.keys() and all(np.array_equal(x[key], y[key]) for key in x)
            assert (ours.parent / x['path']).read_bytes() == (
                theirs.parent / y['path']
            ).read_bytes()


def test_several_workers_write_the_same_with_a_progress_bar(bare_set, prepared_set, capfd):
    create_database(bare_set, workers=2)
    assert '3/3' in capfd.readouterr().err
    assert_same(bare_set / DATABASE, prepared_set / DATABASE)
    before = (bare_set / DATABASE).stat().st_mtime_ns
    create_database(bare_set)
    assert (bare_set / DATABASE).stat().st_mtime_ns == before  # finished: kept
    with pytest.raises(ValueError, match='sweeps 9 instead of 3'):
        create_database(bare_set, sweeps=3)


def test_killed_worker_of_the_database_is_explained(bare_set, monkeypatch):
    """As when memory runs out; the pool itself only says that it is broken."""

    def killed(self, function, items):
        raise BrokenProcessPool('A process in the process pool was terminated abruptly')

    monkeypatch.setattr(ProcessPoolExecutor, 'map', killed)
    with pytest.raises(
        OSError,
        match='worker .*killed, .*kept.*fewer',
    ):
        create_database(bare_set, workers=2)


def test_create_data_says_what_is_wrong(root, bare_set, monkeypatch):
    (bare_set / 'v1.0-mini').unlink()
    (bare_set / 'nuscenes_infos_val.pkl').unlink()
    monkeypatch.setattr(sys, 'argv', ['create_data.py', str(bare_set)])
    with pytest.raises(
        SystemExit, match='create_data.py: .*v1.0-mini: no nuScenes tables there; `python tools/sim'
    ):
        runpy.run_path(str(root / 'tools/create_data.py'), run_name='__main__')


def test_settings_without_a_database_are_named(bare_set):
    with pytest.raises(ValueError, match='10 sweeps .* 11'):
        create_database(bare_set, sweeps=11)
    with pytest.raises(ValueError, match='0 workers'):
        create_database(bare_set, workers=0)
    info = bare_set / 'nuscenes_infos_train.pkl'
    whole = info.read_bytes()
    info.write_bytes(whole[:2000])
    with pytest.raises(ValueError, match='nuscenes_infos_train.pkl: damaged.*create_data'):
        create_database(bare_set)
    info.write_bytes(pickle.dumps(pickle.loads(whole) | dict(data_list=[])))
    with pytest.raises(ValueError, match='no frames'):
        create_database(bare_set)
    info.unlink()
    with pytest.raises(FileNotFoundError, match='there is no info file'):
        create_database(bare_set)
    info.write_bytes(whole)
    (bare_set / DATABASE).write_bytes(b'of somebody else')
    with pytest.raises(ValueError, match='not written by this command'):
        create_database(bare_set)
    assert (bare_set / DATABASE).read_bytes() == b'of somebody else'


def test_absent_sweeps_of_the_database_are_named(bare_set, prepared_set):
    (bare_set / 'sweeps').unlink()
    shutil.copytree(prepared_set / 'sweeps', bare_set / 'sweeps', copy_function=os.symlink)
    gone = sorted((bare_set / 'sweeps/LIDAR_TOP').iterdir())[3]
    gone.unlink()
    with pytest.raises(
        FileNotFoundError, match=f'there is no point file .*{gone.name}.*unpack all of'
    ):
        create_database(bare_set)
    gone.symlink_to(prepared_set / 'sweeps/LIDAR_TOP' / gone.name)
    assert_same(create_database(bare_set), prepared_set / DATABASE)


def test_a_full_disk_is_named_and_nothing_is_lost(bare_set, prepared_set):
    folder = bare_set / FOLDER
    entry = load(prepared_set / DATABASE)['car'][-1]
    assert entry['image_idx'] == 2
    folder.mkdir()
    shutil.copy(prepared_set / FOLDER / 'settings.json', folder)
    (bare_set / entry['path']).symlink_to('/dev/full')
    with pytest.raises(OSError, match='No space left .*rerun') as error:
        create_database(bare_set)
    assert error.value.filename == str(bare_set / entry['path'])
    (bare_set / entry['path']).unlink()
    assert len((folder / 'progress.jsonl').read_text().splitlines()) == 2
    assert_same(create_database(bare_set), prepared_set / DATABASE)


def test_an_unwritable_folder_is_named(bare_set):
    (bare_set / FOLDER).symlink_to('/proc/self/nowhere')
    with pytest.raises(OSError, match=f'rerun.*{FOLDER}'):
        create_database(bare_set)
