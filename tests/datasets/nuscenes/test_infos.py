import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import mmdet3d
import numpy as np
import pytest

from stratified3d.datasets.nuscenes.frames import read_frame
from stratified3d.datasets.nuscenes.infos import create_infos


@pytest.fixture(scope='module')
def infos(prepared_set):
    paths = create_infos(prepared_set, 'v1.0-mini')
    return {path.stem.split('_')[-1]: pickle.loads(path.read_bytes()) for path in paths}


def differences(ours, theirs, place=''):
    """Leaves that differ by more than rounding, and keys that only one side has."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in ours.keys() | theirs.keys():
            if key in ours and key in theirs:
                yield from differences(ours[key], theirs[key], f'{place}.{key}')
            else:
                yield f'{place}.{key}'
    elif isinstance(theirs, (list, tuple)) and theirs and isinstance(theirs[0], dict):
        if len(ours) != len(theirs):
            yield f'{place}: {len(ours)} and {len(theirs)}'
        for i, (a, b) in enumerate(zip(ours, theirs)):
            yield from differences(a, b, f'{place}[]' if place else f'[{i}]')
    elif isinstance(theirs, str):
        if Path(ours).name != Path(theirs).name:
            yield place
    elif not np.allclose(np.array(ours, float), np.array(theirs, float), atol=1e-5, equal_nan=True):
        yield place


def test_info_files_are_those_of_mmdet3d(prepared_set, infos, tmp_path):
    """mmdet3d's converter needs ./data/nuscenes and writes into it, so it gets a copy of the
    tables."""
    copy = tmp_path / 'data/nuscenes'
    copy.mkdir(parents=True)
    for part in ('v1.0-mini', 'maps', 'samples', 'sweeps'):
        shutil.copytree(
            prepared_set / part,
            copy / part,
            copy_function=os.symlink if part[0] == 's' else shutil.copy,
        )
    tools = Path(mmdet3d.__file__).parent / '.mim'
    code = (
        'from tools.dataset_converters import nuscenes_converter, update_infos_to_v2\n'
        'nuscenes_converter.create_nuscenes_infos(\n'
        '    "data/nuscenes", "nuscenes", version="v1.0-mini")\n'
        'for split in ("train", "val"):\n'
        '    update_infos_to_v2.update_pkl_infos("nuscenes", out_dir="data/nuscenes",\n'
        '        pkl_path=f"data/nuscenes/nuscenes_infos_{split}.pkl")\n'
    )
    subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        env={**os.environ, 'PYTHONPATH': str(tools)},
    )
    for split, content in infos.items():
        theirs = pickle.loads((copy / f'nuscenes_infos_{split}.pkl').read_bytes())
        found = set(differences(content['data_list'], theirs['data_list']))
        camera = {f'[{i}].{key}' for i in range(3) for key in ('images', 'cam_instances')}
        assert found - camera <= {
            f'[{i}].lidar_sweeps[].lidar_points.num_pts_feats' for i in range(3)
        }
        for key in ('dataset', 'version', 'info_version'):
            assert content['metainfo'][key] == theirs['metainfo'][key]


def test_info_files_of_a_split_have_its_scenes(infos):
    assert {split: len(content['data_list']) for split, content in infos.items()} == dict(
        train=3, val=3
    )
    tokens = [f['token'] for content in infos.values() for f in content['data_list']]
    assert len(set(tokens)) == 6
    first, second, _ = infos['train']['data_list']
    assert 'lidar_sweeps' not in first and len(second['lidar_sweeps']) == 10


def test_static_points_of_sweeps_meet_in_the_keyframe(prepared_set, infos):
    """The matrices of the info file bring the ground of a sweep onto the ground of its keyframe."""
    frame = infos['val']['data_list'][2]
    sweep = frame['lidar_sweeps'][9]
    matrix = np.array(sweep['lidar_points']['lidar2sensor'])
    key2global = np.array(frame['ego2global']) @ np.array(frame['lidar_points']['lidar2ego'])
    sweep2global = np.array(sweep['ego2global']) @ np.array(sweep['lidar_points']['lidar2ego'])
    np.testing.assert_allclose(sweep2global @ matrix, key2global, atol=1e-6)


def test_frames_of_the_info_files_read(prepared_set, infos):
    frame = read_frame(prepared_set / 'nuscenes_infos_val.pkl', 1)
    inside = [len(points_in(frame.points, box)) for box in frame.boxes]
    assert len(frame.boxes) > 20
    # boxes and points are in one frame: what the annotations counted is found again
    assert np.abs(np.array(inside) - frame.num_points).mean() < 1


def points_in(points, box):
    offset = points[:, :3] - box[:3]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    local = np.column_stack(
        [offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[:, 0] * sin]
    )
    return points[
        (np.abs(local) <= box[3:5] / 2).all(1) & (offset[:, 2] >= 0) & (offset[:, 2] <= box[5])
    ]


def test_finished_info_files_are_kept(prepared_set, infos):
    path = prepared_set / 'nuscenes_infos_val.pkl'
    before = path.stat().st_mtime_ns
    create_infos(prepared_set, 'v1.0-mini')
    assert path.stat().st_mtime_ns == before


def test_files_of_other_settings_are_not_taken_for_these(prepared_set, infos):
    with pytest.raises(ValueError, match='v1.0-mini with 10 .* v1.0-mini with 3'):
        create_infos(prepared_set, 'v1.0-mini', max_sweeps=3)


def test_folders_without_a_dataset_are_named(tmp_path):
    with pytest.raises(ValueError, match="version is one of v1.0-mini, .*, not 'v2'"):
        create_infos(tmp_path, 'v2')
    with pytest.raises(FileNotFoundError, match='nuScenes tables .*`python tools/simulate.py'):
        create_infos(tmp_path, 'v1.0-mini')


def test_the_test_split_has_no_instances(unannotated_set):
    (path,) = create_infos(unannotated_set, 'v1.0-test')
    frames = pickle.loads(path.read_bytes())['data_list']
    assert path.name == 'nuscenes_infos_test.pkl' and len(frames) == 6
    assert all(frame['instances'] == [] for frame in frames) and 'lidar_sweeps' in frames[1]


@pytest.fixture
def own_set(prepared_set, tmp_path):
    """A set whose tables may be damaged."""
    shutil.copytree(prepared_set / 'v1.0-mini', tmp_path / 'v1.0-mini')
    for part in ('samples', 'sweeps', 'maps'):
        (tmp_path / part).symlink_to(prepared_set / part)
    return tmp_path


def test_missing_and_damaged_tables_are_named(own_set):
    table = own_set / 'v1.0-mini/ego_pose.json'
    whole = table.read_bytes()
    table.unlink()
    with pytest.raises(FileNotFoundError, match='ego_pose.json: .*missing; unpack'):
        create_infos(own_set, 'v1.0-mini')
    table.write_bytes(whole[:5000])
    with pytest.raises(ValueError, match='ego_pose.json: damaged .*; unpack'):
        create_infos(own_set, 'v1.0-mini')
    assert not list(own_set.glob('*.pkl*'))


def test_a_damaged_info_file_is_named(own_set):
    train, _ = create_infos(own_set, 'v1.0-mini')
    train.write_bytes(train.read_bytes()[:1000])
    with pytest.raises(ValueError, match='nuscenes_infos_train.pkl: damaged.*create_data'):
        create_infos(own_set, 'v1.0-mini')


def test_a_full_disk_is_named_and_nothing_is_lost(own_set):
    (own_set / 'nuscenes_infos_val.pkl.partial').symlink_to('/dev/full')
    with pytest.raises(OSError, match='No space left .*rerun.*nuscenes_infos_val.pkl'):
        create_infos(own_set, 'v1.0-mini')
    assert [path.name for path in own_set.glob('*.pkl')] == [
        'nuscenes_infos_train.pkl'
    ]  # kept for the next run
    assert not list(own_set.glob('*.partial'))
    assert len(create_infos(own_set, 'v1.0-mini')) == 2
