"""Brightness, thinned and cropped frames, bare ground, and the ground that objects are put on."""

import numpy as np
import pytest
import torch
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import LiDARInstance3DBoxes, LiDARPoints
from mmengine.registry import init_default_scope

import stratified3d.plugin  # noqa: F401  (registers the transforms)
from stratified3d.simulation import simulate_frame


def build(**settings):
    init_default_scope('mmdet3d')
    return TRANSFORMS.build(settings)


@pytest.fixture(scope='module')
def simulated() -> dict:
    return simulate_frame(3, 'straight')


def make_frame(simulated: dict) -> dict:
    boxes = torch.from_numpy(simulated['boxes'].copy())
    return dict(
        points=LiDARPoints(torch.from_numpy(simulated['points'].copy()), points_dim=5),
        gt_bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
        gt_labels_3d=np.arange(len(boxes)),
    )


def count_inside(frame: dict) -> np.ndarray:
    """[K] points in each box, by plain geometry."""
    points = frame['points'].tensor.numpy()[:, :3].astype(float)
    counts = []
    for x, y, z, dx, dy, dz, yaw, *_ in frame['gt_bboxes_3d'].tensor.numpy().astype(float):
        offset = points - [x, y, z + dz / 2]
        cos, sin = np.cos(yaw), np.sin(yaw)
        local = np.stack(
            [cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0]], 1
        )
        inside = (np.abs(local) < [dx / 2 - 1e-3, dy / 2 - 1e-3]).all(1)
        counts.append(int((inside & (np.abs(offset[:, 2]) < dz / 2 - 1e-3)).sum()))
    return np.array(counts)


def test_brightness_follows_the_curve_and_keeps_geometry(simulated):
    transform = build(type='VaryIntensity', log_gain=0.5, gamma=(0.5, 1.5), missing=0.0)
    before = simulated['points']
    gains = []
    for seed in range(20):
        np.random.seed(seed)
        after = transform.transform(make_frame(simulated))['points'].tensor.numpy()
        np.testing.assert_array_equal(after[:, [0, 1, 2, 4]], before[:, [0, 1, 2, 4]])
        assert after[:, 3].min() >= 0
        assert after[:, 3].max() <= 255
        order = np.argsort(before[:, 3], kind='stable')
        assert (np.diff(after[order, 3]) >= -1e-4).all()
        gains.append(after[:, 3].mean())
    assert max(gains) > 2 * min(gains)


def test_single_returns_may_lose_their_brightness(simulated):
    transform = build(type='VaryIntensity', log_gain=0.0, gamma=(1.0, 1.0), missing=0.0, zeros=0.5)
    before = simulated['points'][:, 3]
    shares = []
    for seed in range(20):
        np.random.seed(seed)
        after = transform.transform(make_frame(simulated))['points'].tensor[:, 3].numpy()
        is_lost = (after == 0) & (before > 0)
        np.testing.assert_allclose(after[~is_lost], before[~is_lost], rtol=1e-5)
        shares.append(is_lost.mean())
    assert max(shares) > 0.35
    assert min(shares) < 0.15


def test_brightness_may_be_missing(simulated):
    transform = build(type='VaryIntensity', log_gain=0.5, gamma=(1.0, 1.0), missing=1.0)
    for seed in range(10):
        np.random.seed(seed)
        after = transform.transform(make_frame(simulated))['points'].tensor[:, 3]
        assert len(after.unique()) == 1


@pytest.mark.parametrize(
    'settings',
    [dict(type='ThinFrame', prob=1.0, least=0.01), dict(type='KeepSector', prob=1.0)],
    ids=['thinned', 'cropped'],
)
def test_boxes_go_with_their_points(simulated, settings):
    transform = build(**settings)
    before = make_frame(simulated)
    shares = []
    for seed in range(8):
        np.random.seed(seed)
        frame = transform.transform(make_frame(simulated))
        shares.append(len(frame['points']) / len(before['points']))
        assert len(frame['gt_bboxes_3d']) == len(frame['gt_labels_3d'])
        kept = frame['gt_labels_3d']
        torch.testing.assert_close(
            frame['gt_bboxes_3d'].tensor, before['gt_bboxes_3d'].tensor[kept]
        )
        # a box that was dropped has at most one point, up to those on its faces
        dropped = np.setdiff1d(np.arange(len(before['gt_labels_3d'])), kept)
        rest = dict(frame, gt_bboxes_3d=before['gt_bboxes_3d'][dropped])
        assert (count_inside(rest) < 2).all()
    assert min(shares) < 0.5 * max(shares)


def test_cropped_frames_are_sectors(simulated):
    np.random.seed(1)
    frame = build(type='KeepSector', prob=1.0, degrees=(90.0, 90.0)).transform(
        make_frame(simulated)
    )
    x, y = frame['points'].tensor[:, :2].double().T.numpy()
    azimuth = np.sort(np.arctan2(y, x))
    gaps = np.diff(np.append(azimuth, azimuth[0] + 2 * np.pi))
    assert np.degrees(gaps.max()) == pytest.approx(270, abs=3)


@pytest.mark.parametrize('name', ['ThinFrame', 'KeepSector', 'BareGround'])
def test_no_frame_changes_at_a_share_of_zero(simulated, name):
    frame = build(type=name, prob=0.0).transform(make_frame(simulated))
    np.testing.assert_array_equal(frame['points'].tensor.numpy(), simulated['points'])
    assert len(frame['gt_labels_3d']) == len(simulated['boxes'])
    with pytest.raises(ValueError, match='not 2'):
        build(type=name, prob=2)


def test_bare_ground_is_flat_and_empty(simulated):
    transform = build(type='BareGround', prob=1.0)
    counts = []
    for seed in range(60):
        np.random.seed(seed)
        frame = transform.transform(make_frame(simulated))
        points = frame['points'].tensor.numpy()
        counts.append(len(points))
        assert len(frame['gt_bboxes_3d']) == len(frame['gt_labels_3d']) == 0
        if len(points) > 100:
            design = np.column_stack([np.ones(len(points)), points[:, :2]])
            plane = np.linalg.lstsq(design, points[:, 2], rcond=None)[0]
            assert -2.7 < plane[0] < -1.3
            assert np.std(points[:, 2] - design @ plane) < 0.07
    assert min(counts) <= 1
    assert 5000 < max(counts) <= 20000


def test_sampled_objects_are_put_on_the_ground(simulated):
    """The plane is mmdet3d's: objects move by their distance from it."""
    frame = build(type='FindGroundPlane').transform(make_frame(simulated))
    plane = frame['plane']
    assert plane[2] == 1.0
    near = np.hypot(*simulated['boxes'][:, :2].T) < 25
    off = simulated['boxes'][near, :3] @ plane[:3] + plane[3]
    assert np.abs(off).max() < 0.5
    assert np.median(np.abs(off)) < 0.2


def test_without_ground_boxes_tell_its_height(simulated):
    frame = make_frame(simulated)
    frame['points'] = frame['points'][:2]
    plane = build(type='FindGroundPlane').transform(frame)['plane']
    np.testing.assert_allclose(plane, [0, 0, 1, -np.median(simulated['boxes'][:, 2])], atol=1e-5)
    frame['gt_bboxes_3d'] = frame['gt_bboxes_3d'][:0]
    plane = build(type='FindGroundPlane', height=-1.5).transform(frame)['plane']
    np.testing.assert_allclose(plane, [0, 0, 1, 1.5])
