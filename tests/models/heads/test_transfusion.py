import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from stratified3d.models.heads import transfusion as transfusion_head
from stratified3d.models.heads.box_coding import decode_boxes

RANGE = (-12.8, -6.4, -2.0, 12.8, 6.4, 2.0)  # a map of 16 x 32 cells: not square on purpose
TASKS = [['car', 'truck'], ['pedestrian']]


def make_head(**settings):
    torch.manual_seed(0)
    return MODELS.build(
        dict(
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
        | settings
    )


def truth(count=4, use_velocity=True):
    boxes = torch.tensor(
        [
            [-8.0, 3.1, -1, 4.5, 1.9, 1.6, 0.4, 3, -1],
            [6.2, -4.7, -1, 9, 2.6, 3, -2.1, 0, 0],
            [0.3, 0.2, -1, 0.7, 0.7, 1.7, 3.0, 1, 1],
            [0.3, 1.2, -1, 0.6, 0.6, 1.6, 2.0, 1, 1],
        ]
    )
    boxes = boxes[:count, : 9 if use_velocity else 7]
    return InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[1]),
        labels_3d=torch.tensor([0, 1, 2, 2])[:count],
    )


def crowd(count, seed=0):
    """Many small boxes, up to several a cell."""
    draw = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 9, generator=draw) * torch.tensor([25.0, 12.0, 1, 1, 1, 1, 6, 2, 2])
    boxes += torch.tensor([-12.5, -6, -1, 0.4, 0.4, 0.4, -3, -1, -1])
    return InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
        labels_3d=torch.randint(0, 3, (count,), generator=draw),
    )


def maps(batch=1, seed=0):
    return [torch.randn(batch, 8, 16, 32, generator=torch.Generator().manual_seed(seed))]


def perfect_predictions(head, instances):
    """What the targets say, its first queries in reverse order, the rest of them nothing."""
    target = head.get_targets(instances)
    batch, classes = target.heatmap.shape[:2]
    count = head.num_proposals
    code = torch.randn(batch, count, len(head.code_weights))
    logits, labels = (
        torch.full((batch, count, classes), -15.0),
        torch.zeros(batch, count, dtype=torch.long),
    )
    peaks = torch.zeros(batch, count)
    for b, (true_code, label) in enumerate(zip(target.bbox_targets, target.labels)):
        rows = torch.arange(len(label)).flip(0)
        code[b, rows], labels[b, rows], peaks[b, rows], logits[b, rows, label] = (
            true_code,
            label,
            1.0,
            15.0,
        )
    return dict(
        heatmap=torch.logit(target.heatmap, 1e-4),
        labels=labels,
        peak_scores=peaks,
        logits=logits,
        encoding=code,
        iou=torch.ones(batch, count),
    )


@pytest.mark.parametrize('use_velocity', [True, False])
def test_decoding_undoes_the_targets(use_velocity):
    head, instances = (
        make_head(use_velocity=use_velocity),
        [truth(n, use_velocity) for n in (4, 2, 0)],
    )
    for sample, code, label, expected in zip(range(3), *head.get_targets(instances)[1:], instances):
        boxes = decode_boxes(code, head.cell_size, head.origin)
        boxes[:, 2] -= boxes[:, 5] / 2
        assert torch.equal(label, expected.labels_3d), sample  # the truths are sorted by class
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


def test_loss_of_perfect_predictions_is_small_and_of_others_is_not():
    head = make_head()
    instances = [truth(), truth(1)]
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


def test_heatmap_is_the_center_heads():
    settings = dict(
        in_channels=8, tasks=TASKS, voxel_size=(0.4, 0.4, 0.5), point_cloud_range=RANGE, stride=2
    )
    center = MODELS.build(dict(type='StratifiedCenterHead', **settings))
    expected = torch.cat(
        [target.heatmap for target in center.get_targets([crowd(30), truth(0)])], 1
    )
    assert torch.equal(make_head().get_targets([crowd(30), truth(0)]).heatmap, expected)


@pytest.mark.parametrize('objects, queries', [(0, 20), (300, 20), (20, 300), (1, 1)])
def test_any_number_of_objects_and_queries(objects, queries):
    head = make_head(num_proposals=queries)
    out = head(maps(2))
    losses = head.loss_by_feat(out, [crowd(objects), crowd(objects)[: objects // 2]])
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    if not objects:
        assert all(
            float(losses[name]) == 0 for name in ('loss_bbox', 'loss_iou', 'loss_iou_branch')
        )
        assert float(losses['loss_cls']) > 0 and float(losses['loss_heatmap']) > 0
    found = head.eval().predict_by_feat(head(maps(2)), [{}, {}])
    assert all(0 < len(result) <= queries for result in found)


def test_every_parameter_learns():
    head = make_head()
    sum(head.loss_by_feat(head(maps(2)), [crowd(15), truth()]).values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_boxes_start_at_their_peaks(monkeypatch):
    head = make_head(num_proposals=2, small_classes=[])
    seen = []
    head.position.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torch.nn.init.zeros_(head.box_branches['center'][-1].weight)
    torch.nn.init.zeros_(head.box_branches['center'][-1].bias)
    queries = torch.ones(1, 2), torch.tensor([[0, 1]]), torch.tensor([[3 * 32 + 30, 0]])
    monkeypatch.setattr(transfusion_head, 'select_queries', lambda *args: queries)
    assert head(maps())['encoding'][0, :, :2].tolist() == [[30.5, 3.5], [0.5, 0.5]]
    # places are coded from -1 to 1 along both axes
    assert seen[0].amin(0).tolist() == pytest.approx([-1 + 1 / 32, -1 + 1 / 16])
    assert seen[0].amax(0).tolist() == pytest.approx([1 - 1 / 32, 1 - 1 / 16])


def test_a_fit_box_scores_more_and_weak_ones_are_dropped():
    head = make_head(num_proposals=4, score_threshold=0.1, iou_power=[0.5, 0.5, 0.0])
    preds = perfect_predictions(head, [truth()])
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


def test_unknown_velocity_and_boxes_off_the_map_are_learned_nowhere():
    head = make_head()
    unknown = truth()
    unknown.bboxes_3d.tensor[0, 7:] = torch.nan
    unknown.bboxes_3d.tensor[1, 0] = 100
    assert [len(code) for code in head.get_targets([unknown]).bbox_targets] == [3]
    losses = head.loss_by_feat(head(maps()), [unknown])
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert all(value.isfinite() for value in losses.values())
    preds = perfect_predictions(head, [unknown])
    preds['encoding'] = torch.where(preds['encoding'].isnan(), 7.0, preds['encoding'])
    assert float(head.loss_by_feat(preds, [unknown])['loss_bbox']) < 1e-5


def test_a_diverged_model_shows_in_its_loss():
    head = make_head()
    out = {name: v * torch.nan if v.is_floating_point() else v for name, v in head(maps()).items()}
    assert head.loss_by_feat(out, [truth()])['loss_cls'].isnan()


def test_bf16_autocast():
    head = make_head(dropout=0.0)
    plain = head.loss_by_feat(head(maps(2)), [truth(), truth(0)])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = head(maps(2))
        losses = head.loss_by_feat(out, [truth(), truth(0)])
    assert out['heatmap'].dtype == torch.bfloat16 and out['encoding'].dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in losses.values())
    torch.testing.assert_close(sum(losses.values()), sum(plain.values()), rtol=0.1, atol=0)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    with (
        torch.no_grad(),
        torch.autocast('cpu', dtype=torch.bfloat16),
    ):  # attention takes other paths here
        assert len(head.eval().predict_by_feat(head(maps()), [{}])[0])


def test_a_seed_decides_everything():
    def run():
        head = make_head()
        losses = head.loss_by_feat(head(maps(2)), [crowd(25), truth()])
        sum(losses.values()).backward()
        return [*losses.values(), *(p.grad for p in head.parameters())]

    assert all(torch.equal(a, b) for a, b in zip(run(), run()))


def test_a_sample_is_treated_as_if_it_were_alone():
    head = make_head().eval()
    both, alone = head(maps(2)), head([maps(2)[0][1:]])
    for name, value in alone.items():
        torch.testing.assert_close(both[name][1:], value, atol=1e-5, rtol=1e-5)


def test_losses_averaged_over_processes_are_those_of_the_whole_batch(monkeypatch):
    head = make_head(sync_avg_factor=True).eval()
    out, instances = head(maps(2)), [crowd(12), truth(2)]
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


def test_bad_settings_are_named():
    for tasks, message in (
        (['car', 'truck'], 'tasks are lists of class names'),
        ([], 'tasks name each class once'),
        ([['car'], ['car']], r"tasks name each class once, not \['car', 'car'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            make_head(tasks=tasks, small_classes=[])
    with pytest.raises(
        ValueError, match=r"small_classes is a list of class names out of .*, not \['cone'\]"
    ):
        make_head(small_classes=['cone'])
    with pytest.raises(
        ValueError, match='num_proposals is 2000, but the heatmap has 3 classes of 512 cells'
    ):
        make_head(num_proposals=2000)
    with pytest.raises(ValueError, match='channels 16 is not a multiple of num_heads 3'):
        make_head(num_heads=3)
    with pytest.raises(ValueError, match='match_weights'):
        make_head(match_weights=[1.0])
    with pytest.raises(ValueError, match='code_weights has 3 entries'):
        make_head(code_weights=[1, 1, 1])
    with pytest.raises(ValueError, match=r'iou_power'):
        make_head(iou_power=[0.5, 0.5])
    with pytest.raises(ValueError, match='boxes have 7 numbers, but the head learns velocity'):
        make_head().get_targets([truth(use_velocity=False)])
    with pytest.raises(
        ValueError, match=r"give \(16, 32\): does the head's stride fit the backbone's"
    ):
        make_head()([torch.randn(1, 8, 32, 32)])
    wrong = truth()
    wrong.labels_3d[2] = 7
    with pytest.raises(
        ValueError, match='sample 1 has an object of class 7, but the head has 3 classes'
    ):
        make_head().get_targets([truth(), wrong])


def test_it_learns_a_map_by_heart():
    """From noise with a mark at every object to its box, class and velocity."""
    head = make_head(dropout=0.0)
    instances = [truth()]
    target = head.get_targets(instances)
    feats = maps()[0] * 0.1
    for k, code in enumerate(target.bbox_targets[0]):
        feats[0, 2 * k : 2 * k + 2, int(code[1]), int(code[0])] += 3
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


def test_in_the_detector(small_config, build, batch):
    """Loss, gradients and detections of empty, tiny and ordinary clouds."""
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
