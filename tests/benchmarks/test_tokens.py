"""Strata tokens: measures of weights by hand, silent tokens, and the tool on simulated frames."""

import runpy
import sys

import numpy as np
import pytest
import torch

from benchmarks.ablation import tokens
from stratified3d.apis import init_detector, inspect_strata
from stratified3d.datasets.nuscenes.frames import read_frame
from stratified3d.layers.strata_record import StrataRecord
from stratified3d.models.stratified_encoder import StratifiedEncoder

pytestmark = pytest.mark.slow


@pytest.fixture
def tool(root):
    return str(root / 'benchmarks/ablation/tokens.py')


def test_evenness_and_distances_of_weights_by_hand():
    assert tokens.evenness(np.full((2, 4), 0.1)) == pytest.approx(1)
    assert tokens.evenness(np.array([[0.0, 1.0, 0.0, 0.0]])) == pytest.approx(1 / 4)
    two_and_one = np.array([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert tokens.evenness(two_and_one) == pytest.approx((1 / 2 + 1 / 4) / 2)
    voxels = np.array([[0.0, 0, 0], [6.0, 0, 0]])
    places = np.array([[0.0, 0, 0], [0.0, 8, 0]])
    use = tokens.measure(
        StrataRecord(
            voxels,
            places,
            np.array([[1.0, 0.0], [0.5, 0.5]]),
            np.array([[0.1, 0.0], [0.0, 0.3]]),
            np.array([1.0, 2.0]),
        )
    )
    assert use.share.tolist() == [0.1, 0.3] and use.readers == pytest.approx(1 / 2)
    assert use.effective_voxels == 1.5
    # the first voxel reads the token at its own place, the other one 10 m away three times as much
    assert use.read_from == pytest.approx((0.3 * 10 / 0.4, (0 + 8 + 6 + 10) / 4))
    assert use.collects_from[0] == pytest.approx((1 * 0 + 0.5 * 8 + 0.5 * 10) / 2)


@pytest.mark.parametrize('fusion', ['joint', 'gated'])
def test_silent_tokens_leave_window_attention(fusion):
    """The encoder with silent tokens against one that never had any, with the same weights."""
    torch.manual_seed(0)
    settings = dict(
        voxel_size=(1, 1, 1),
        point_cloud_range=(0, 0, 0, 16, 16, 4),
        in_channels=8,
        channels=16,
        num_heads=2,
        stages=[dict(depth=2, window_shape=(4, 6, 6), stride=(4, 1, 1))],
    )
    model, without = (
        torch.nn.ModuleDict(dict(encoder=StratifiedEncoder(**settings, mixer=mixer)))
        for mixer in (dict(num_strata=5, fusion=fusion), dict(num_strata=0))
    )
    for block in model.encoder.stages[0].blocks:
        if fusion == 'gated':
            block.mixer.gate.data.fill_(1.0)
    without.load_state_dict(
        {name: value for name, value in model.state_dict().items() if name in without.state_dict()}
    )
    coords = torch.nn.functional.pad(torch.nonzero(torch.rand(4, 16, 16) < 0.2), (1, 0)).int()
    feats = torch.randn(len(coords), 8)
    expected = without.encoder(feats, coords, 1)
    assert not torch.allclose(model.encoder(feats, coords, 1), expected, atol=1e-4)
    tokens.silence(model)
    torch.testing.assert_close(model.encoder(feats, coords, 1), expected)


def run(tool, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, 'argv', ['tokens.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(tool, run_name='__main__')
    return end.value.code, capsys.readouterr().out


def test_tokens_tool_prints_a_table_and_writes_silent_weights(
    tool, prepared_set, small_detector, tmp_path, monkeypatch, capsys
):
    config, weights = small_detector / 'config.py', small_detector / 'model.pth'
    info = prepared_set / 'nuscenes_infos_val.pkl'
    status, said = run(
        tool,
        monkeypatch,
        capsys,
        config,
        weights,
        '--info',
        info,
        '--frames',
        2,
        '--silent',
        tmp_path / 'silent.pth',
    )
    assert status == 0 and f'written: {tmp_path / "silent.pth"}' in said
    head, *blocks = said.splitlines()[:-1]
    assert head.split()[:2] == ['block', 'share'] and [line.split()[:4] for line in blocks] == [
        ['stage', '0,', 'block', f'{i}'] for i in range(len(blocks))
    ]
    for name, silent in (('model.pth', False), ('silent.pth', True)):
        model = init_detector(config, (tmp_path if silent else small_detector) / name)
        assert (inspect_strata(model, read_frame(info).points).read == 0).all() == silent
    status, said = run(
        tool, monkeypatch, capsys, config, tmp_path / 'silent.pth', '--info', info, '--frames', 1
    )
    assert status == 0 and 'nan' not in said and '0.0%' in said and '- (' in said


def test_tokens_tool_names_missing_files_and_models_without_tokens(
    tool, prepared_set, small_detector, tmp_path, monkeypatch, capsys
):
    config, info = small_detector / 'config.py', prepared_set / 'nuscenes_infos_val.pkl'
    status, _ = run(tool, monkeypatch, capsys, config, tmp_path / 'none.pth', '--info', info)
    assert 'tokens.py: ' in status and 'none.pth' in status
    status, _ = run(
        tool,
        monkeypatch,
        capsys,
        config,
        small_detector / 'model.pth',
        '--info',
        tmp_path / 'none.pkl',
    )
    assert 'tokens.py: ' in status and 'none.pkl' in status
    without = tmp_path / 'without.py'
    without.write_text(
        f'_base_ = {str(config)!r}\nmodel = dict(encoder=dict(mixer=dict(num_strata=0)))\n'
    )
    state = torch.load(small_detector / 'model.pth', weights_only=False)
    torch.save(
        {
            **state,
            'state_dict': {
                k: v
                for k, v in state['state_dict'].items()
                if 'strata' not in k and 'selection' not in k
            },
        },
        tmp_path / 'without.pth',
    )
    status, _ = run(tool, monkeypatch, capsys, without, tmp_path / 'without.pth', '--info', info)
    assert 'without.py' in status and 'strata tokens' in status
