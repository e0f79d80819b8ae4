"""Every transform that our configs train with, against geometry: probes ride on each box and where
it will be soon.

A probe is a point at a known place of its box: bottom center, front, left side, top, and where the
center is DT seconds later. Whatever a transform does to the points, it must do to position, size,
yaw and velocity of the box.
"""

import pickle

import numpy as np
import pytest
import torch
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes, LiDARPoints
from mmengine.config import Config
from mmengine.registry import init_default_scope

import stratified3d.plugin  # noqa: F401  (registers the parts of configs)

CONFIGS = [
    'configs/stratified/stratified-centerpoint_voxel03_8xb4-cyclic-20e_nus-3d.py',
    'projects/quickstart/configs/quickstart.py',
    'projects/quickstart/configs/any_sensor.py',
]
LOADING = {'LoadKeyframe', 'LoadAlignedSweeps', 'LoadAnnotations3D'}
CHECKED = {
    'ObjectSample',
    'GlobalRotScaleTrans',
    'RandomFlip3D',
    'PointsRangeFilter',
    'ObjectRangeFilter',
    'ObjectNameFilter',
    'PointShuffle',
    'ThinNearPoints',
    'DropSweeps',
    'TiltGround',
    'FindGroundPlane',
    'Pack3DDetInputs',
}
# what replaces points or numbers of the probes: test_sensor_variation.py, test_roughness.py
REPLACED = {'VaryIntensity', 'ThinFrame', 'KeepSector', 'BareGround', 'RoughenGround'}
DT = 0.25
PROBES = 5


def make_boxes(count, seed, rows=6, spacing=14.0, first=0):
    """[count, 9] boxes on a grid, too far apart to touch and with probes that stay in their
    cell."""
    rng = np.random.default_rng(seed)
    cell = np.arange(first, first + count)
    center = (np.column_stack([cell // rows, cell % rows]) - (rows - 1) / 2) * spacing
    return np.column_stack(
        [
            center + rng.uniform(-1, 1, (count, 2)),
            rng.uniform(-2, 0, count),
            rng.uniform([2, 1, 1], [5, 2, 2], (count, 3)),
            rng.uniform(-np.pi, np.pi, count),
            rng.uniform(-8, 8, (count, 2)),
        ]
    ).astype(np.float32)


def make_probes(boxes, first=0):
    """[PROBES * K, 5] points; intensity numbers them, so that shuffling and filtering do not
    matter."""
    ahead = np.column_stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))])
    left = np.column_stack([-ahead[:, 1], ahead[:, 0], ahead[:, 2]])
    up = np.array([0, 0, 1.0])
    velocity = np.column_stack([boxes[:, 7:9], np.zeros(len(boxes))])
    offset = np.stack(
        [
            0 * ahead,
            ahead * boxes[:, 3:4] / 2,
            left * boxes[:, 4:5] / 2,
            up * boxes[:, 5:6],
            velocity * DT,
        ],
        1,
    )
    number = PROBES * first + np.arange(PROBES * len(boxes))
    points = (boxes[:, None, :3] + offset).reshape(-1, 3)
    return np.column_stack([points, number, np.zeros(len(points))]).astype(np.float32)


def make_frame(boxes, labels=None):
    return dict(
        points=LiDARPoints(torch.from_numpy(make_probes(boxes)), points_dim=5),
        gt_bboxes_3d=LiDARInstance3DBoxes(torch.from_numpy(boxes.copy()), box_dim=9),
        gt_labels_3d=np.zeros(len(boxes), np.int64) if labels is None else labels,
    )


def check(frame, mirrored=False, complete=True):
    """Every box sits on its probes, sees them where they were put and moves towards the last one ->
    their numbers."""
    points, boxes = (
        frame['points'].tensor.numpy().astype(float),
        frame['gt_bboxes_3d'].tensor.numpy().astype(float),
    )
    where = {int(row[3]): row[:3] for row in points}
    assert len(where) == len(points)
    found = []
    for x, y, z, dx, dy, dz, yaw, vx, vy in boxes:
        number = min(
            (n for n in where if n % PROBES == 0), key=lambda n: np.abs(where[n] - [x, y, z]).max()
        )
        found.append(number // PROBES)
        ahead, left = (
            np.array([np.cos(yaw), np.sin(yaw), 0]),
            np.array([-np.sin(yaw), np.cos(yaw), 0]),
        )
        truth = np.array(
            [
                [0, 0, 0],
                ahead * dx / 2,
                (-left if mirrored else left) * dy / 2,
                [0, 0, dz],
                [vx * DT, vy * DT, 0],
            ]
        )
        for k in range(PROBES):
            if complete or number + k in where:
                assert np.abs(where[number + k] - [x, y, z] - truth[k]).max() < 1e-3, (number, k)
    assert len(set(found)) == len(found)
    return found


def build(settings):
    init_default_scope('mmdet3d')
    return TRANSFORMS.build(settings)


def pipeline(root, path):
    config = Config.fromfile(root / path)
    dataset = config.train_dataloader.dataset
    return dataset.get('dataset', dataset).pipeline


@pytest.mark.parametrize('path', CONFIGS)
def test_no_transform_is_forgotten(root, path):
    assert {t.type for t in pipeline(root, path)} <= LOADING | CHECKED | REPLACED


@pytest.mark.parametrize('seed', range(8))
def test_rotation_scale_and_shift(seed):
    boxes = make_boxes(36, seed)
    np.random.seed(seed)
    frame = build(
        dict(
            type='GlobalRotScaleTrans',
            rot_range=[-np.pi, np.pi],
            scale_ratio_range=[0.7, 1.4],
            translation_std=[2, 2, 1],
        )
    ).transform(make_frame(boxes))
    assert check(frame) == list(range(36))
    sizes = frame['gt_bboxes_3d'].tensor[:, 3:6].numpy() / boxes[:, 3:6]
    np.testing.assert_allclose(sizes, frame['pcd_scale_factor'], rtol=1e-5)
    speed = np.linalg.norm(frame['gt_bboxes_3d'].tensor[:, 7:], axis=1) / np.linalg.norm(
        boxes[:, 7:], axis=1
    )
    np.testing.assert_allclose(speed, frame['pcd_scale_factor'], rtol=1e-4)
    assert np.abs(frame['gt_bboxes_3d'].tensor.numpy() - boxes).max() > 0.3


@pytest.mark.parametrize('horizontal', [0.0, 1.0])
@pytest.mark.parametrize('vertical', [0.0, 1.0])
def test_flip_mirrors_points_boxes_and_velocities(horizontal, vertical):
    boxes = make_boxes(36, 1)
    frame = build(
        dict(
            type='RandomFlip3D',
            sync_2d=False,
            flip_ratio_bev_horizontal=horizontal,
            flip_ratio_bev_vertical=vertical,
        )
    ).transform(make_frame(boxes))
    assert check(frame, mirrored=horizontal != vertical) == list(range(36))
    signs = 1 - 2 * np.array([vertical, horizontal])  # horizontal changes y, vertical x
    np.testing.assert_allclose(
        frame['gt_bboxes_3d'].tensor[:, :2].numpy(), boxes[:, :2] * signs, rtol=1e-6
    )


def test_the_check_notices_what_is_wrong():
    """Yaw or velocity left behind, a velocity not scaled, a flip of the points alone."""

    def spoil(change):
        frame = build(
            dict(type='GlobalRotScaleTrans', rot_range=[0.3, 0.3], scale_ratio_range=[1.2, 1.2])
        ).transform(make_frame(make_boxes(9, 0)))
        change(frame)
        with pytest.raises(AssertionError):
            check(frame)

    spoil(lambda f: f['gt_bboxes_3d'].tensor[:, 6].sub_(0.01))
    spoil(lambda f: f['gt_bboxes_3d'].tensor[:, 7:].mul_(1 / 1.2))
    spoil(lambda f: f['gt_bboxes_3d'].tensor[:, 6].add_(np.pi))
    spoil(lambda f: f['points'].flip('horizontal'))
    spoil(lambda f: f['gt_bboxes_3d'].tensor[:, 2].add_(0.1))


@pytest.mark.parametrize('most, left', [(1000, 180), (170, 170), (10, 120)])
def test_thinning_takes_near_points_only_and_adds_none(most, left):
    frame = make_frame(make_boxes(36, 0))
    before = frame['points'].tensor.clone()
    near = before[:, :2].norm(dim=1) < 25
    assert int((~near).sum()) == 120
    after = (
        build(dict(type='ThinNearPoints', max_points=most, radius=25.0))
        .transform(frame)['points']
        .tensor
    )
    assert len(after) == left and len(after[:, 3].unique()) == left
    assert set(before[~near, 3].tolist()) <= set(after[:, 3].tolist())
    assert torch.equal(after, before[torch.isin(before[:, 3], after[:, 3])])


@pytest.mark.parametrize('prob', [0.0, 0.5, 1.0])
def test_sweeps_are_dropped_from_so_many_frames(prob):
    np.random.seed(0)
    transform, alone = build(dict(type='DropSweeps', prob=prob)), 0
    for _ in range(200):
        frame = make_frame(make_boxes(4, 0))
        frame['points'].tensor[::3, 4] = DT
        before = frame['points'].tensor.clone()
        after = transform.transform(frame)['points'].tensor
        alone += len(after) < len(before)
        assert torch.equal(after, before[before[:, 4] == 0] if len(after) < len(before) else before)
    assert alone == 200 * prob if prob in (0, 1) else 70 < alone < 130


def test_a_share_of_frames_that_is_none_is_refused():
    with pytest.raises(ValueError, match='0 to 1, not 2'):
        build(dict(type='DropSweeps', prob=2))


def test_tilted_ground_carries_the_boxes():
    boxes = make_boxes(36, 3)
    transform, slopes = build(dict(type='TiltGround', degrees=2.0)), []
    for seed in range(200):
        np.random.seed(seed)
        frame = make_frame(boxes)
        center = frame['gt_bboxes_3d'].gravity_center
        frame['points'].tensor[::PROBES, :3] = center
        after = transform.transform(frame)
        points, turned = after['points'].tensor, after['gt_bboxes_3d']
        torch.testing.assert_close(points[::PROBES, :3], turned.gravity_center, atol=1e-5, rtol=0)
        torch.testing.assert_close(turned.gravity_center.norm(dim=1), center.norm(dim=1))
        assert np.array_equal(turned.tensor[:, 3:].numpy(), boxes[:, 3:])
        assert np.array_equal(points[:, 3:].numpy(), make_probes(boxes)[:, 3:])
        plane = np.linalg.lstsq(center.numpy(), turned.gravity_center[:, 2].numpy(), rcond=None)[0]
        slopes.append(np.degrees(np.arcsin(plane[:2])))
    assert np.abs(slopes).max() < 6.1
    np.testing.assert_allclose(np.std(slopes, 0), 2.0, rtol=0.15)
    np.testing.assert_allclose(np.mean(slopes, 0), 0.0, atol=0.4)


def test_level_ground_and_cliffs():
    frame = build(dict(type='TiltGround', degrees=0)).transform(make_frame(make_boxes(36, 3)))
    assert check(frame) == list(range(36))
    with pytest.raises(ValueError, match='0 to 10, not 45'):
        build(dict(type='TiltGround', degrees=45))


def test_range_filters_drop_points_and_objects_outside():
    boxes = make_boxes(36, 2)
    boxes[:, 6] *= 5  # several turns
    reach = [-20.0, -20, -5, 20, 20, 3]
    frame = build(dict(type='ObjectRangeFilter', point_cloud_range=reach)).transform(
        make_frame(boxes)
    )
    inside = np.flatnonzero((np.abs(boxes[:, :2]) < 20).all(1))
    assert 4 <= len(inside) < 36 and check(frame) == inside.tolist()
    assert frame['gt_bboxes_3d'].tensor[:, 6].abs().max() <= np.pi + 1e-5 and len(
        frame['gt_labels_3d']
    ) == len(inside)
    before = frame['points'].tensor.numpy()
    points = (
        build(dict(type='PointsRangeFilter', point_cloud_range=reach))
        .transform(frame)['points']
        .tensor.numpy()
    )
    kept = ((before[:, :3] > reach[:3]) & (before[:, :3] < reach[3:])).all(1)
    assert 0 < kept.sum() < len(before) and np.array_equal(points, before[kept])
    assert check(frame, complete=False) == inside.tolist()


@pytest.fixture
def sampler(tmp_path):
    """Settings of an ObjectSample whose database holds given boxes with their probes."""

    def make(boxes, first=0, cars=None):
        entries = []
        for i, box in enumerate(boxes):
            points = make_probes(box[None], first + i)
            points[:, :3] -= box[:3]
            points.tofile(tmp_path / f'{i}.bin')
            entries.append(
                dict(
                    name='car',
                    path=f'{i}.bin',
                    image_idx=0,
                    gt_idx=i,
                    num_points_in_gt=PROBES,
                    difficulty=0,
                    group_id=i,
                    box3d_lidar=box,
                )
            )
        (tmp_path / 'database.pkl').write_bytes(pickle.dumps(dict(car=entries)))
        return dict(
            type='ObjectSample',
            db_sampler=dict(
                type='GroundTruthSampler',
                data_root=f'{tmp_path}/',
                info_path=str(tmp_path / 'database.pkl'),
                rate=1.0,
                classes=['car'],
                prepare=dict(filter_by_min_points=dict(car=5)),
                sample_groups=dict(car=cars or len(boxes)),
                points_loader=dict(
                    type='LoadPointsFromFile',
                    coord_type='LIDAR',
                    load_dim=5,
                    use_dim=[0, 1, 2, 3, 4],
                ),
            ),
        )

    return make


def test_sampled_objects_bring_their_points(sampler):
    """Pasted where they were recorded, with their heading and motion; what was there is
    untouched."""
    there, pasted = make_boxes(18, 3), make_boxes(18, 4, first=18)
    frame = build(sampler(pasted, 18, cars=36)).transform(make_frame(there))
    assert sorted(check(frame)) == list(range(36))
    assert np.array_equal(frame['gt_bboxes_3d'].tensor[:18].numpy(), there)


def test_sampled_objects_make_room_and_do_not_overlap(sampler):
    """Long boxes at an angle: with the angle turned the wrong way, each answer would be the other
    one."""
    there = np.array([[0, 0, -1, 12, 1, 1, 0.7, 0, 0]], np.float32)
    along, across = there[0].copy(), there[0].copy()
    along[:2] = np.array([np.cos(0.7), np.sin(0.7)]) * 5
    across[:2] = np.array([np.cos(0.7), -np.sin(0.7)]) * 5
    along[3:5] = across[3:5] = 1, 1
    labels = np.array([1])  # of another class, so that cars are wanting
    frame = build(sampler(np.stack([along, across]), 1)).transform(make_frame(there, labels))
    assert sorted(check(frame)) == [0, 2]
    frame = make_frame(there, labels)
    static = np.array(
        [[*along[:2], 0, 100, 0], [*across[:2], -0.5, 101, 0], [*across[:2] + 1.2, -0.5, 102, 0]],
        np.float32,
    )
    frame['points'] = frame['points'].cat(
        [frame['points'], frame['points'].new_point(torch.from_numpy(static))]
    )
    across[3:5] = 3, 1  # it covers the second point, not the third
    points = build(sampler(across[None], 1)).transform(frame)['points'].tensor[:, 3]
    assert 100 in points and 101 not in points and 102 in points


@pytest.mark.parametrize('path', CONFIGS)
@pytest.mark.parametrize('seed', range(3))
def test_the_whole_pipeline_of_a_config(root, path, seed, sampler):
    """All that follows loading, as configured; probes near a border may be filtered away."""
    pasted = make_boxes(9, seed + 50, first=27)
    frame, mirrored = make_frame(make_boxes(27, seed)), False
    np.random.seed(seed)
    for settings in pipeline(root, path):
        # a tilted box no longer sits on its probes, and intensities number them
        if settings.type in LOADING | {'Pack3DDetInputs', 'TiltGround', *REPLACED}:
            continue
        frame = build(
            sampler(pasted, 27, cars=36) if settings.type == 'ObjectSample' else settings
        ).transform(frame)
        if settings.type == 'RandomFlip3D':
            mirrored = frame['pcd_horizontal_flip'] != frame['pcd_vertical_flip']
    borders = next(
        t.point_cloud_range for t in pipeline(root, path) if t.type == 'ObjectRangeFilter'
    )
    assert len(frame['gt_bboxes_3d']) == len(frame['gt_labels_3d']) > 15
    points = frame['points'].tensor[:, :3].numpy()
    assert (points > borders[:3]).all() and (points < borders[3:]).all()
    check(frame, mirrored=mirrored, complete=False)
