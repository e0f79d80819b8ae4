"""Ground that rises and falls, with grass: what moves, by how much, and what must not."""

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
    return TRANSFORMS.build(dict(type='RoughenGround', **settings))


@pytest.fixture(scope='module')
def simulated() -> dict:
    return simulate_frame(3, 'straight')


def make_frame(simulated: dict) -> dict:
    boxes = torch.from_numpy(simulated['boxes'].copy())
    frame = dict(
        points=LiDARPoints(torch.from_numpy(simulated['points'].copy()), points_dim=5),
        gt_bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
        gt_labels_3d=np.arange(len(boxes)),
    )
    return TRANSFORMS.build(dict(type='FindGroundPlane')).transform(frame)


def in_boxes(frame: dict) -> np.ndarray:
    """[P, K], by plain geometry, with 5 cm of margin."""
    points = frame['points'].tensor.numpy()[:, None, :3].astype(float)
    boxes = frame['gt_bboxes_3d'].tensor.numpy().astype(float)
    dx, dy, dz = np.moveaxis(points - boxes[:, :3], -1, 0)
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    along, across = np.abs(cos * dx + sin * dy), np.abs(cos * dy - sin * dx)
    length, width, height = boxes[:, 3:6].T / 2 + 0.05
    return (along < length) & (across < width) & (np.abs(dz - height + 0.05) < height)


@pytest.mark.parametrize('seed', range(5))
def test_objects_move_with_their_points_and_only_up_or_down(simulated, seed):
    init_default_scope('mmdet3d')
    before, after = make_frame(simulated), make_frame(simulated)
    np.random.seed(seed)
    build(prob=1.0, waves=0.5, grass=0.0).transform(after)
    moved = (after['points'].tensor - before['points'].tensor).numpy()
    lifted = (after['gt_bboxes_3d'].tensor - before['gt_bboxes_3d'].tensor).numpy()
    assert not moved[:, [0, 1, 3, 4]].any()
    assert not lifted[:, [0, 1, 3, 4, 5, 6, 7, 8]].any()
    assert np.abs(lifted[:, 2]).max() > 0.1
    inside = in_boxes(before)
    alone = inside.sum(1) == 1  # of two touching boxes a point follows one
    rows, columns = np.nonzero(inside & alone[:, None])
    assert len(rows) > 500
    np.testing.assert_allclose(moved[rows, 2], lifted[columns, 2], atol=1e-5)


@pytest.mark.parametrize('seed', range(5))
def test_waves_leave_the_ground_beside_the_sensor(simulated, seed):
    before, after = make_frame(simulated), make_frame(simulated)
    np.random.seed(seed)
    build(prob=1.0, waves=0.5, grass=0.0).transform(after)
    moved = (after['points'].tensor - before['points'].tensor).numpy()[:, 2]
    distance = np.linalg.norm(simulated['points'][:, :2], axis=1)
    outside = ~in_boxes(before).any(1)
    assert not moved[(distance < 6) & outside].any()
    assert np.abs(moved[distance > 20]).max() > 0.1
    assert np.abs(moved).max() < 0.5 * 6**0.5 * 2**0.5 + 1e-6  # six waves of one phase


@pytest.mark.parametrize('seed', range(5))
def test_grass_shortens_beams_that_met_the_ground(simulated, seed):
    before, after = make_frame(simulated), make_frame(simulated)
    np.random.seed(seed)
    build(prob=1.0, waves=0.0, grass=0.4, cover=1.0).transform(after)
    old, new = (f['points'].tensor.numpy()[:, :3].astype(float) for f in (before, after))
    ratio = np.linalg.norm(new, axis=1) / np.linalg.norm(old, axis=1)
    changed = ratio < 1 - 1e-6
    assert changed.sum() > 100
    assert ratio.max() < 1 + 1e-6
    assert ratio[changed].min() > 0.39  # at most 0.6 of the depth grows up
    np.testing.assert_allclose(new, old * ratio[:, None], atol=1e-4)  # along the beam
    a, b, c, d = before['plane']
    height = old @ [a, b, c] + d
    assert (np.abs(height[changed]) < 0.36).all()
    assert not changed[in_boxes(before).any(1)].any()
    assert (new[changed, 2] > old[changed, 2]).all()
    np.testing.assert_array_equal(
        before['gt_bboxes_3d'].tensor.numpy(), after['gt_bboxes_3d'].tensor.numpy()
    )


def test_no_cover_no_grass(simulated):
    frame = make_frame(simulated)
    before = frame['points'].tensor.clone()
    build(prob=1.0, waves=0.0, grass=0.4, cover=0.0).transform(frame)
    assert (frame['points'].tensor != before).any(1).float().mean() < 1e-3


def test_share_of_the_frames(simulated):
    changed = 0
    for seed in range(40):
        frame = make_frame(simulated)
        np.random.seed(seed)
        build(prob=0.5).transform(frame)
        changed += bool((frame['points'].tensor.numpy() != simulated['points']).any())
    assert 10 < changed < 30


def test_frames_without_boxes_and_without_points(simulated):
    frame = make_frame(simulated)
    frame['gt_bboxes_3d'] = frame['gt_bboxes_3d'][:0]
    before = frame['points'].tensor.clone()
    assert (build(prob=1.0).transform(frame)['points'].tensor != before).any()
    frame['points'] = frame['points'][:0]
    assert len(build(prob=1.0).transform(frame)['points']) == 0


def test_settings_are_checked(simulated):
    with pytest.raises(ValueError, match='prob and cover are shares'):
        build(prob=1.5)
    with pytest.raises(ValueError, match='waves and grass lie in 0 to 2 m'):
        build(prob=0.5, grass=-0.1)
    frame = make_frame(simulated)
    del frame['plane']
    with pytest.raises(ValueError, match='needs FindGroundPlane before it'):
        build(prob=0.0).transform(frame)
