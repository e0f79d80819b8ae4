"""Rows of the ablation, verdicts, and one tiny run of the tool."""

import copy
import json
import runpy
import sys
from statistics import variance
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

import stratified3d.plugin  # noqa: F401  (registers the parts of configs)

# isort: split
from benchmarks.ablation import baselines
from benchmarks.ablation.costs import bev_gflop
from benchmarks.ablation.full_size import CHANGES
from benchmarks.ablation.rows import ROWS
from benchmarks.ablation.runs import CONFIG, TrainingSettings, make_config
from benchmarks.ablation.tables import compare, render
from benchmarks.detectors.config_table import list_configs

pytestmark = pytest.mark.slow


def result(row, seed, score):
    return dict(
        row=row,
        group='strata',
        seed=seed,
        mAP=score,
        NDS=score,
        AP=dict(car=score),
        iterations=240,
        seconds_per_iteration=1.0,
        ms_per_frame=200.0,
    )


def settings_in(folder, **world):
    """Of trainings on a simulated dataset that has its settings only."""
    (folder / 'simulation.json').write_text(json.dumps(dict(version='v1.0-mini', **world)))
    return TrainingSettings(folder, folder / 'work', 50, 1)


def test_names_of_rows_are_unique():
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.slow
def test_each_row_changes_the_default_config():
    first, same = Config.fromfile(CONFIG), []
    for row in ROWS:
        config = copy.deepcopy(first)
        row.apply(config)
        same += [row.name] * (config.to_dict() == first.to_dict())
    assert same == ['default']


@pytest.mark.parametrize('row', {row.group: row for row in ROWS}.values(), ids=lambda row: row.name)
def test_config_of_a_row_of_each_group_survives_a_dump(row, tmp_path):
    settings = settings_in(tmp_path)
    config, first = make_config(row, 3, settings, 50), make_config(ROWS[0], 3, settings, 50)
    config.dump(tmp_path / 'config.py')
    again = Config.fromfile(tmp_path / 'config.py')
    assert again.to_dict() == config.to_dict()
    if row.group not in ('data', 'memory'):
        assert config.train_dataloader == first.train_dataloader, 'the same data in the same order'
    assert config.randomness.seed == 3 and config.train_cfg.max_iters == 50
    assert [s.total_steps for s in config.param_scheduler] == [50] * (row.group != 'schedule')
    for transform in config.train_dataloader.dataset.pipeline:
        if transform.type == 'ObjectSample':
            assert str(tmp_path) in transform.db_sampler.info_path


@pytest.mark.slow
def test_encoder_of_each_row_can_be_built():
    first = Config.fromfile(CONFIG)
    for row in ROWS:
        if row.change is None:
            config = copy.deepcopy(first)
            row.apply(config)
            model = config.model
            settings = dict(
                model.encoder,
                voxel_size=model.voxel_size,
                point_cloud_range=model.point_cloud_range,
            )
            with DefaultScope.overwrite_default_scope('mmdet3d'):
                assert MODELS.build(settings).out_channels == model.encoder.channels, row.name


def test_data_rows_differ_in_one_transform(tmp_path):
    settings = settings_in(tmp_path)
    own, *others = (
        [t.to_dict() for t in make_config(row, 0, settings, 50).train_dataloader.dataset.pipeline]
        for row in ROWS
        if row.name in ('default', 'no ground-truth sampling', 'full-size augmentation')
    )
    kinds = [t['type'] for t in own]
    without, wide = others
    assert (
        without == [t for t in own if t['type'] != 'ObjectSample'] and len(without) == len(own) - 1
    )
    assert [t['type'] for t in wide] == kinds
    (changed,) = (t for t, before in zip(wide, own) if t != before)
    assert changed['rot_range'] == [-0.785, 0.785] and changed['scale_ratio_range'] == [0.9, 1.1]
    assert changed['translation_std'] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize('name', ['default', 'wide, a branch for each number', 'cells of 1.6 m'])
def test_operations_of_the_bev_part_are_those_of_its_convolutions(name, tmp_path):
    row = next(row for row in ROWS if row.name == name)
    config = make_config(row, 0, settings_in(tmp_path), 50)
    config.model.point_cloud_range = [-9.6, -9.6, -5.0, 9.6, 9.6, 3.0]
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        model = MODELS.build(config.model).eval()
    operations = []

    def count(conv, args, out):
        height, width = conv.kernel_size
        operations.append(2 * out.numel() * conv.in_channels // conv.groups * height * width)

    for module in [*model.backbone.modules(), *model.head.modules()]:
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    _, height, width = model.encoder.out_shape
    with torch.no_grad():
        model.head(model.backbone(torch.zeros(2, model.encoder.out_channels, height, width)))
    assert bev_gflop(config) == pytest.approx(sum(operations) / 1e9, rel=1e-6)


def test_other_detectors_have_no_operations_to_compare(tmp_path):
    row = next(row for row in ROWS if row.name.startswith('CenterPoint pillar 0.4'))
    assert bev_gflop(make_config(row, 0, settings_in(tmp_path), 50)) is None


def test_plain_backbone_is_ours_without_shortcuts():
    settings = dict(
        in_channels=16, channels=(8, 12, 16), depths=(1, 2, 2), strides=(2, 2, 2), out_channels=4
    )
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        ours, plain = (
            MODELS.build(dict(settings, type=kind))
            for kind in ('ResidualBEVBackbone', 'PlainBEVBackbone')
        )
    plain.load_state_dict(ours.state_dict(), strict=False)
    x = torch.randn(2, 16, 54, 38, requires_grad=True)
    (y,) = plain(x)
    assert y.shape == ours(x)[0].shape == (2, 12, 27, 19) and (
        plain.stride,
        plain.out_channels,
    ) == (2, 12)
    block = plain.stages[0][0]
    inner = block.norm2(block.conv2(torch.relu(block.norm1(block.conv1(x)))))
    assert torch.equal(block(x), inner.relu())
    y.sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize('name', CHANGES)
@pytest.mark.slow
def test_config_rows_are_full_size_except_for_head_settings(name, tmp_path):
    row, settings = (
        next(row for row in ROWS if row.name == name),
        settings_in(tmp_path),
    )
    model, first = (make_config(r, 0, settings, 50).model for r in (row, ROWS[0]))
    full_size = Config.fromfile(list_configs()[name]).model
    for part in ('voxel_size', 'voxel_encoder', 'encoder', 'backbone'):
        assert model[part] == full_size[part]
    assert model.head.code_weights == first.head.code_weights and model.head.iou_weight == 0
    assert model.head.type == full_size.head.type and model.bev_dtype == first.bev_dtype
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        assert MODELS.build(model).head.cell_size == pytest.approx(
            [2 * size for size in full_size.voxel_size[:2]]
        )


@pytest.mark.parametrize('fast', [False, True])
def test_centerpoint_computes_the_same_with_a_fast_dense_part(tmp_path, monkeypatch, fast):
    row = next(row for row in ROWS if row.name == 'CenterPoint pillar 0.4, rate 0.001')
    config = make_config(row, 0, settings_in(tmp_path), 50)
    assert 'FastDensePart' in [hook.type for hook in config.custom_hooks]
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        model = MODELS.build(config.model).eval()
    maps = torch.randn(1, 64, 64, 64)

    def outputs():
        (task,), *_ = model.pts_bbox_head(model.pts_neck(model.pts_backbone(maps)))
        return task

    with torch.no_grad():
        before = outputs()
        monkeypatch.setattr(baselines, 'has_fast_bf16', lambda device: fast)
        baselines.FastDensePart().before_run(SimpleNamespace(model=model))
        after = outputs()
    assert model.pts_backbone.blocks[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in before.items():
        assert after[name].dtype == torch.float32
        error = float((after[name] - value).norm() / value.norm())
        assert 1e-4 < error < 0.05 if fast else error < 1e-5


@pytest.mark.parametrize(
    'scores, verdict',
    [
        ((0.30, 0.32), 'no difference'),
        ((0.35, 0.36, 0.37), 'better'),
        ((0.20, 0.22), 'worse'),
        ((0.20, 0.45), 'no difference'),
        ((0.35,), 'too few seeds'),
    ],
)
def test_verdicts_need_a_difference_beyond_chance(scores, verdict):
    first = (0.30, 0.31, 0.33)
    results = [result('default', seed, score) for seed, score in enumerate(first)]
    results += [result('m = 0', seed, score) for seed, score in enumerate(scores)]
    default, row = compare(results)
    assert default['verdict'] == '' and row['verdict'] == verdict
    assert row['difference'] == pytest.approx(
        sum(a - b for a, b in zip(scores, first)) / len(scores)
    )
    assert verdict in render(results)


@pytest.mark.parametrize('rows, seeds', [(1, 2), (2, 2), (1, 4)])
def test_rows_that_do_not_differ_are_seldom_called_better_or_worse(rows, seeds):
    generator = np.random.default_rng(0)
    called = []
    for _ in range(500):
        scores = generator.normal(size=(rows + 1, seeds)).tolist()
        results = [
            result(str(row), seed, value)
            for row, values in enumerate(scores)
            for seed, value in enumerate(values)
        ]
        called += [row['verdict'] in ('better', 'worse') for row in compare(results)[1:]]
    assert 0 < np.mean(called) < 0.08  # two standard errors: 0.30, 0.20 and 0.14


def test_comparison_uses_shared_seeds_only():
    results = [
        result('default', 0, 0.3),
        result('default', 1, 0.9),
        result('m = 0', 0, 0.31),
        result('m = 0', 2, 0.0),
    ]
    assert compare(results)[1]['difference'] == pytest.approx(0.01)


def test_any_row_can_be_the_one_that_others_are_compared_with():
    results = make_results({'m = 0': (0.01, 0.03), 'gated': (0.02, 0.02)})
    default, none, gated = compare(results, against='m = 0')
    assert none['verdict'] == '' and default['difference'] == pytest.approx(-0.02)
    assert gated['difference'] == pytest.approx(0.0)
    assert 'against m = 0' in render(results, 'm = 0') and 'default |' in render(results)


def make_results(differences):
    """Rows whose differences from the default, of NDS, are these."""
    seeds = range(max(map(len, differences.values())))
    results = [result('default', seed, 0.3 + 0.1 * seed) for seed in seeds]
    for row, values in differences.items():
        results += [result(row, i, 0.3 + 0.1 * i + value) for i, value in enumerate(values)]
    return results


def test_standard_error_is_of_paired_differences():
    # of few seeds: variances 2e-4 and 8e-4, one degree of freedom each
    results = make_results({'m = 0': (0.01, 0.03), 'gated': (0.02, -0.02), 'random': (0.01,)})
    errors = [row['error'] for row in compare(results)]
    assert errors[0] is None
    assert errors[1:] == pytest.approx([(5e-4 / 2) ** 0.5] * 2 + [5e-4**0.5])
    # rows of other detectors do not count
    wild = [dict(result('CenterPoint', i, i), group='detector') for i in range(2)]
    assert [row['error'] for row in compare(results + wild)][1:4] == pytest.approx(errors[1:])
    assert '(0.016)' in render(results)


def test_many_seeds_have_a_variance_of_their_own():
    own = (0.01, 0.02, 0.03, 0.04)
    results = make_results({'m = 0': own, 'gated': (0.5, -0.5)})
    row = compare(results)[1]
    assert row['error'] == pytest.approx((variance(own) / 4) ** 0.5) and row['degrees'] == 3


@pytest.fixture
def ablate(root, monkeypatch, capsys, tmp_path, prepared_set):
    def run(*arguments):
        monkeypatch.setattr(
            sys,
            'argv',
            [
                'ablate.py',
                *map(str, arguments),
                '--data',
                str(prepared_set),
                '--work',
                str(tmp_path / 'work'),
                '--out',
                str(tmp_path / 'out'),
            ],
        )
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(root / 'tools/ablate.py'), run_name='__main__')
        return end.value.code, capsys.readouterr()

    return run


@pytest.mark.slow
def test_ablate_trains_scores_and_skips_rows_with_a_result(ablate, tmp_path):
    small = [
        '--iterations',
        20,
        '--seeds',
        0,
        '--cfg-options',
        'model.voxel_size=(1.2,1.2,1.0)',
        'model.encoder.channels=16',
        'model.encoder.mixer.num_strata=4',
        'model.backbone.channels=(16,16,16)',
        'train_dataloader.batch_size=1',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'val_dataloader.num_workers=0',
        'val_dataloader.persistent_workers=False',
    ]
    status, said = ablate('--rows', 'default', *small)
    assert status == 0 and '| default' in said.out
    (kept,) = (tmp_path / 'out').glob('*/ablation-20-*.json')
    found = json.loads(kept.read_text())['results']
    assert (
        [r['row'] for r in found] == ['default']
        and 0 <= found[0]['NDS'] <= 1
        and found[0]['iterations'] == 20
    )
    assert 1 < found[0]['ms_per_frame'] < 1e4
    before = kept.read_text()
    status, said = ablate('--rows', 'default', *small)
    assert status == 0 and '| default' in said.out and kept.read_text() == before


def test_ablate_names_an_unknown_row(ablate):
    status, said = ablate('--rows', 'm = 1')
    assert status == 2 and "no row 'm = 1'" in said.err


def test_objects_of_other_sensors_are_pasted_on_the_ground(tmp_path):
    pipelines = []
    for sensor in ('nuscenes', 'mixed'):
        config = make_config(ROWS[0], 0, settings_in(tmp_path, sensor=sensor), 50)
        pipelines.append(config.train_dataloader.dataset.pipeline)
    plain, mixed = pipelines
    added = [t['type'] for t in mixed if t not in plain and t['type'] != 'ObjectSample']
    assert added == ['FindGroundPlane']
    for pipeline in pipelines:
        sample = next(t for t in pipeline if t['type'] == 'ObjectSample')
        assert sample.get('use_ground_plane', False) == (pipeline is mixed)
