"""Boxes at the peaks against boxes everywhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.cnn import ConvModule
from mmdet3d.models.task_modules import CenterPointBBoxCoder
from mmdet3d.structures import Det3DDataSample
from torch import nn

from stratified3d.models.heads import center
from stratified3d.models.heads.peaks import (
    Peaks,
    gather_at,
    run_branches_at,
    select_peaks,
)

RANGE = (-12.8, -12.8, -2.0, 12.8, 12.8, 2.0)
TASKS = [['car'], ['truck', 'bus'], ['pedestrian']]


@pytest.fixture
def make_head(build_head):
    """Build a small head whose batch norms are not trivial."""

    def make(**settings):
        head = build_head(
            type='StratifiedCenterHead',
            in_channels=4,
            tasks=TASKS,
            voxel_size=(0.8, 0.8, 4.0),
            point_cloud_range=RANGE,
            stride=1,
            shared_channels=6,
            **settings,
        )
        for norm in head.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_()
        return head

    return make


def make_branch(depth, channels, width):
    layers = [
        ConvModule(channels, channels, 3, padding=1, norm_cfg=dict(type='BN2d'))
        for _ in range(depth - 1)
    ]
    for layer in layers:
        layer.bn.running_mean.normal_()
        layer.bn.bias.data.normal_()  # so that what lies outside the map would not stay 0
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 3, padding=1)).eval()


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    depth=st.integers(1, 3),
    count=st.integers(0, 40),
    seed=st.integers(0, 2**31 - 1),
)
def test_branches_at_peaks_equal_branches_everywhere(batch, height, width, depth, count, seed):
    torch.manual_seed(seed)
    feature_maps = torch.randn(batch, 4, height, width, dtype=torch.float64, requires_grad=True)
    branches = [make_branch(depth, 4, n).double() for n in (1, 3)]
    sample, y, x = (torch.randint(n, (count,)) for n in (batch, height, width))
    peaks = Peaks(sample, torch.zeros_like(x), y, x, torch.ones(count))
    found = run_branches_at(branches, feature_maps, peaks)
    expected = torch.cat([gather_at(branch(feature_maps), peaks) for branch in branches], 1)
    torch.testing.assert_close(found, expected)
    grads = [
        torch.autograd.grad(outputs.square().sum(), feature_maps)[0]
        for outputs in (found, expected)
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('use_velocity', [True, False])
@pytest.mark.parametrize('max_num', [7, 500])
def test_decoding_equals_mmdet3d(use_velocity, max_num, monkeypatch, make_head):
    head = make_head(use_velocity=use_velocity, max_num=max_num, score_threshold=0.4).eval()
    coder = CenterPointBBoxCoder(
        RANGE[:2],
        1,
        [0.8, 0.8],
        post_center_range=head.post_center_range,
        max_num=max_num,
        score_threshold=0.4,
        code_size=9,
    )
    monkeypatch.setattr(center, 'apply_nms', lambda nms, boxes, *_: torch.arange(len(boxes)))
    torch.manual_seed(1)
    preds = [
        [{name: value + 0.1 * torch.randn_like(value) for name, value in task.items()}]
        for (task,) in head([torch.randn(2, 4, 32, 32)])
    ]
    found = head.predict_by_feat(preds, [{}, {}])
    first = 0
    for (pred,), names in zip(preds, TASKS):
        baseline = coder.decode(
            pred['heatmap'].sigmoid(),
            pred['rot'][:, :1],
            pred['rot'][:, 1:],
            pred['height'],
            pred['dim'].exp(),
            pred.get('vel'),
            pred['reg'],
        )
        coder.post_center_range = head.post_center_range
        for ours, true in zip(found, baseline):
            ours = ours[(ours.labels_3d >= first) & (ours.labels_3d < first + len(names))]
            assert len(ours) == len(true['scores']) > 3
            torch.testing.assert_close(ours.scores_3d, true['scores'])
            assert torch.equal(ours.labels_3d - first, true['labels'].long())
            boxes = torch.cat([ours.bboxes_3d.gravity_center, ours.bboxes_3d.tensor[:, 3:]], 1)
            torch.testing.assert_close(boxes, true['bboxes'])
        first += len(names)


@pytest.mark.parametrize('joint_branches', [False, True])
@pytest.mark.parametrize(
    'heading', [dict(), dict(axis_weight=1.0), dict(axis_weight=1.0, heading={})]
)
@pytest.mark.parametrize('iou_weight', [0.0, 1.0])
@pytest.mark.parametrize('batch', [1, 3])
def test_predictions_at_peaks_equal_those_of_all_cells(
    iou_weight, heading, joint_branches, batch, make_head
):
    head = make_head(
        iou_weight=iou_weight,
        iou_power=[0.5, 0.3, 0.0, 1.0],
        joint_branches=joint_branches,
        max_num=40,
        **heading,
    ).eval()
    feature_maps, samples = [torch.randn(batch, 4, 32, 32)], [Det3DDataSample(metainfo={})] * batch
    with torch.no_grad():
        sparse, dense = (
            head.predict(feature_maps, samples),
            head.predict_by_feat(head(feature_maps), [{}] * batch),
        )
    for got, true in zip(sparse, dense):
        assert len(got) == len(true) > 10
        torch.testing.assert_close(got.bboxes_3d.tensor, true.bboxes_3d.tensor)
        torch.testing.assert_close(got.scores_3d, true.scores_3d)
        assert torch.equal(got.labels_3d, true.labels_3d)
        assert got.bboxes_3d.yaw.abs().max() <= torch.pi


def test_heading_branch_turns_the_boxes_that_it_calls_backwards(make_head):
    head = make_head(axis_weight=1.0, heading={}, nms=dict(type='circle', radius=[0.0] * 3)).eval()
    feature_maps, samples = [torch.randn(1, 4, 32, 32)], [Det3DDataSample(metainfo={})]
    yaws = []
    for sign in (1.0, -1.0):
        head.heading.layers[2].weight.data *= sign
        with torch.no_grad():
            yaws.append(head.predict(feature_maps, samples)[0].bboxes_3d.yaw)
    assert len(yaws[0]) == len(yaws[1]) > 10
    torch.testing.assert_close((yaws[0] - yaws[1]).cos(), -torch.ones_like(yaws[0]))


@pytest.mark.parametrize('training', ['everything', 'norms'])
def test_batch_norms_in_training_mode_see_the_whole_feature_map(training, make_head):
    head = make_head()
    if training == 'norms':
        head.eval().apply(lambda module: module.train(isinstance(module, nn.BatchNorm2d)))
    feature_maps = [torch.randn(2, 4, 32, 32)]
    with torch.no_grad():
        found = head.predict(feature_maps, [Det3DDataSample(metainfo={})] * 2)
        expected = head.predict_by_feat(head(feature_maps), [{}, {}])
    assert [len(f) for f in found] == [len(e) for e in expected]
    torch.testing.assert_close(found[1].bboxes_3d.tensor, expected[1].bboxes_3d.tensor)


def test_peaks_include_every_cell_whose_rectified_score_passes():
    """Compare with the scores of all cells, with room for all of them."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, 2, 9, 7)
    iou = 2 * torch.rand(2, 9, 7) - 1
    power = [0.5, 0.9]
    heatmap = logits.sigmoid()
    weight = torch.tensor(power).view(1, 2, 1, 1)
    score = heatmap ** (1 - weight) * ((iou.unsqueeze(1) + 1) / 2) ** weight
    peaks = select_peaks(logits, power, 0.3, 500)
    selected = torch.zeros_like(heatmap, dtype=torch.bool)
    selected[peaks.sample, peaks.label, peaks.y, peaks.x] = True
    assert selected[score > 0.3].all() and not selected.all()
    torch.testing.assert_close(peaks.score, heatmap[peaks.sample, peaks.label, peaks.y, peaks.x])
    few = select_peaks(logits, power, 0.0, 5)
    for i in range(2):
        torch.testing.assert_close(few.score[few.sample == i], heatmap[i].flatten().topk(5).values)


def test_infinite_activations_outside_the_feature_map_have_no_effect():
    class Reciprocal(nn.Module):
        def forward(self, x):
            return x.reciprocal()

    layer = ConvModule(1, 1, 3, padding=1, norm_cfg=dict(type='BN2d'))
    layer.activate = Reciprocal()
    torch.nn.init.dirac_(layer.conv.weight)
    branch = nn.Sequential(layer, nn.Conv2d(1, 1, 3, padding=1)).eval()
    feature_maps, one = torch.full((1, 1, 5, 5), 10.0), torch.ones(1, dtype=torch.long)
    peaks = Peaks(0 * one, 0 * one, 0 * one, 2 * one, one.float())
    expected = gather_at(branch(feature_maps), peaks)
    assert expected.isfinite().all()
    torch.testing.assert_close(run_branches_at([branch], feature_maps, peaks), expected)


def test_prediction_without_peaks_is_empty(make_head):
    head = make_head(score_threshold=0.9).eval()
    (found,) = head.predict([torch.zeros(1, 4, 32, 32)], [Det3DDataSample(metainfo={})])
    assert len(found) == 0 and found.bboxes_3d.tensor.shape == (0, 9)
