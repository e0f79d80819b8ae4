"""The probe of the tokens: what it asks for is what was changed, and one tiny run."""

import sys

import numpy as np
import pytest
import torch

from benchmarks.ablation import probe
from stratified3d.ground import find_ground

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def frames():
    return probe.simulate_frames(range(2), thin=4)


def test_changed_frames_have_the_ground_and_gain_that_are_asked_for(frames):
    frame = frames[0]
    changed = probe.change_frame(frame, np.random.default_rng(3))
    ground, _ = find_ground(changed.points)
    assert ground.height == pytest.approx(changed.ground.height, abs=0.02)
    assert ground[1:] == pytest.approx(changed.ground[1:], abs=0.003)
    assert np.abs(np.subtract(changed.ground, frame.ground)).min() > 0.01
    dark = frame.points[:, 3] < 80
    ratio = changed.points[dark, 3].sum() / frame.points[dark, 3].sum()
    assert np.log(ratio) == pytest.approx(changed.gain, abs=1e-4)
    # boxes stay on their ground
    above = [f.ground.above(f.boxes) for f in (frame, changed)]
    np.testing.assert_allclose(above[1], above[0], atol=1e-4)


def test_wanted_numbers_are_those_of_each_voxels_frame(frames):
    two = [frames[0], probe.change_frame(frames[1], np.random.default_rng(1))]
    sample = torch.tensor([1, 0])
    positions = torch.tensor([[3.0, -2.0, 1.0], [0.0, 5.0, 0.0]])
    height, gain = probe._wanted(two, sample, positions).unbind(1)
    below = [two[1].ground.above(np.array([[3.0, 38.0, 0.0]]))[0]]
    below.append(two[0].ground.above(np.array([[0.0, 45.0, 0.0]]))[0])
    expected = [-value - probe.TYPICAL for value in below]
    assert height.tolist() == pytest.approx(expected, abs=1e-5)
    assert (gain * probe.GAIN).tolist() == pytest.approx([two[1].gain, 0], abs=1e-6)


def test_variants_are_settings_that_a_mixer_takes():
    assert all(probe.Probe(mixer) for mixer in probe.VARIANTS.values())


def test_probe_prints_a_row_for_each_variant(monkeypatch, capsys):
    words = ['probe.py', '--seeds', '2', '--steps', '10', '--frames', '2', '--thin', '60']
    monkeypatch.setattr(sys, 'argv', [*words, '--variants', 'windows', 'all'])
    monkeypatch.setattr(probe, 'BATCH', 2)
    assert probe.main() == 0
    head, constant, windows, tokens = capsys.readouterr().out.splitlines()[-4:]
    assert head.split()[:2] == ['variant', 'ground,']
    assert constant.split()[0] == 'constant' and '-  ' in windows
    assert tokens.split()[0] == 'all' and '%' in tokens and tokens.count('+-') == 2


@pytest.mark.parametrize(
    'words, key', [(['--steps', '1'], '--steps is at least 10'), (['--frames', '3'], 'at least 8')]
)
def test_bad_numbers_are_named(words, key, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['probe.py', *words])
    with pytest.raises(SystemExit):
        probe.parse_args()
    assert key in capsys.readouterr().err
