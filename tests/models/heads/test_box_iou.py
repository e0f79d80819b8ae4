from functools import partial

import pytest
import torch
from shapely import affinity
from shapely.geometry import box as rectangle

from stratified3d.models.heads.box_iou import iou3d_and_distance, rectify_score

CELL_SIZE = (0.8, 0.4)


@pytest.fixture
def random_boxes(random_encodings):
    return partial(random_encodings, z_scale=1 / 3, dtype=torch.float64)


def footprint(encoding):
    """shapely's polygon of a box encoding, and its z interval."""
    x, y, z, *log_dims, sin, cos = encoding.tolist()
    dx, dy, dz = torch.tensor(log_dims).exp().tolist()
    flat = affinity.rotate(
        rectangle(-dx / 2, -dy / 2, dx / 2, dy / 2),
        float(torch.atan2(torch.tensor(sin), torch.tensor(cos))),
        origin=(0, 0),
        use_radians=True,
    )
    return affinity.translate(flat, x * CELL_SIZE[0], y * CELL_SIZE[1]), z - dz / 2, z + dz / 2


def test_iou_equals_that_of_shapely(random_boxes):
    a, b = random_boxes(200, 0), random_boxes(200, 1)
    expected = []
    for first, second in zip(a, b):
        (p, p0, p1), (q, q0, q1) = footprint(first), footprint(second)
        common = p.intersection(q).area * max(0.0, min(p1, q1) - max(p0, q0))
        expected.append(common / (p.area * (p1 - p0) + q.area * (q1 - q0) - common))
    assert 20 < sum(iou > 0.2 for iou in expected) < 180
    iou, distance = iou3d_and_distance(a, b, CELL_SIZE)
    assert (iou - torch.tensor(expected)).abs().max() < 1e-5
    assert (distance >= 0).all() and (distance <= 1).all()


def test_equal_boxes_overlap_fully_at_no_distance(random_boxes):
    encoding = random_boxes(50, 2)
    iou, distance = iou3d_and_distance(encoding, encoding, CELL_SIZE)
    assert (iou - 1).abs().max() < 1e-5 and distance.max() == 0


def test_distance_is_that_of_hand_computed_boxes():
    encoding, target = torch.zeros(8), torch.zeros(8)  # unit cubes that are not rotated
    encoding[7] = target[7] = 1
    encoding[0] = 2 / CELL_SIZE[0]  # two meters apart
    iou, distance = iou3d_and_distance(encoding, target, CELL_SIZE)
    assert iou == 0
    assert float(distance) == pytest.approx(4 / (3**2 + 1 + 1))


def test_gradients_equal_finite_differences(random_boxes):
    a, b = random_boxes(20, 3), random_boxes(20, 4)
    assert torch.autograd.gradcheck(
        lambda x: iou3d_and_distance(x, b, CELL_SIZE), a.requires_grad_()
    )


@pytest.mark.slow
def test_descent_brings_boxes_together(random_boxes):
    encoding, target = random_boxes(30, 5).requires_grad_(), random_boxes(30, 6)
    descent = torch.optim.Adam([encoding], lr=0.02)
    for _ in range(400):
        iou, distance = iou3d_and_distance(encoding, target, CELL_SIZE)
        descent.zero_grad()
        (1 - iou + distance).sum().backward()
        descent.step()
    assert iou3d_and_distance(encoding, target, CELL_SIZE)[0].median() > 0.9


def test_encodings_without_an_angle_or_of_absurd_size_have_finite_gradients(random_boxes):
    encoding = torch.zeros(3, 8)
    encoding[1, 3:6], encoding[2, 3:6] = 200, -200
    encoding.requires_grad_()
    iou, distance = iou3d_and_distance(encoding, random_boxes(3, 7), CELL_SIZE)
    (iou + distance).sum().backward()
    assert iou.isfinite().all() and distance.isfinite().all() and encoding.grad.isfinite().all()


def test_rectified_scores_follow_the_iou_as_far_as_its_power_says():
    score = torch.full((4,), 0.64)
    iou = torch.tensor([1.0, -0.5, 1.0, -0.5])
    power = torch.tensor([0.5, 0.5, 0, 0])
    assert rectify_score(score, iou, power).tolist() == pytest.approx([0.8, 0.4, 0.64, 0.64])
