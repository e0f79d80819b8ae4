"""One line of a config puts any mixer of the zoo into the detector."""

import subprocess
import sys

import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

import projects.attention_zoo.register  # noqa: F401  (by name in configs)
import stratified3d.plugin  # noqa: F401
from projects.attention_zoo import (
    OTHER_FUNCTION,
    SAME_FUNCTION,
    FlexAttention,
    SetAttention,
    VarlenAttention,
)
from stratified3d.layers.attention import MixerContext
from stratified3d.models.stratified_encoder import build_mixer
from stratified3d.testing import random_coords, relative_error

pytestmark = pytest.mark.slow

SMALL = dict(
    type='StratifiedEncoder',
    voxel_size=(0.4, 0.4, 0.5),
    point_cloud_range=(-6.4, -6.4, -2.0, 6.4, 6.4, 2.0),
    in_channels=8,
    channels=24,
    num_heads=3,
    stem_depth=0,
    stages=[
        dict(depth=2, window_shape=(8, 6, 6), stride=(4, 1, 1)),
        dict(depth=2, window_shape=(2, 6, 6)),
    ],
)


def encoder(**settings):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        return MODELS.build({**SMALL, **settings})


def run(model, sizes=(120, 0, 70)):
    torch.manual_seed(1)
    feats = torch.randn(sum(sizes), 8, requires_grad=True)
    out = model(feats, random_coords(sizes, (8, 32, 32)), len(sizes))
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return out.detach(), feats.grad


# mixers that need a GPU, and a key of their message
ON_A_GPU = {
    VarlenAttention: 'cpu in float32',
    FlexAttention: 'no backward pass',
}
ANYWHERE = [kind for kind in SAME_FUNCTION + OTHER_FUNCTION if kind not in ON_A_GPU]


@pytest.mark.parametrize('kind', ANYWHERE)
def test_mixer_runs_and_every_parameter_gets_a_gradient(kind):
    model = encoder(mixer=dict(type=kind.__name__))
    assert all(type(block.mixer) is kind for stage in model.stages for block in stage.blocks)
    out, grad = run(model)
    assert out.isfinite().all() and grad.isfinite().all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    run(model, (1,))
    run(model, (0, 0))


@pytest.mark.parametrize('kind', ON_A_GPU)
def test_mixer_that_needs_a_gpu_says_so(kind):
    model = encoder(mixer=dict(type=kind.__name__))
    with pytest.raises(ValueError, match=ON_A_GPU[kind]):
        run(model)


@pytest.mark.parametrize('kind', [kind for kind in SAME_FUNCTION if kind in ANYWHERE])
@pytest.mark.parametrize('fusion', ['joint', 'gated'])
def test_mixer_of_the_same_function_gives_the_same_bev_feature_map(kind, fusion):
    ours, baseline = (
        encoder(mixer=dict(type=name, fusion=fusion, num_strata=4))
        for name in ('StratifiedAttention', kind.__name__)
    )
    baseline.load_state_dict(ours.state_dict())
    for a, b in zip(run(baseline), run(ours)):
        assert relative_error(a, b) < 1e-5


def test_mixer_type_may_be_a_path_to_import():
    mixer = build_mixer(
        dict(type='projects.attention_zoo.SetAttention', set_size=7),
        MixerContext(channels=24, num_heads=3, block=1),
    )
    assert mixer.set_size == 7 and mixer.phase == 1 and mixer.num_heads == 3


@pytest.mark.parametrize(
    'mixer, message',
    [
        (dict(type='SlotAttention'), "'SlotAttention'"),
        (dict(type='SetAttention', size=5), "'size'; it has set_size"),
        (dict(type='SetAttention', num_strata=16), "'num_strata'"),
        (dict(num_strata=16, selection='nonsense'), "'nonsense'"),
        (dict(type='StratifiedAttention', stratas=16), "'stratas'"),
        (dict(type='SetAttention', set_size=0), 'set_size .* not 0'),
        (dict(type='PlaneAttention', num_heads=2), 'num_heads belong'),
        (dict(type='SampledWindowAttention', sampling='knn'), "sampling .* not 'knn'"),
        (dict(type='SampledWindowAttention', part=2), 'part .* not 2'),
    ],
)
def test_mixer_settings_that_do_not_fit_are_named(mixer, message):
    with pytest.raises(ValueError, match=message):
        encoder(mixer=mixer)


def test_plane_attention_with_two_heads_is_refused():
    with pytest.raises(ValueError, match='3 or more, not 2'):
        build_mixer(dict(type='PlaneAttention'), MixerContext(channels=24, num_heads=2))


def test_zoo_config_builds_with_another_type(root):
    config = Config.fromfile(root / 'projects/attention_zoo/configs/attention_zoo.py')
    for name in ('SetAttention', 'SSTAttention'):
        config.merge_from_dict({'model.encoder.mixer.type': name})  # as --cfg-options does
        with DefaultScope.overwrite_default_scope('mmdet3d'):
            model = MODELS.build(config.model)
        assert type(model.encoder.stages[0].blocks[0].mixer).__name__ == name


def test_options_replace_the_mixer_of_another_config(root):
    """As in the README: the type is a path, and _delete_ drops the settings that were there."""
    config = Config.fromfile(
        root / 'configs/stratified/stratified-centerpoint_tiny_1xb2-cyclic-20e_nus-3d.py'
    )
    config.merge_from_dict(
        {
            'model.encoder.mixer._delete_': True,
            'model.encoder.mixer.type': 'projects.attention_zoo.SetAttention',
            'model.encoder.mixer.set_size': 90,
        }
    )
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        model = MODELS.build(config.model)
    mixer = model.encoder.stages[0].blocks[0].mixer
    assert type(mixer) is SetAttention and mixer.set_size == 90


@pytest.mark.slow
def test_train_script_finds_the_zoo_from_any_folder(root, tmp_path):
    """The config loads, and with it the zoo; only the data is missing."""
    config = root / 'projects/attention_zoo/configs/attention_zoo.py'
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', str(root / 'tools/train.py'), str(config)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and 'info file' in result.stderr, result.stderr[-2000:]
