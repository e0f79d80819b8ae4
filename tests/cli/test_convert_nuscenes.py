"""`stratified3d convert nuscenes`, tools/create_data.py: forms of the command and what it says."""

import json
import os
import pickle
import shutil

import pytest

from stratified3d.cli import short_name
from stratified3d.cli.convert import nuscenes, waymo

PROG = 'python tools/create_data.py'


@pytest.fixture
def bare_set(tiny_set, tmp_path):
    """The simulated set without info files, as a download is."""
    root = tmp_path / 'downloaded'
    root.mkdir()
    for part in tiny_set.iterdir():
        (root / part.name).symlink_to(part)
    return root


@pytest.fixture
def prepare(capsys):
    """Run the command; what it printed, or the message that it ended with."""

    def run(*words):
        try:
            assert nuscenes.main([str(word) for word in words], PROG) == 0
        except SystemExit as left:
            return str(left) if left.code != 2 else capsys.readouterr().err
        return capsys.readouterr().out

    return run


def rename_scenes(root, names, version='v1.0-mini', target=None):
    """Give the scenes of a set names of one's own, perhaps in a version of one's own."""
    target = target or version
    tables = root / version
    copy = root / 'copy'
    shutil.copytree(tables, copy)
    if tables.is_symlink() and target == version:
        tables.unlink()
    rows = json.loads((copy / 'scene.json').read_bytes())
    (copy / 'scene.json').unlink()
    text = json.dumps([dict(row, name=name) for row, name in zip(rows, names)])
    (copy / 'scene.json').write_text(text)
    copy.rename(root / target)


def frames(root, split):
    return pickle.loads((root / f'nuscenes_infos_{split}.pkl').read_bytes())


def test_what_was_prepared_and_what_else_is_there_is_said(bare_set, prepare):
    rename_scenes(bare_set, ['a', 'b'], target='v1.0-trainval')
    said = prepare(bare_set, '--no-database')
    assert 'v1.0-mini, train: 1 scenes, 3 keyframes\n' in said
    assert 'v1.0-mini, val: 1 scenes, 3 keyframes\n' in said
    assert 'not prepared, but there as well: v1.0-trainval (--version v1.0-trainval)' in said
    assert 'in no split' not in said


def test_a_missing_version_names_the_one_that_is_there(bare_set, prepare):
    said = prepare(bare_set, '--version', 'v1.0-trainval')
    assert said.startswith('create_data.py: ') and 'of v1.0-mini: add --version v1.0-mini' in said


def test_form_of_mmdet3d_writes_beside_links(bare_set, prepare, tmp_path):
    """A dataset that cannot be written; the result trains with the new folder as its root."""
    os.chmod(bare_set, 0o555)
    out = tmp_path / 'out'
    words = ['--root-path', bare_set, '--out-dir', out, '--extra-tag', 'nuscenes']
    said = prepare('nuscenes', *words, '--sweeps', 1)
    assert f'{out}/nuscenes_infos_train.pkl' in said and 'v1.0-mini, train: 1 scenes' in said
    assert not list(bare_set.glob('*.pkl'))
    lidar = frames(out, 'val')['data_list'][0]['lidar_points']['lidar_path']
    assert (out / 'samples/LIDAR_TOP' / lidar).is_file()
    database = pickle.loads((out / 'nuscenes_dbinfos_train.pkl').read_bytes())
    assert (out / database['car'][0]['path']).is_file()


def test_form_of_mmdet3d_prepares_trainval_and_test(
    trainval_set, unannotated_set, tmp_path, prepare
):
    root = tmp_path / 'whole'
    root.mkdir()
    for part in (*trainval_set.iterdir(), unannotated_set / 'v1.0-test'):
        if part.suffix != '.pkl':
            (root / part.name).symlink_to(part)
    said = prepare('nuscenes', '--root-path', root, '--extra-tag', 'nuscenes', '--no-database')
    assert 'v1.0-trainval, val: 1 scenes' in said and 'v1.0-test, test: 2 scenes' in said
    assert {path.name for path in root.glob('*.pkl')} == {
        f'nuscenes_infos_{split}.pkl' for split in ('train', 'val', 'test')
    }


def test_form_of_mmdet3d_for_waymo_is_the_other_conversion(monkeypatch, prepare):
    called = []
    monkeypatch.setattr(waymo, 'main', lambda words, prog: called.append((words, prog)) or 0)
    prepare('waymo', '--root-path', 'a', '--out-dir', 'b', '--extra-tag', 'waymo', '--workers', 3)
    assert called == [(['a', 'b', '--workers', '3'], PROG)]
    waymo.make_parser(PROG).parse_args(called[0][0])


@pytest.mark.parametrize(
    'words, message',
    [
        ([], 'name the folder'),
        (['kitti', '--root-path', 'a'], "nuscenes or waymo, not 'kitti'"),
        (['nuscenes', '--root-path', 'a', '--extra-tag', 'waymo'], 'are named nuscenes_'),
        (['waymo', '--root-path', 'a'], 'needs --out-dir'),
    ],
)
def test_mistakes_of_form_are_named(prepare, words, message):
    assert message in prepare(*words)


def test_own_scenes_need_splits_and_get_them(bare_set, prepare, tmp_path):
    rename_scenes(bare_set, ['monday', 'tuesday'])
    said = prepare(bare_set)
    assert 'none of its 2 scenes (monday, tuesday)' in said
    assert '--splits FILE' in said and '--val-share 0.2' in said

    said = prepare(bare_set, '--val-share', 0.5, '--no-database')
    assert 'v1.0-mini, train: 1 scenes, 3 keyframes' in said
    assert frames(bare_set, 'val')['metainfo']['scenes'] == ['tuesday']
    (tmp_path / 'splits.json').write_text('{"train": ["tuesday"], "val": ["monday"]}')
    assert 'other scenes' in prepare(bare_set, '--splits', tmp_path / 'splits.json')

    (tmp_path / 'splits.json').write_text('{"train": ["monday"]}')
    for path in bare_set.glob('*.pkl'):
        path.unlink()
    said = prepare(bare_set, '--splits', tmp_path / 'splits.json', '--no-database')
    assert 'v1.0-mini: 1 scenes are in no split' in said


def test_version_of_ones_own(bare_set, prepare):
    rename_scenes(bare_set, ['monday', 'tuesday'], target='v1.0-mine')
    assert '--splits' in prepare(bare_set, '--version', 'v1.0-mine')
    said = prepare(bare_set, '--version', 'v1.0-mine', '--val-share', 0.5, '--no-database')
    assert 'v1.0-mine, val: 1 scenes' in said and 'there as well: v1.0-mini' in said


def test_missing_sweeps_are_found_before_anything_is_written(bare_set, prepare):
    sweeps = sorted((bare_set / 'sweeps/LIDAR_TOP').iterdir())
    (bare_set / 'sweeps').unlink()
    (bare_set / 'sweeps/LIDAR_TOP').mkdir(parents=True)
    for path in sweeps[1:]:
        (bare_set / 'sweeps/LIDAR_TOP' / path.name).symlink_to(path)
    said = prepare(bare_set, '--no-database')
    assert '1 of ' in said and sweeps[0].name in said and '--max-sweeps 0 --sweeps 0' in said
    assert not list(bare_set.glob('*.pkl'))
    said = prepare(bare_set, '--max-sweeps', 0, '--sweeps', 0)
    assert 'nuscenes_dbinfos_train.pkl' in said
    assert 'lidar_sweeps' not in frames(bare_set, 'train')['data_list'][2]


def test_names_in_messages():
    assert short_name(PROG) == 'create_data.py'
