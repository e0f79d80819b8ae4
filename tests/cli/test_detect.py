"""`stratified3d detect` on several files: their pictures, and what is wrong with some of them."""

import json
import warnings
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stratified3d import apis
from stratified3d.cli.detect import main
from stratified3d.cli.drawing import name_pictures
from stratified3d.detections import Detections
from stratified3d.sensors import SENSORS


def test_pictures_of_several_files_have_names_of_their_own():
    files = ['a/12.049.pcd', 'a/12.149.pcd', 'a/0.pcd.bin', 'b/0.bin', 'c/0.bin', 'd/0-2.bin']
    names = name_pictures([Path(file) for file in files])
    assert names == ['12.049', '12.149', '0', '0-2', '0-3', '0-2-2']


@pytest.fixture
def detect(monkeypatch, tmp_path):
    """Runs the command with a model that finds a car in every file and doubts each; the points
    that it saw are in `seen`, by weak references."""

    def find(model, points, sensor):
        assert all(earlier() is None for earlier in run.seen), 'points of an earlier file are kept'
        run.seen.append(weakref.ref(points))
        warnings.warn('no ground was found', stacklevel=2)
        return Detections(np.ones((1, 7), np.float32), np.ones(1, np.float32), ['car'])

    def run(*arguments):
        run.seen = []
        return main([*map(str, arguments), '--device', 'cpu'], 'stratified3d detect')

    config = SimpleNamespace(model=SimpleNamespace(point_cloud_range=[-9, -9, -3, 9, 9, 3]))
    monkeypatch.setattr('stratified3d.sensors.model_sensor', lambda config: SENSORS['nuscenes'])
    monkeypatch.setattr('stratified3d.cli.drawing.model_sensor', lambda config: SENSORS['nuscenes'])
    monkeypatch.setattr(apis, 'init_detector', lambda *_: SimpleNamespace(cfg=config))
    monkeypatch.setattr(apis, 'detect', find)
    monkeypatch.setattr(warnings, 'showwarning', warnings.showwarning)  # the command sets it
    monkeypatch.chdir(tmp_path)
    for name in ('a', 'b'):
        points = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
        np.save(f'{name}.npy', points)
    return run


def test_one_bad_file_costs_no_result_of_others(detect, capsys):
    assert detect('a.npy', 'none.npy', 'b.npy', '--json', 'out.json') == 1
    assert list(json.loads(Path('out.json').read_text())) == ['a.npy', 'b.npy']
    out, err = capsys.readouterr()
    assert 'stratified3d detect: there is no point file none.npy' in err
    assert '1 of 3 files failed' in err and 'b.npy: 50 points, 1 objects' in out
    assert detect('a.npy') == 0


def test_every_caution_names_its_file(detect, capsys):
    detect('a.npy', 'b.npy')
    cautions = [line for line in capsys.readouterr().err.splitlines() if 'CAUTION' in line]
    assert cautions == [f'CAUTION: {name}.npy: no ground was found' for name in 'ab']


def test_files_are_drawn_one_by_one(detect, capsys):
    assert detect('a.npy', 'b.npy', '--draw', '--no-perspective', '--out', 'pictures') == 0
    assert sorted(path.name for path in Path('pictures/bev').iterdir()) == ['a.png', 'b.png']
    assert 'pictures/bev/b.png' in capsys.readouterr().out
