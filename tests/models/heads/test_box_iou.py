import pytest
import torch
from shapely import affinity
from shapely.geometry import box as rectangle

from stratified3d.models.heads.box_iou import iou3d_and_distance, rectify_score

CELL = (0.8, 0.4)


def random_codes(count, seed):
    draw = torch.Generator().manual_seed(seed)
    code = torch.randn(count, 8, generator=draw, dtype=torch.float64)
    code[:, :2] = torch.rand(count, 2, generator=draw, dtype=torch.float64)
    code[:, 2] /= 3
    code[:, 3:6] = code[:, 3:6] / 4 + torch.tensor([1.2, 0.6, 0.4])
    return code


def footprint(code):
    """shapely's polygon of a code, and its z interval."""
    x, y, z, *log_dims, sin, cos = code.tolist()
    dx, dy, dz = torch.tensor(log_dims).exp().tolist()
    flat = affinity.rotate(
        rectangle(-dx / 2, -dy / 2, dx / 2, dy / 2),
        float(torch.atan2(torch.tensor(sin), torch.tensor(cos))),
        origin=(0, 0),
        use_radians=True,
    )
    return affinity.translate(flat, x * CELL[0], y * CELL[1]), z - dz / 2, z + dz / 2


def test_iou_equals_shapelys():
    a, b = random_codes(200, 0), random_codes(200, 1)
    expected = []
    for first, second in zip(a, b):
        (p, p0, p1), (q, q0, q1) = footprint(first), footprint(second)
        shared = p.intersection(q).area * max(0.0, min(p1, q1) - max(p0, q0))
        expected.append(shared / (p.area * (p1 - p0) + q.area * (q1 - q0) - shared))
    assert 20 < sum(iou > 0.2 for iou in expected) < 180
    iou, distance = iou3d_and_distance(a, b, CELL)
    assert (iou - torch.tensor(expected)).abs().max() < 1e-5
    assert (distance >= 0).all() and (distance <= 1).all()


def test_equal_boxes_overlap_fully_at_no_distance():
    code = random_codes(50, 2)
    iou, distance = iou3d_and_distance(code, code, CELL)
    assert (iou - 1).abs().max() < 1e-5 and distance.max() == 0


def test_distance_is_that_of_hand_computed_boxes():
    code, target = torch.zeros(8), torch.zeros(8)  # unit cubes, turned by nothing
    code[7] = target[7] = 1
    code[0] = 2 / CELL[0]  # two meters apart
    iou, distance = iou3d_and_distance(code, target, CELL)
    assert iou == 0
    assert float(distance) == pytest.approx(4 / (3**2 + 1 + 1))


def test_gradients():
    a, b = random_codes(20, 3), random_codes(20, 4)
    assert torch.autograd.gradcheck(lambda x: iou3d_and_distance(x, b, CELL), a.requires_grad_())


def test_descent_brings_boxes_together():
    code, target = random_codes(30, 5).requires_grad_(), random_codes(30, 6)
    descent = torch.optim.Adam([code], lr=0.02)
    for _ in range(400):
        iou, distance = iou3d_and_distance(code, target, CELL)
        descent.zero_grad()
        (1 - iou + distance).sum().backward()
        descent.step()
    assert iou3d_and_distance(code, target, CELL)[0].median() > 0.9


def test_codes_without_an_angle_or_of_absurd_size_have_finite_gradients():
    code = torch.zeros(3, 8)
    code[1, 3:6], code[2, 3:6] = 200, -200
    code.requires_grad_()
    iou, distance = iou3d_and_distance(code, random_codes(3, 7), CELL)
    (iou + distance).sum().backward()
    assert iou.isfinite().all() and distance.isfinite().all() and code.grad.isfinite().all()


def test_scores_follow_the_overlap_as_told():
    heat, iou, power = (
        torch.full((4,), 0.64),
        torch.tensor([1.0, -0.5, 1.0, -0.5]),
        torch.tensor([0.5, 0.5, 0, 0]),
    )
    assert rectify_score(heat, iou, power).tolist() == pytest.approx([0.8, 0.4, 0.64, 0.64])
