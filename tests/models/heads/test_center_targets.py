import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet3d.models.dense_heads import CenterHead
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from stratified3d.models.heads.center_targets import assign_targets, widen_targets

TASKS = [
    ['car'],
    ['truck', 'construction_vehicle'],
    ['bus', 'trailer'],
    ['pedestrian', 'cone', 'barrier'],
]
NUM_CLASSES = [len(t) for t in TASKS]
RANGE, VOXEL, STRIDE = [-20.0, -15.0, -5.0, 20.0, 15.0, 3.0], [0.1, 0.3, 8.0], 2
SIZE = (50, 200)  # Y, X: not square on purpose


def mmdet3d_targets(boxes, labels, max_objs):
    head = CenterHead(
        in_channels=4,
        tasks=[dict(num_class=len(t), class_names=t) for t in TASKS],
        share_conv_channel=4,
        bbox_coder=dict(
            type='CenterPointBBoxCoder',
            pc_range=RANGE[:2],
            out_size_factor=STRIDE,
            voxel_size=VOXEL[:2],
        ),
        common_heads=dict(reg=(2, 2)),
        separate_head=dict(type='SeparateHead', init_bias=-2.19, final_kernel=3),
        train_cfg=dict(
            max_objs=max_objs,
            dense_reg=1,
            grid_size=[400, 100, 1],
            point_cloud_range=RANGE,
            voxel_size=VOXEL,
            out_size_factor=STRIDE,
            gaussian_overlap=0.1,
            min_radius=2,
        ),
    )
    # their class index counts through a list of names: give every class a number
    head.class_names = [list(range(len(t))) for t in TASKS]
    instances = [
        InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(b, box_dim=9, origin=(0.5, 0.5, 0.5)), labels_3d=c
        )
        for b, c in zip(boxes, labels)
    ]
    return [i.bboxes_3d for i in instances], list(zip(*head.get_targets(instances)))


def random_boxes(count, rng):
    boxes = np.empty((count, 9), np.float32)
    boxes[:, :2] = rng.uniform([-24, -18], [24, 18], (count, 2))  # some off the map
    boxes[:, 2] = rng.uniform(-3, 1, count)
    boxes[:, 3:6] = rng.lognormal(0.5, 0.8, (count, 3))
    boxes[:, 6] = rng.uniform(-4, 4, count)
    boxes[:, 7:] = rng.normal(0, 3, (count, 2))
    boxes[rng.random(count) < 0.1, 3] = 0  # no area
    boxes[rng.random(count) < 0.1, 7] = np.nan  # unknown velocity
    # just left of the map: truncation towards zero still takes it
    boxes[rng.random(count) < 0.1, 0] = -20.1
    return torch.from_numpy(boxes)


@settings(deadline=None, max_examples=25)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
    max_objs=st.sampled_from([500, 6]),
)
def test_targets_equal_mmdet3d(counts, seed, max_objs):
    rng = np.random.default_rng(seed)
    boxes = [random_boxes(n, rng) for n in counts]
    labels = [torch.from_numpy(rng.integers(-1, sum(NUM_CLASSES), n)) for n in counts]
    stored, expected = mmdet3d_targets(boxes, labels, max_objs)
    # the box class moves z to the bottom and back, which rounds: both sides start from what it
    # returns
    targets = assign_targets(
        [torch.cat([b.gravity_center, b.tensor[:, 3:]], 1) for b in stored],
        labels,
        NUM_CLASSES,
        feature_map_size=SIZE,
        voxel_size=VOXEL,
        point_cloud_range=RANGE,
        stride=STRIDE,
        max_objs=max_objs,
    )
    assert len(targets) == len(expected) == len(TASKS)
    for target, (heatmap, box, index, mask) in zip(targets, expected):
        # exp in double by numpy and by torch may differ in its last bit, so the float32 may in its
        # own
        torch.testing.assert_close(target.heatmap, heatmap, rtol=1.2e-7, atol=0)
        assert torch.equal(target.heatmap == 1, heatmap == 1)
        assert torch.equal(target.mask, mask.bool())
        assert torch.equal(target.cell_index, index)
        torch.testing.assert_close(target.bbox_targets, box, rtol=0, atol=0, equal_nan=True)


def test_targets_of_boxes_without_velocity_have_8_numbers():
    boxes = random_boxes(5, np.random.default_rng(0)).nan_to_num(1.0).clamp(min=0.5)
    targets = assign_targets(
        [boxes[:, :7]],
        [torch.zeros(5, dtype=torch.long)],
        NUM_CLASSES,
        feature_map_size=SIZE,
        voxel_size=VOXEL,
        point_cloud_range=RANGE,
        stride=STRIDE,
    )
    assert targets[0].bbox_targets.shape == (1, 500, 8)
    assert not any(t.mask.any() for t in targets[1:])


@pytest.mark.parametrize('count', [0, 1])
def test_heatmap_has_as_many_peaks_as_objects(count):
    boxes = torch.tensor([[0.05, 0.05, 0, 4, 2, 1.5, 0.3, 1, 2]])[:count]
    target = assign_targets(
        [boxes],
        [torch.zeros(count, dtype=torch.long)],
        [1],
        feature_map_size=SIZE,
        voxel_size=VOXEL,
        point_cloud_range=RANGE,
        stride=STRIDE,
    )[0]
    assert int(target.heatmap.eq(1).sum()) == count == int(target.mask.sum())


@settings(deadline=None, max_examples=25)
@given(count=st.integers(0, 30), radius=st.integers(0, 2), seed=st.integers(0, 10**6))
def test_widened_targets_point_at_the_nearest_object(count, radius, seed):
    boxes = random_boxes(count, np.random.default_rng(seed))
    target = assign_targets(
        [boxes, boxes[:0]],
        [torch.zeros(len(b), dtype=torch.long) for b in (boxes, boxes[:0])],
        [1],
        feature_map_size=SIZE,
        voxel_size=VOXEL,
        point_cloud_range=RANGE,
        stride=STRIDE,
    )[0]
    wide = widen_targets(target, radius, SIZE)
    area = (2 * radius + 1) ** 2
    assert wide.mask.shape == (2, 500 * area) and not wide.mask[1].any()
    assert torch.equal(wide.heatmap, target.heatmap)
    own, index = target.bbox_targets[target.mask], target.cell_index[target.mask]
    centers = own[:, :2] + torch.stack([index % SIZE[1], index // SIZE[1]], 1)
    entry = wide.mask[0].nonzero().squeeze(1)
    owner = (target.mask[0].cumsum(0) - 1)[entry // area]  # objects without a cell leave gaps
    cells = torch.stack([wide.cell_index[0] % SIZE[1], wide.cell_index[0] // SIZE[1]], 1)[entry]
    found = wide.bbox_targets[0, entry]
    torch.testing.assert_close(found[:, :2] + cells, centers[owner], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[:, 2:], own[owner, 2:], rtol=0, atol=0, equal_nan=True)
    assert (cells >= 0).all() and (cells < torch.tensor([SIZE[1], SIZE[0]])).all()
    # every object keeps its own cell; any other cell belongs to the nearest of the objects that
    # reach it
    is_own = index[owner] == wide.cell_index[0, entry]
    assert set(owner[is_own].tolist()) == set(range(len(own)))
    for cell, i, own_cell in zip(cells, owner, is_own):
        reach = (centers.trunc() - cell).abs().amax(1) <= radius
        distance = (centers - cell - 0.5).norm(dim=1)
        taken = (centers.trunc() == cell).all(1).any()
        assert own_cell or not taken and distance[i] <= distance[reach].min() + 1e-5
