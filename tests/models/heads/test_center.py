from functools import partial

import pytest
import torch
from mmdet3d.registry import MODELS

from stratified3d.models.heads.box_coding import encode_axis

RANGE = (-12.8, -12.8, -2.0, 12.8, 12.8, 2.0)
TASKS = [['car'], ['truck', 'bus'], ['pedestrian']]


@pytest.fixture
def make_head(build_head):
    return partial(
        build_head,
        type='StratifiedCenterHead',
        in_channels=8,
        tasks=TASKS,
        voxel_size=(0.4, 0.4, 0.5),
        point_cloud_range=RANGE,
        stride=2,
        shared_channels=8,
    )


@pytest.fixture
def ground_truth(pack_boxes):
    """A car, a bus and a pedestrian."""

    def make(use_velocity=True):
        boxes = torch.tensor(
            [
                [-8.0, 3.1, -1, 4.5, 1.9, 1.6, 0.4, 3, -1],
                [6.2, -7.7, -1, 9, 2.6, 3, -2.1, 0, 0],
                [0.3, 0.2, -1, 0.7, 0.7, 1.7, 3.0, 1, 1],
            ]
        )
        return pack_boxes(boxes if use_velocity else boxes[:, :7], torch.tensor([0, 2, 3]))

    return make


def perfect_predictions(head, instances):
    """Outputs of all cells that equal the targets."""
    outs = []
    for target in head.get_targets(instances):
        batch, _, height, width = target.heatmap.shape
        encoding = torch.zeros(batch, target.bbox_targets.shape[2], height * width)
        for b in range(batch):
            mask = target.mask[b]
            encoding[b][:, target.cell_index[b][mask]] = target.bbox_targets[b][mask].T
        encoding = encoding.view(batch, -1, height, width)
        widths = [2, 1, 3, 2, 2][: len(head.branches)]
        parts = dict(zip(head.branches, encoding.split(widths, 1)))
        outs.append([dict(heatmap=torch.logit(target.heatmap, 1e-4), **parts)])
    return outs


@pytest.mark.parametrize('use_velocity', [True, False])
@pytest.mark.parametrize(
    'nms', [dict(type='rotated', iou=0.2), dict(type='circle', radius=[2.0, 3.0, 0.4])]
)
def test_decoding_undoes_the_targets(use_velocity, nms, make_head, ground_truth):
    head = make_head(use_velocity=use_velocity, nms=nms)
    instances = [ground_truth(use_velocity), ground_truth(use_velocity)[:1]]
    found = head.predict_by_feat(perfect_predictions(head, instances), [{}, {}])
    for result, expected in zip(found, instances):
        best = result[result.scores_3d > 0.99]
        best, expected = best[best.labels_3d.argsort()], expected[expected.labels_3d.argsort()]
        assert torch.equal(best.labels_3d, expected.labels_3d)
        torch.testing.assert_close(
            best.bboxes_3d.tensor, expected.bboxes_3d.tensor, atol=1e-4, rtol=1e-4
        )


def test_loss_of_perfect_predictions_is_small_and_of_others_is_not(make_head, ground_truth):
    head = make_head()
    instances = [ground_truth()]
    preds = perfect_predictions(head, instances)
    losses = head.loss_by_feat(preds, instances)
    assert all(float(losses[f'task{t}.loss_bbox']) < 1e-6 for t in range(3))
    assert head.loss_by_feat(preds, instances) == losses, 'predictions are left as they are'
    worse = [
        [{k: v + 1 for k, v in pred.items()}] for (pred,) in perfect_predictions(head, instances)
    ]
    assert all(float(v) > float(losses[k]) for k, v in head.loss_by_feat(worse, instances).items())


@pytest.mark.parametrize('joint_branches', [False, True])
def test_yaw_is_taken_from_the_axis_and_its_direction_from_the_yaw(
    joint_branches, make_head, ground_truth
):
    head = make_head(axis_weight=1.0, joint_branches=joint_branches)
    instances = [ground_truth()]
    preds = perfect_predictions(make_head(), instances)
    for (pred,) in preds:
        axis = encode_axis(
            torch.cat([pred[n] for n in ('reg', 'height', 'dim', 'rot')], 1).movedim(1, -1)
        )
        pred['axis'] = axis.movedim(-1, 1)
        sin, cos = pred['rot'].unbind(1)
        pred['rot'] = 0.3 * torch.stack([cos + 0.5 * sin, 0.5 * cos - sin], 1)  # 63 degrees off
        if joint_branches:
            pred['box'] = torch.cat(
                [pred[n] for n in ('reg', 'height', 'dim', 'rot', 'vel', 'axis')], 1
            )
    losses = head.loss_by_feat(preds, instances)
    assert all(float(losses[f'task{t}.loss_axis']) < 1e-6 for t in range(3))
    assert all(float(losses[f'task{t}.loss_bbox']) > 0.1 for t in range(3))
    (found,) = head.predict_by_feat(preds, [{}])
    best = found[found.scores_3d > 0.99]
    best = best[best.labels_3d.argsort()]
    torch.testing.assert_close(best.bboxes_3d.tensor, instances[0].bboxes_3d.tensor)


@pytest.mark.parametrize(
    'settings', [dict(joint_branches=True), dict(iou_loss_weight=0.2), dict(heading={})]
)
def test_axis_branch_learns(settings, make_head, ground_truth):
    """One frame is overfitted, with a heading that is right."""
    head = make_head(axis_weight=1.0, **settings)
    maps = (torch.randn(2, 8, 32, 32),)
    instances = [ground_truth(), ground_truth()]
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        sum(head.loss_by_feat(head(maps), instances).values()).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    for found, true in zip(head.predict_by_feat(head(maps), [{}, {}]), instances):
        for label, yaw in zip(true.labels_3d.tolist(), true.bboxes_3d.yaw.tolist()):
            of_class = found[found.labels_3d == label]
            best = of_class.bboxes_3d.yaw[of_class.scores_3d.argmax()]
            assert float((best - yaw).cos()) > 0.95


def test_loss_equals_mmdet3d(make_head, ground_truth):
    head = make_head()
    baseline = MODELS.build(
        dict(
            type='CenterHead',
            in_channels=8,
            tasks=[dict(num_class=len(t), class_names=t) for t in TASKS],
            share_conv_channel=8,
            common_heads=dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2), vel=(2, 2)),
            bbox_coder=dict(
                type='CenterPointBBoxCoder',
                pc_range=RANGE[:2],
                out_size_factor=2,
                voxel_size=[0.4, 0.4],
            ),
            separate_head=dict(type='SeparateHead', head_conv=8, init_bias=-2.19, final_kernel=3),
            loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=0.25),
            train_cfg=dict(
                max_objs=500,
                dense_reg=1,
                grid_size=[64, 64, 8],
                point_cloud_range=RANGE,
                out_size_factor=2,
                voxel_size=[0.4, 0.4, 0.5],
                gaussian_overlap=0.1,
                min_radius=2,
                code_weights=[1.0] * 8 + [0.2] * 2,
            ),
        )
    )
    baseline.class_names = [list(range(len(t))) for t in TASKS]
    baseline.load_state_dict(head.state_dict())
    feature_maps = [torch.randn(2, 8, 32, 32)]
    instances = [ground_truth(), ground_truth()[:0]]
    losses, expected = (h.loss_by_feat(h(feature_maps), instances) for h in (head, baseline))
    assert losses.keys() == expected.keys()
    for name in losses:
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-5, atol=1e-6)


def test_heatmap_scores_start_at_about_a_tenth(make_head):
    head = make_head()
    head.init_weights()
    scores = head([torch.randn(2, 8, 32, 32)])[0][0]['heatmap'].sigmoid()
    assert 0.05 < scores.mean() < 0.2


def test_unknown_velocity_is_not_learned(make_head, ground_truth):
    head = make_head()
    known, unknown = ground_truth(), ground_truth()
    unknown.bboxes_3d.tensor[:, 7:] = torch.nan
    feat = torch.randn(1, 8, 32, 32)
    loss = sum(head.loss_by_feat(head([feat]), [unknown]).values())
    assert loss.isfinite() and loss < sum(head.loss_by_feat(head([feat]), [known]).values())
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_settings_that_do_not_fit_are_refused(make_head, ground_truth):
    with pytest.raises(ValueError, match="nms type .* 'soft'"):
        make_head(nms=dict(type='soft'))
    with pytest.raises(ValueError, match='radius has 1 entries'):
        make_head(nms=dict(type='circle', radius=[1.0]))
    with pytest.raises(ValueError, match='needs its iou'):
        make_head(nms=dict(type='rotated'))
    with pytest.raises(ValueError, match='code_weights has 3'):
        make_head(code_weights=[1, 1, 1])
    with pytest.raises(ValueError, match='set axis_weight'):
        make_head(heading={})
    with pytest.raises(ValueError, match='boxes have 7 numbers'):
        make_head().get_targets([ground_truth(use_velocity=False)])
    head = make_head(stride=4)
    with pytest.raises(ValueError, match=r'\(32, 32\) cells, .* \(16, 16\)'):
        head.loss_by_feat(head([torch.randn(1, 8, 32, 32)]), [ground_truth()])


def test_feature_maps_with_fewer_cells_than_max_num_are_decoded(make_head):
    """mmdet3d's coder fails when asked for more cells than the BEV feature map has."""
    head = make_head(stride=16)
    found = head.predict_by_feat(head([torch.randn(1, 8, 4, 4)]), [{}])
    assert len(found) == 1


def test_iou_losses_of_perfect_boxes_are_zero(make_head, ground_truth):
    head = make_head(iou_weight=1.0, iou_loss_weight=0.5)
    instances = [ground_truth()]
    preds = perfect_predictions(head, instances)
    for (pred,) in preds:
        pred['iou'] = torch.ones_like(pred['heatmap'][:, :1])
    losses = head.loss_by_feat(preds, instances)
    assert all(
        float(losses[f'task{t}.{name}']) < 1e-4
        for t in range(3)
        for name in ('loss_iou', 'loss_iou_branch')
    )
    for (pred,) in preds:
        pred['height'] = pred['height'] + 5  # no overlap: the branch is wrong by 2 now
    losses = head.loss_by_feat(preds, instances)
    for t in range(3):
        assert float(losses[f'task{t}.loss_iou_branch']) == pytest.approx(2, rel=1e-3)
        assert 0.5 < float(losses[f'task{t}.loss_iou']) < 1.0


def test_boxes_with_a_low_predicted_iou_score_less(make_head, ground_truth):
    head = make_head(iou_weight=1.0, iou_power=[0.5, 0.5, 0.5, 0.0])
    preds = perfect_predictions(head, [ground_truth()])
    for (pred,) in preds:
        pred['iou'] = torch.full_like(pred['heatmap'][:, :1], -0.5)  # an IoU of 0.25
    (result,) = head.predict_by_feat(preds, [{}])
    best = {label: float(result.scores_3d[result.labels_3d == label].max()) for label in (0, 2, 3)}
    assert best == pytest.approx({0: 0.5, 2: 0.5, 3: 1.0}, abs=1e-3)


def test_iou_branch_and_loss_give_gradients_to_every_parameter(make_head, ground_truth):
    head = make_head(iou_weight=1.0, iou_loss_weight=1.0)
    preds = head((torch.randn(1, 8, 32, 32),))
    sum(head.loss_by_feat(preds, [ground_truth()]).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize('power', [[0.5] * 3, 1.5, [0.1, 0.2, 0.3, -1]])
def test_iou_powers_that_do_not_fit_are_refused(power, make_head):
    with pytest.raises(ValueError, match='iou_power'):
        make_head(iou_power=power)
