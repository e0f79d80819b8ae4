"""Costs of our configs on a small frame."""

import pytest
import torch

import stratified3d.plugin  # noqa: F401  (registers the parts of configs)

# isort: split
from benchmarks.detectors import config_table
from benchmarks.point_clouds import BenchmarkFrame, simulate_points
from stratified3d.apis import init_detector
from stratified3d.models.heads.center import StratifiedCenterHead

pytestmark = pytest.mark.slow

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def frame():
    return BenchmarkFrame('simulated', simulate_points(1))


def test_every_config_is_listed():
    assert {
        'centerpoint_voxel03',
        'centerpoint_pillar03',
        'centerpoint_tiny',
        'transfusion_voxel03',
        'centerpoint_voxel032',
    } <= config_table.list_configs().keys()


@pytest.mark.slow
def test_costs_of_the_tiny_config(frame):
    result = config_table.run([frame], CPU, torch.float32, 1, ['centerpoint_tiny'], False)
    (row,) = result['rows']
    model = init_detector(config_table.list_configs()['centerpoint_tiny'], device='cpu')
    assert row['parameters'] == sum(p.numel() for p in model.parameters())
    counts = []

    def count(conv, args, out):
        counts.append(2 * out[0, 0].numel() * conv.weight.numel())

    for conv in model.backbone.modules():
        if isinstance(conv, torch.nn.Conv2d):
            conv.register_forward_hook(count)
    with torch.no_grad():
        model.extract_feat(dict(points=[frame.points]))
    assert 1 < row['gflop'] / (sum(counts) / 1e9) < 10
    assert row['step_ms'].median > row['detect_ms'].median > 0 and row['step_mib'] > 100
    text = config_table.render(result)
    assert text.count('centerpoint_tiny') == 1 and f'{row["parameters"]:,}' in text


def test_detector_that_misses_objects_is_not_timed(frame, monkeypatch):
    right = StratifiedCenterHead.predict

    def wrong(self, *args):
        (found,) = right(self, *args)
        found.bboxes_3d.tensor[3, 0] += 0.2
        return [found]

    monkeypatch.setattr(StratifiedCenterHead, 'predict', wrong)
    with pytest.raises(ValueError, match=r'tiny.*py: wrong, .* 2\.0e-01 off'):
        config_table.run([frame], CPU, torch.float32, 1, ['centerpoint_tiny'], False)


def test_unknown_config_and_runs_are_named(frame):
    with pytest.raises(ValueError, match="'huge'; there are centerpoint_pillar03, "):
        config_table.run([frame], CPU, torch.float32, 1, ['huge'], False)
    with pytest.raises(ValueError, match='--runs .* not 0'):
        config_table.run([frame], CPU, torch.float32, 0, [], False)
