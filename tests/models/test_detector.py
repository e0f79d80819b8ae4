import copy
import warnings

import pytest
import torch

from stratified3d.models import bev_format, detector
from stratified3d.models.detector import StratifiedCenterPoint

SIZES = [(600, 400), (0, 500), (500, 0), (0, 0), (1, 300), (0,), (1,), (700,)]


@pytest.mark.parametrize('sizes', SIZES)
def test_loss_and_predict_on_every_kind_of_batch(small_config, build, batch, sizes):
    model = build(small_config)
    inputs, samples = batch(sizes)
    losses = model.loss(inputs, samples)
    total = sum(losses.values())
    assert total.isfinite()
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    found = model.predict(inputs, samples)
    assert len(found) == len(sizes)
    in_range = [
        bool(((p[:, :3].abs() < torch.tensor([12.8, 12.8, 2.0])).all(1)).any())
        for p in inputs['points']
    ]
    for result, seen in zip(found, in_range):
        instances = result.pred_instances_3d
        assert instances.scores_3d.isfinite().all() and instances.bboxes_3d.tensor.isfinite().all()
        assert seen or not len(instances)


def test_points_out_of_range_give_nothing(small_config, build, batch):
    model = build(small_config).eval()
    inputs, samples = batch((50,))
    inputs['points'][0][:, 0] += 500
    assert not len(model.predict(inputs, samples)[0].pred_instances_3d)


def test_a_sample_is_treated_as_if_it_were_alone(small_config, build, batch):
    model = build(small_config).eval()
    inputs, samples = batch((500, 0, 400))
    together = model.predict(inputs, copy.deepcopy(samples))
    for i in range(3):
        alone = model.predict(dict(points=inputs['points'][i : i + 1]), samples[i : i + 1])[
            0
        ].pred_instances_3d
        torch.testing.assert_close(
            alone.scores_3d, together[i].pred_instances_3d.scores_3d, atol=1e-5, rtol=1e-4
        )


def test_nan_points_are_dropped_counted_and_warned_of_once(small_config, build, batch):
    model = build(small_config).eval()
    inputs, samples = batch((400,))
    clean = model.predict(inputs, copy.deepcopy(samples))[0].pred_instances_3d
    bad = torch.full((7, 5), torch.nan)
    bad[3:5] = torch.tensor([1.0, 2, 0, torch.inf, 0])
    bad[5:] = torch.tensor([1.0, 2, 0, 3e38, 0])
    dirty = dict(points=[torch.cat([bad, inputs['points'][0]])])
    with pytest.warns(UserWarning, match='7 points have NaN') as record:
        found = model.predict(dirty, copy.deepcopy(samples))[0].pred_instances_3d
    assert sum('NaN, infinite' in str(w.message) for w in record) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.* points have NaN')
        model.predict(dirty, copy.deepcopy(samples))
    assert model.voxel_encoder.num_dropped == 14
    torch.testing.assert_close(found.scores_3d, clean.scores_3d)


def test_every_parameter_learns(small_config, build, batch):
    model = build(small_config)
    inputs, samples = batch((800, 600), num_boxes=40)
    sum(model.loss(inputs, samples).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_zeroing_the_strata_and_breaking_the_windows_change_the_output(small_config, build, batch):
    inputs, _ = batch((700,))
    model = build(small_config).eval()

    def bev(changed):
        return changed.extract_feat(inputs)[0][0]

    whole = bev(model)
    without_strata, one_voxel_windows = copy.deepcopy(model), copy.deepcopy(model)
    for stage in without_strata.encoder.stages:
        for block in stage.blocks:
            torch.nn.init.zeros_(block.mixer.strata_kv[1].weight)
            torch.nn.init.zeros_(block.mixer.strata_kv[1].bias)
    for stage in one_voxel_windows.encoder.stages:
        stage.window_shape = (1, 1, 1)
    for changed in (without_strata, one_voxel_windows):
        assert (bev(changed) - whole).abs().max() > 1e-4
    assert torch.equal(bev(copy.deepcopy(model)), whole)


def test_bf16_autocast(small_config, build, batch):
    inputs, samples = batch((500, 0))
    model = build(small_config)
    full = sum(model.loss(inputs, samples).values())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = sum(model.loss(inputs, samples).values())
    loss.backward()
    torch.testing.assert_close(loss, full, rtol=0.05, atol=0)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_velocity_is_an_option(small_config, build, batch):
    small_config['head']['use_velocity'] = False
    model = build(small_config)
    inputs, samples = batch((400,), box_dim=7)
    assert sum(model.loss(inputs, samples).values()).isfinite()
    assert model.eval().predict(inputs, samples)[0].pred_instances_3d.bboxes_3d.tensor.shape[1] == 7


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(encoder=dict(num_heads=3)), '3 heads do not divide 16 channels'),
        (dict(encoder=dict(mixer=dict(num_strata=-4))), r'num_strata is 0 \(off\) or more, not -4'),
        (
            dict(encoder=dict(mixer=dict(selection='fps'))),
            "selection is one of pool, .*, not 'fps'",
        ),
        (
            dict(encoder=dict(mixer=dict(fusion='add'))),
            "fusion is one of joint, gated, separate, not 'add'",
        ),
        (dict(encoder=dict(stages=[])), 'stages is empty'),
        (
            dict(encoder=dict(stages=[dict(depth=1, window_shape=(8, 8, 8), stride=(3, 1, 1))])),
            r'\(3, 1, 1\).* do not divide the grid \(8, 64, 64\).*-2.0, 12.8, 12.8, 2.5\]',
        ),
        (
            dict(encoder=dict(stages=[dict(depth=1, window_shape=(8, 8, 8), stride=(1, 1, 2))])),
            'the encoder shrinks y and x differently',
        ),
        (
            dict(voxel_size=(0.3, 0.4, 0.5)),
            'x: the range -12.8 to 12.8 m is not a multiple of the voxel size 0.3 m',
        ),
        (dict(voxel_encoder=dict(in_channels=2)), 'in_channels counts x, y, z at least, not 2'),
        (dict(backbone=dict(depths=(1,))), 'must have one entry'),
    ],
)
def test_bad_settings_are_named(small_config, change, message):
    for part, value in change.items():
        small_config[part] = {**small_config[part], **value} if isinstance(value, dict) else value
    small_config.pop('type')
    with pytest.raises(ValueError, match=message):
        StratifiedCenterPoint(**small_config)


def test_too_few_columns_are_named(small_config, build, batch):
    model = build(small_config)
    inputs, samples = batch((50,))
    inputs['points'][0] = inputs['points'][0][:, :4]
    with pytest.raises(ValueError, match=r'sample 0: .*\[50, 4\], .* 5 columns'):
        model.predict(inputs, samples)


def test_a_window_larger_than_the_grid_is_one_window(small_config, build, batch):
    small_config['encoder']['stages'] = [
        dict(depth=2, window_shape=(50, 500, 500), stride=(8, 1, 1))
    ]
    model = build(small_config)
    inputs, samples = batch((300,))
    assert sum(model.loss(inputs, samples).values()).isfinite()


def test_memory_layout_changes_no_result(small_config, build, batch, monkeypatch):
    inputs, samples = batch((600, 400))
    weights = build(small_config).state_dict()
    losses = []
    for layout in (torch.contiguous_format, torch.channels_last):
        monkeypatch.setattr(detector, 'fast_memory_format', lambda layout=layout: layout)
        model = build(small_config)
        model.load_state_dict(weights)
        assert model.backbone.stages[0][0].conv2.weight.is_contiguous(memory_format=layout)
        feature_maps, _ = model.extract_feat(inputs)
        assert feature_maps[0].is_contiguous(memory_format=layout)
        losses.append(model.loss(inputs, samples))
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'capabilities, layout, bf16',
    [
        (dict(avx2=True), torch.contiguous_format, False),
        (dict(avx2=True, avx512_f=True), torch.channels_last, False),
        (dict(avx2=True, avx512_f=True, avx512_bf16=True), torch.channels_last, True),
        (dict(avx2=True, avx512_f=True, amx_bf16=True), torch.channels_last, True),
        (dict(neon=True), torch.channels_last, False),
    ],
)
def test_layout_and_dtype_follow_the_instruction_set(capabilities, layout, bf16, monkeypatch):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: capabilities)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert bev_format.fast_memory_format() == layout
    assert bev_format.has_fast_bf16(torch.device('cpu')) == bf16
