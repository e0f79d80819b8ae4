from functools import partial

import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from stratified3d.models.heads import transfusion as transfusion_head
from stratified3d.models.heads.box_coding import decode_boxes

RANGE = (-12.8, -6.4, -2.0, 12.8, 6.4, 2.0)  # 16 x 32 cells: not square on purpose
TASKS = [['car', 'truck'], ['pedestrian']]


@pytest.fixture
def make_head(build_head):
    return partial(
        build_head,
        type='StratifiedTransFusionHead',
        in_channels=8,
        tasks=TASKS,
        voxel_size=(0.4, 0.4, 0.5),
        point_cloud_range=RANGE,
        stride=2,
        channels=16,
        num_heads=2,
        feedforward_channels=32,
        branch_channels=16,
        num_proposals=20,
        small_classes=['pedestrian'],
        iou_weight=0.5,
        iou_loss_weight=0.5,
    )


@pytest.fixture
def ground_truth(pack_boxes):
    """A car, a truck and two pedestrians, or the first of them."""

    def make(count=4, use_velocity=True):
        boxes = torch.tensor(
            [
                [-8.0, 3.1, -1, 4.5, 1.9, 1.6, 0.4, 3, -1],
                [6.2, -4.7, -1, 9, 2.6, 3, -2.1, 0, 0],
                [0.3, 0.2, -1, 0.7, 0.7, 1.7, 3.0, 1, 1],
                [0.3, 1.2, -1, 0.6, 0.6, 1.6, 2.0, 1, 1],
            ]
        )
        boxes = boxes[:count, : 9 if use_velocity else 7]
        return pack_boxes(boxes, torch.tensor([0, 1, 2, 2])[:count])

    return make


def crowd(count, seed=0):
    """Many small boxes, up to several per cell."""
    draw = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 9, generator=draw) * torch.tensor([25.0, 12.0, 1, 1, 1, 1, 6, 2, 2])
    boxes += torch.tensor([-12.5, -6, -1, 0.4, 0.4, 0.4, -3, -1, -1])
    return InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
        labels_3d=torch.randint(0, 3, (count,), generator=draw),
    )


def feature_maps(batch=1, seed=0):
    return [torch.randn(batch, 8, 16, 32, generator=torch.Generator().manual_seed(seed))]


def perfect_predictions(head, instances):
    """Outputs that equal the targets, in reverse order; the other queries predict nothing."""
    target = head.get_targets(instances)
    batch, classes = target.heatmap.shape[:2]
    count = head.num_proposals
    encoding = torch.randn(batch, count, len(head.code_weights))
    logits, labels = (
        torch.full((batch, count, classes), -15.0),
        torch.zeros(batch, count, dtype=torch.long),
    )
    peaks = torch.zeros(batch, count)
    for b, (bbox_targets, label) in enumerate(zip(target.bbox_targets, target.labels)):
        rows = torch.arange(len(label)).flip(0)
        encoding[b, rows], labels[b, rows], peaks[b, rows], logits[b, rows, label] = (
            bbox_targets,
            label,
            1.0,
            15.0,
        )
    return dict(
        heatmap=torch.logit(target.heatmap, 1e-4),
        labels=labels,
        peak_scores=peaks,
        logits=logits,
        encoding=encoding,
        iou=torch.ones(batch, count),
    )


@pytest.mark.parametrize('use_velocity', [True, False])
def test_decoding_undoes_the_targets(use_velocity, make_head, ground_truth):
    head, instances = (
        make_head(use_velocity=use_velocity),
        [ground_truth(n, use_velocity) for n in (4, 2, 0)],
    )
    for sample, encoding, label, expected in zip(
        range(3), *head.get_targets(instances)[1:], instances
    ):
        boxes = decode_boxes(encoding, head.cell_size, head.origin)
        boxes[:, 2] -= boxes[:, 5] / 2
        assert torch.equal(label, expected.labels_3d), sample  # sorted by class
        torch.testing.assert_close(boxes, expected.bboxes_3d.tensor, atol=1e-5, rtol=1e-5)
    found = head.predict_by_feat(perfect_predictions(head, instances), [{}] * 3)
    for result, expected in zip(found, instances):
        order = torch.arange(len(expected)).flip(0)  # as the queries are
        assert (
            torch.equal(result.labels_3d, expected.labels_3d[order])
            and (result.scores_3d > 0.99).all()
        )
        torch.testing.assert_close(
            result.bboxes_3d.tensor, expected.bboxes_3d.tensor[order], atol=1e-5, rtol=1e-5
        )


def test_loss_of_perfect_predictions_is_small_and_of_others_is_not(make_head, ground_truth):
    head = make_head()
    instances = [ground_truth(), ground_truth(1)]
    preds = perfect_predictions(head, instances)
    losses = head.loss_by_feat(preds, instances)
    assert losses.keys() == {'loss_heatmap', 'loss_cls', 'loss_bbox', 'loss_iou_branch', 'loss_iou'}
    for name in ('loss_cls', 'loss_bbox', 'loss_iou_branch', 'loss_iou'):
        assert float(losses[name]) < 1e-4, name
    worse = {
        name: value + 1 if value.is_floating_point() else value for name, value in preds.items()
    }
    assert all(float(v) > float(losses[k]) for k, v in head.loss_by_feat(worse, instances).items())
    # a center one cell off on both axes: 2 of the 10 numbers, times the loss' weight
    preds['encoding'][..., :2] += 1
    assert float(head.loss_by_feat(preds, instances)['loss_bbox']) == pytest.approx(
        0.25 * 2, rel=1e-4
    )
    preds['encoding'][..., 2] += 9  # no overlap: the branch is wrong by 2 now
    losses = head.loss_by_feat(preds, instances)
    assert float(losses['loss_iou_branch']) == pytest.approx(0.5 * 2, rel=1e-4)
    assert 0.5 < float(losses['loss_iou']) < 1.0


def test_heatmap_targets_equal_those_of_the_center_head(make_head, ground_truth):
    settings = dict(
        in_channels=8, tasks=TASKS, voxel_size=(0.4, 0.4, 0.5), point_cloud_range=RANGE, stride=2
    )
    center = MODELS.build(dict(type='StratifiedCenterHead', **settings))
    expected = torch.cat(
        [target.heatmap for target in center.get_targets([crowd(30), ground_truth(0)])], 1
    )
    assert torch.equal(make_head().get_targets([crowd(30), ground_truth(0)]).heatmap, expected)


@pytest.mark.parametrize('objects, queries', [(0, 20), (300, 20), (20, 300), (1, 1)])
def test_losses_are_finite_for_any_number_of_objects_and_queries(objects, queries, make_head):
    head = make_head(num_proposals=queries)
    out = head(feature_maps(2))
    losses = head.loss_by_feat(out, [crowd(objects), crowd(objects)[: objects // 2]])
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    if not objects:
        assert all(
            float(losses[name]) == 0 for name in ('loss_bbox', 'loss_iou', 'loss_iou_branch')
        )
        assert float(losses['loss_cls']) > 0 and float(losses['loss_heatmap']) > 0
    found = head.eval().predict_by_feat(head(feature_maps(2)), [{}, {}])
    assert all(0 < len(result) <= queries for result in found)


def test_every_parameter_gets_a_gradient(make_head, ground_truth):
    head = make_head()
    sum(head.loss_by_feat(head(feature_maps(2)), [crowd(15), ground_truth()]).values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_boxes_start_at_the_cells_of_their_queries(monkeypatch, make_head):
    head = make_head(num_proposals=2, small_classes=[])
    seen = []
    head.position.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torch.nn.init.zeros_(head.box_branches['center'][-1].weight)
    torch.nn.init.zeros_(head.box_branches['center'][-1].bias)
    queries = torch.ones(1, 2), torch.tensor([[0, 1]]), torch.tensor([[3 * 32 + 30, 0]])
    monkeypatch.setattr(transfusion_head, 'select_queries', lambda *args: queries)
    assert head(feature_maps())['encoding'][0, :, :2].tolist() == [[30.5, 3.5], [0.5, 0.5]]
    # places are coded from -1 to 1 along both axes
    assert seen[0].amin(0).tolist() == pytest.approx([-1 + 1 / 32, -1 + 1 / 16])
    assert seen[0].amax(0).tolist() == pytest.approx([1 - 1 / 32, 1 - 1 / 16])


def test_predictions_with_a_low_score_or_out_of_range_are_dropped(make_head, ground_truth):
    head = make_head(num_proposals=4, score_threshold=0.1, iou_power=[0.5, 0.5, 0.0])
    preds = perfect_predictions(head, [ground_truth()])
    preds['iou'][:] = -0.5  # IoU 0.25
    (result,) = head.predict_by_feat(preds, [{}])
    assert dict(zip(result.labels_3d.tolist(), result.scores_3d.round(decimals=3).tolist())) == {
        0: 0.5,
        1: 0.5,
        2: 1.0,
    }
    preds['peak_scores'][:] = 0.01  # 0.05 with the IoU, 0.01 without
    assert not len(head.predict_by_feat(preds, [{}])[0])
    preds['peak_scores'][:] = 1
    preds['encoding'][..., 2] = 50.0  # far above the range
    assert not len(head.predict_by_feat(preds, [{}])[0])


def test_unknown_velocity_and_boxes_off_the_feature_map_are_not_learned(make_head, ground_truth):
    head = make_head()
    unknown = ground_truth()
    unknown.bboxes_3d.tensor[0, 7:] = torch.nan
    unknown.bboxes_3d.tensor[1, 0] = 100
    assert [len(encoding) for encoding in head.get_targets([unknown]).bbox_targets] == [3]
    losses = head.loss_by_feat(head(feature_maps()), [unknown])
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert all(value.isfinite() for value in losses.values())
    preds = perfect_predictions(head, [unknown])
    preds['encoding'] = torch.where(preds['encoding'].isnan(), 7.0, preds['encoding'])
    assert float(head.loss_by_feat(preds, [unknown])['loss_bbox']) < 1e-5


def test_a_diverged_model_shows_in_its_loss(make_head, ground_truth):
    head = make_head()
    out = {
        name: v * torch.nan if v.is_floating_point() else v
        for name, v in head(feature_maps()).items()
    }
    assert head.loss_by_feat(out, [ground_truth()])['loss_cls'].isnan()


def test_losses_under_bf16_autocast_are_close_to_those_in_fp32(make_head, ground_truth):
    head = make_head(dropout=0.0)
    plain = head.loss_by_feat(head(feature_maps(2)), [ground_truth(), ground_truth(0)])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = head(feature_maps(2))
        losses = head.loss_by_feat(out, [ground_truth(), ground_truth(0)])
    assert out['heatmap'].dtype == torch.bfloat16 and out['encoding'].dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in losses.values())
    torch.testing.assert_close(sum(losses.values()), sum(plain.values()), rtol=0.1, atol=0)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    with (
        torch.no_grad(),
        torch.autocast('cpu', dtype=torch.bfloat16),
    ):  # attention takes other paths here
        assert len(head.eval().predict_by_feat(head(feature_maps()), [{}])[0])


def test_losses_and_gradients_are_repeatable(make_head, ground_truth):
    def run():
        head = make_head()
        losses = head.loss_by_feat(head(feature_maps(2)), [crowd(25), ground_truth()])
        sum(losses.values()).backward()
        return [*losses.values(), *(p.grad for p in head.parameters())]

    assert all(torch.equal(a, b) for a, b in zip(run(), run()))


def test_outputs_do_not_depend_on_the_rest_of_the_batch(make_head):
    head = make_head().eval()
    both, alone = head(feature_maps(2)), head([feature_maps(2)[0][1:]])
    for name, value in alone.items():
        torch.testing.assert_close(both[name][1:], value, atol=1e-5, rtol=1e-5)


def test_losses_averaged_over_processes_are_those_of_the_whole_batch(
    monkeypatch, make_head, ground_truth
):
    head = make_head(sync_avg_factor=True).eval()
    out, instances = head(feature_maps(2)), [crowd(12), ground_truth(2)]
    whole = head.loss_by_feat(out, instances)
    monkeypatch.setattr(transfusion_head, 'reduce_mean', lambda counts: total / 2)
    total = torch.tensor([float(head.get_targets(instances).heatmap.eq(1).sum()), 14.0])
    parts = [
        head.loss_by_feat({name: v[i : i + 1] for name, v in out.items()}, instances[i : i + 1])
        for i in (0, 1)
    ]
    for name, value in whole.items():
        torch.testing.assert_close(
            (parts[0][name] + parts[1][name]) / 2, value, rtol=1e-4, atol=1e-6
        )


def test_settings_that_do_not_fit_are_refused(make_head, ground_truth):
    for tasks, message in (
        (['car', 'truck'], 'lists of class names'),
        ([], 'each class once'),
        ([['car'], ['car']], r"\['car', 'car'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            make_head(tasks=tasks, small_classes=[])
    with pytest.raises(ValueError, match=r"small_classes .* \['cone'\]"):
        make_head(small_classes=['cone'])
    with pytest.raises(ValueError, match='2000, .* 3 classes of 512 cells'):
        make_head(num_proposals=2000)
    with pytest.raises(ValueError, match='multiple of num_heads 3'):
        make_head(num_heads=3)
    with pytest.raises(ValueError, match='match_weights'):
        make_head(match_weights=[1.0])
    with pytest.raises(ValueError, match='code_weights has 3'):
        make_head(code_weights=[1, 1, 1])
    with pytest.raises(ValueError, match=r'iou_power'):
        make_head(iou_power=[0.5, 0.5])
    with pytest.raises(ValueError, match='boxes have 7 numbers'):
        make_head().get_targets([ground_truth(use_velocity=False)])
    with pytest.raises(ValueError, match=r'\(32, 32\) cells, .* \(16, 32\)'):
        make_head()([torch.randn(1, 8, 32, 32)])
    wrong = ground_truth()
    wrong.labels_3d[2] = 7
    with pytest.raises(ValueError, match='sample 1 .* class 7, .* 3 classes'):
        make_head().get_targets([ground_truth(), wrong])


@pytest.mark.slow
def test_head_overfits_one_feature_map(make_head, ground_truth):
    """The feature map is noise with a mark at every object."""
    head = make_head(dropout=0.0)
    instances = [ground_truth()]
    target = head.get_targets(instances)
    feats = feature_maps()[0] * 0.1
    for k, encoding in enumerate(target.bbox_targets[0]):
        feats[0, 2 * k : 2 * k + 2, int(encoding[1]), int(encoding[0])] += 3
    optimizer = torch.optim.AdamW(head.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=151)
    for _ in range(150):
        loss = sum(head.loss_by_feat(head([feats]), instances).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 10)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = head.eval().predict_by_feat(head([feats]), [{}])[0]
    best = found[found.scores_3d.argsort(descending=True)[:4]]
    assert sorted(best.labels_3d.tolist()) == [0, 1, 2, 2] and best.scores_3d.min() > 0.3
    gap = (best.bboxes_3d.tensor[:, None] - instances[0].bboxes_3d.tensor).abs()
    gap[best.labels_3d[:, None] != instances[0].labels_3d] = 100
    assert sorted(gap[..., :2].sum(2).argmin(1).tolist()) == [0, 1, 2, 3]
    assert gap[..., :6].amax(2).amin(1).max() < 0.5  # meters


def test_head_in_a_detector_with_empty_and_tiny_point_clouds(small_config, build, batch):
    small_config['head'] = dict(
        type='StratifiedTransFusionHead',
        tasks=[['car', 'truck', 'bus', 'pedestrian']],
        channels=16,
        num_heads=2,
        num_proposals=30,
        small_classes=['pedestrian'],
    )
    model = build(small_config)
    inputs, samples = batch((500, 0, 1), num_boxes=6)
    losses = model.loss(inputs, samples)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    found = [sample.pred_instances_3d for sample in model.eval().predict(inputs, samples)]
    assert len(found[0]) and not len(found[1])
    assert all(
        result.scores_3d.isfinite().all() and result.bboxes_3d.tensor.isfinite().all()
        for result in found
    )
