"""The benchmark of packages, run with a program that is not compiled in the place of a package."""

import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import stratified3d.plugin  # noqa: F401  (registers the parts of configs)

# isort: split
from benchmarks.detectors import deployed
from stratified3d.apis import init_detector
from stratified3d.deploy.export import build_program
from stratified3d.deploy.package import PackagedDetector
from stratified3d.detections import Detections


@pytest.fixture
def arguments(small_detector, tmp_path, monkeypatch):
    """Of a run on a frame of a few points, with a stub for the package."""
    config, checkpoint = small_detector / 'config.py', small_detector / 'model.pth'
    model = init_detector(config, checkpoint, 'cpu')

    def load(path):
        dtype = torch.bfloat16 if 'bf16' in str(path) else torch.float32
        return PackagedDetector(*build_program(model, dtype))

    monkeypatch.setattr(deployed, 'load', load)
    points = np.random.default_rng(0).normal(0, (20, 20, 1, 9), (400, 4)).astype(np.float32)
    (tmp_path / 'frames').mkdir()
    points.tofile(tmp_path / 'frames/0.bin')
    return [str(config), str(checkpoint), 'a.pt2', str(tmp_path / 'frames/0.bin')]


@pytest.mark.filterwarnings('ignore:no ground was found')
def test_benchmark_prints_time_memory_and_boxes(arguments, tmp_path, capsys):
    counts = [
        '--runs',
        '1',
        '--repeat',
        '20',
        '--frames',
        '3',
        '--folder',
        str(tmp_path / 'frames'),
    ]
    assert deployed.main([*arguments, *counts]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r'^after \d+ frames: \d+ MiB$', out, re.MULTILINE)) == 10
    ways = 5 if find_spec('onnxruntime') else 4
    assert len(re.findall(r'\d+ ms \(\d+-\d+\)$', out, re.MULTILINE)) == ways
    assert '3 frames of 0 to 400 points' in out and '0 without an equal within 0.001' in out


def test_package_in_bf16_is_compared_by_quantiles(arguments, monkeypatch, capsys):
    monkeypatch.setattr(
        deployed, 'simulate_frame', lambda seed, sensor: dict(points=np.ones((9, 5), np.float32))
    )
    arguments[2] = 'bf16.pt2'
    counts = ['--runs', '0', '--repeat', '0', '--frames', '1']
    assert deployed.main([*arguments, *counts]) == 0
    assert re.search(r'^package: \d+ boxes .* median', capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(SystemExit, match='fp32'):
        deployed.main([*arguments, *counts, '--folder', '.'])


def test_bad_arguments_are_one_sentence(arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        deployed.main([*arguments, '--runs', '-1'])
    assert '--runs is 0 (leave out) or more, not -1' in capsys.readouterr().err
    with pytest.raises(SystemExit, match='there is no point file'):
        deployed.main([*arguments[:3], 'none.bin'])
    monkeypatch.undo()
    with pytest.raises(SystemExit, match='there is no package'):
        deployed.main(arguments)


def test_nearest_box_is_of_the_same_class():
    boxes = np.zeros((2, 7), np.float32)
    boxes[1, 0] = 3
    scores = np.array([0.9, 0.1], np.float32)
    both = Detections(boxes, scores, ['car', 'bus'])
    np.testing.assert_allclose(deployed.nearest(both, both, 0.0), 0)
    assert len(deployed.nearest(both, both, 0.5)) == 1
    moved = Detections(boxes + np.float32(0.25), scores, ['car', 'car'])
    np.testing.assert_allclose(deployed.nearest(moved, both, 0.0), [0.25, np.inf])
    empty = Detections(boxes[:0], scores[:0], [])
    np.testing.assert_array_equal(deployed.nearest(empty, both, 0.0), [np.inf] * 2)
    assert len(deployed.nearest(both, empty, 0.0)) == 0
