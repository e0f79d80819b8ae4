import os
import sys
import types

import pytest
from mmengine.config import Config

from stratified3d.apis import init_detector
from stratified3d.checkpoints import load_checkpoint_file
from stratified3d.shipped import (
    find_shipped,
    list_shipped,
    make_projects_importable,
    register_names,
    shipped_root,
)

QUICKSTART = 'stratified3d::quickstart/quickstart.py'


def test_names_lead_to_files(root):
    names = list_shipped()
    assert all(os.path.isfile(find_shipped(name)) for name in names)
    configs = {f'stratified3d::stratified/{p.name}' for p in root.glob('configs/stratified/*.py')}
    assert configs < {*names} and 'stratified3d::quickstart/any-sensor.safetensors' in names
    assert not [name for name in names if 'register' in name or 'sim2real' in name]
    base = 'configs/_base_/datasets/waymo.py'
    assert find_shipped('stratified3d::_base_/datasets/waymo.py') == str(root / base)
    assert find_shipped('mine.py') == 'mine.py'


def test_a_name_that_does_not_exist_lists_those_that_do():
    with pytest.raises(FileNotFoundError, match='quickstart/none.py.*quickstart/any_sensor.py'):
        find_shipped('stratified3d::quickstart/none.py')


def test_configs_by_name_are_those_by_path(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    register_names()
    by_path = Config.fromfile(root / 'projects/quickstart/configs/quickstart.py')
    assert Config.fromfile(QUICKSTART).to_dict() == by_path.to_dict()
    (tmp_path / 'own.py').write_text(f'_base_ = {QUICKSTART!r}\nmodel = dict(voxel_size=(1, 1, 1))')
    own = Config.fromfile('own.py')
    assert own.model.pop('voxel_size') == (1, 1, 1)
    by_path.model.pop('voxel_size')
    assert own.to_dict() == by_path.to_dict()  # without a `_scope_` of ours, which no registry has


def test_names_are_registered_once():
    register_names()
    finders, read = len(sys.meta_path), Config.fromfile
    register_names()
    assert len(sys.meta_path) == finders and Config.fromfile is read


def test_mim_finds_ours_beside_those_of_mmdet3d(monkeypatch):
    """mim looks for the last part of the name in the folder of the package that trains."""
    mim = types.ModuleType('mim.utils')

    def find(root, base_name, followlinks=False):
        return ['theirs.py'] if base_name == 'theirs.py' else []

    mim.recursively_find = find
    monkeypatch.setitem(sys.modules, 'mim.utils', mim)
    register_names()
    register_names()
    assert mim.recursively_find('mmdet3d', 'theirs.py', followlinks=True) == ['theirs.py']
    ours = 'projects/quickstart/configs/quickstart.py'
    assert mim.recursively_find('mmdet3d', 'quickstart.py') == [f'{shipped_root()}/{ours}']
    assert mim.recursively_find('mmdet3d', 'none.py') == []


def test_modules_are_changed_when_they_are_imported_later(tmp_path, monkeypatch):
    (tmp_path / 'mim').mkdir()
    (tmp_path / 'mim/__init__.py').touch()
    source = 'def recursively_find(root, base_name, followlinks=False): return []\n'
    (tmp_path / 'mim/utils.py').write_text(source)
    register_names()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ('mim', 'mim.utils'):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import mim.utils

    assert len(mim.utils.recursively_find('', 'any_sensor.py')) == 1
    for name in ('mim', 'mim.utils'):
        monkeypatch.delitem(sys.modules, name)


def test_weights_by_name():
    weights = 'stratified3d::quickstart/any-sensor.safetensors'
    model = init_detector('stratified3d::quickstart/any_sensor.py', weights, 'cpu')
    state = load_checkpoint_file(weights)['state_dict']
    assert model.state_dict().keys() == state.keys()


def test_projects_are_importable_once(monkeypatch):
    monkeypatch.setattr(sys, 'path', [entry for entry in sys.path if entry != shipped_root()])
    make_projects_importable()
    make_projects_importable()
    assert sys.path.count(shipped_root()) == 1 and sys.path[-1] == shipped_root()
