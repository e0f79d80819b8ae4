import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

RANGE = (-12.8, -12.8, -2.0, 12.8, 12.8, 2.0)
TASKS = [['car'], ['truck', 'bus'], ['pedestrian']]


def make_head(**settings):
    torch.manual_seed(0)
    return MODELS.build(
        dict(
            type='StratifiedCenterHead',
            in_channels=8,
            tasks=TASKS,
            voxel_size=(0.4, 0.4, 0.5),
            point_cloud_range=RANGE,
            stride=2,
            shared_channels=8,
        )
        | settings
    )


def perfect_predictions(head, instances):
    """Maps that say exactly what the targets say."""
    outs = []
    for target in head.get_targets(instances):
        batch, _, height, width = target.heatmap.shape
        code = torch.zeros(batch, target.bbox_targets.shape[2], height * width)
        for b in range(batch):
            mask = target.mask[b]
            code[b][:, target.cell_index[b][mask]] = target.bbox_targets[b][mask].T
        code = code.view(batch, -1, height, width)
        parts = dict(zip(head.branches, code.split([2, 1, 3, 2, 2][: len(head.branches)], 1)))
        outs.append([dict(heatmap=torch.logit(target.heatmap, 1e-4), **parts)])
    return outs


def truth(use_velocity=True):
    boxes = torch.tensor(
        [
            [-8.0, 3.1, -1, 4.5, 1.9, 1.6, 0.4, 3, -1],
            [6.2, -7.7, -1, 9, 2.6, 3, -2.1, 0, 0],
            [0.3, 0.2, -1, 0.7, 0.7, 1.7, 3.0, 1, 1],
        ]
    )
    boxes = boxes if use_velocity else boxes[:, :7]
    return InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[1]),
        labels_3d=torch.tensor([0, 2, 3]),
    )


@pytest.mark.parametrize('use_velocity', [True, False])
@pytest.mark.parametrize(
    'nms', [dict(type='rotated', iou=0.2), dict(type='circle', radius=[2.0, 3.0, 0.4])]
)
def test_decoding_undoes_the_targets(use_velocity, nms):
    head = make_head(use_velocity=use_velocity, nms=nms)
    instances = [truth(use_velocity), truth(use_velocity)[:1]]
    found = head.predict_by_feat(perfect_predictions(head, instances), [{}, {}])
    for result, expected in zip(found, instances):
        best = result[result.scores_3d > 0.99]
        best, expected = best[best.labels_3d.argsort()], expected[expected.labels_3d.argsort()]
        assert torch.equal(best.labels_3d, expected.labels_3d)
        torch.testing.assert_close(
            best.bboxes_3d.tensor, expected.bboxes_3d.tensor, atol=1e-4, rtol=1e-4
        )


def test_loss_of_perfect_predictions_is_small_and_of_others_is_not():
    head = make_head()
    instances = [truth()]
    maps = perfect_predictions(head, instances)
    losses = head.loss_by_feat(maps, instances)
    assert all(float(losses[f'task{t}.loss_bbox']) < 1e-6 for t in range(3))
    assert head.loss_by_feat(maps, instances) == losses, 'predictions are left as they are'
    worse = [
        [{k: v + 1 for k, v in pred.items()}] for (pred,) in perfect_predictions(head, instances)
    ]
    assert all(float(v) > float(losses[k]) for k, v in head.loss_by_feat(worse, instances).items())


def test_loss_equals_mmdet3d():
    head = make_head()
    theirs = MODELS.build(
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
    theirs.class_names = [list(range(len(t))) for t in TASKS]
    theirs.load_state_dict(head.state_dict())
    maps, instances = [torch.randn(2, 8, 32, 32)], [truth(), truth()[:0]]
    ours, expected = (h.loss_by_feat(h(maps), instances) for h in (head, theirs))
    assert ours.keys() == expected.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-5, atol=1e-6)


def test_heatmaps_start_low():
    head = make_head()
    head.init_weights()
    heat = head([torch.randn(2, 8, 32, 32)])[0][0]['heatmap'].sigmoid()
    assert 0.05 < heat.mean() < 0.2


def test_unknown_velocity_is_learned_nowhere():
    head = make_head()
    known, unknown = truth(), truth()
    unknown.bboxes_3d.tensor[:, 7:] = torch.nan
    feat = torch.randn(1, 8, 32, 32)
    loss = sum(head.loss_by_feat(head([feat]), [unknown]).values())
    assert loss.isfinite() and loss < sum(head.loss_by_feat(head([feat]), [known]).values())
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="nms type is 'circle' or 'rotated', not 'soft'"):
        make_head(nms=dict(type='soft'))
    with pytest.raises(ValueError, match='nms radius has 1 entries for 3 tasks'):
        make_head(nms=dict(type='circle', radius=[1.0]))
    with pytest.raises(ValueError, match="nms type 'rotated' needs its iou"):
        make_head(nms=dict(type='rotated'))
    with pytest.raises(ValueError, match='code_weights has 3 entries'):
        make_head(code_weights=[1, 1, 1])
    with pytest.raises(ValueError, match='boxes have 7 numbers, but the head learns velocity'):
        make_head().get_targets([truth(use_velocity=False)])
    head = make_head(stride=4)
    with pytest.raises(
        ValueError, match=r"give \(16, 16\): does the head's stride fit the backbone's"
    ):
        head.loss_by_feat(head([torch.randn(1, 8, 32, 32)]), [truth()])


def test_tiny_maps_decode():
    """mmdet3d's coder fails when asked for more cells than the map has."""
    head = make_head(stride=16)
    found = head.predict_by_feat(head([torch.randn(1, 8, 4, 4)]), [{}])
    assert len(found) == 1


def test_the_iou_branch_and_loss_know_a_perfect_box():
    head = make_head(iou_weight=1.0, iou_loss_weight=0.5)
    instances = [truth()]
    maps = perfect_predictions(head, instances)
    for (pred,) in maps:
        pred['iou'] = torch.ones_like(pred['heatmap'][:, :1])
    losses = head.loss_by_feat(maps, instances)
    assert all(
        float(losses[f'task{t}.{name}']) < 1e-4
        for t in range(3)
        for name in ('loss_iou', 'loss_iou_branch')
    )
    for (pred,) in maps:
        pred['height'] = pred['height'] + 5  # no overlap: the branch is wrong by 2 now
    losses = head.loss_by_feat(maps, instances)
    for t in range(3):
        assert float(losses[f'task{t}.loss_iou_branch']) == pytest.approx(2, rel=1e-3)
        assert 0.5 < float(losses[f'task{t}.loss_iou']) < 1.0


def test_boxes_that_fit_badly_score_less():
    head = make_head(iou_weight=1.0, iou_power=[0.5, 0.5, 0.5, 0.0])
    maps = perfect_predictions(head, [truth()])
    for (pred,) in maps:
        pred['iou'] = torch.full_like(pred['heatmap'][:, :1], -0.5)  # an IoU of 0.25
    (result,) = head.predict_by_feat(maps, [{}])
    best = {label: float(result.scores_3d[result.labels_3d == label].max()) for label in (0, 2, 3)}
    assert best == pytest.approx({0: 0.5, 2: 0.5, 3: 1.0}, abs=1e-3)


def test_the_head_with_iou_learns_from_its_own_maps():
    head = make_head(iou_weight=1.0, iou_loss_weight=1.0)
    maps = head((torch.randn(1, 8, 32, 32),))
    sum(head.loss_by_feat(maps, [truth()]).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize('power', [[0.5] * 3, 1.5, [0.1, 0.2, 0.3, -1]])
def test_iou_powers_that_do_not_fit_are_refused(power):
    with pytest.raises(ValueError, match='iou_power'):
        make_head(iou_power=power)
