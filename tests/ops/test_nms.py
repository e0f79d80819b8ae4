import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import affinity, box

from stratified3d.ops import circle_nms, rotated_intersection, rotated_iou, rotated_nms
from stratified3d.ops.nms import greedy_keep, greedy_keep_within, rotated_overlaps


def polygon(b):
    x, y, dx, dy, yaw = b
    return affinity.translate(
        affinity.rotate(box(-dx / 2, -dy / 2, dx / 2, dy / 2), yaw, use_radians=True), x, y
    )


def random_boxes(count, rng):
    return np.column_stack(
        [
            rng.uniform(-6, 6, (count, 2)),
            rng.lognormal(0.5, 0.7, (count, 2)),
            rng.uniform(-4, 4, count),
        ]
    )


@pytest.mark.parametrize('place', [0.0, 5000.0])
def test_rotated_intersections_equal_shapely(place):
    rng = np.random.default_rng(0)
    a, b = random_boxes(3000, rng), random_boxes(3000, rng)
    a[:, :2] += place
    b[:, :2] += place
    expected = [polygon(p).intersection(polygon(q)).area for p, q in zip(a, b)]
    np.testing.assert_allclose(
        rotated_intersection(torch.tensor(a), torch.tensor(b)), expected, atol=2e-5
    )


DEGENERATE = [
    ((0, 0, 4, 2, 0.3), (0, 0, 4, 2, 0.3)),  # the same
    ((0, 0, 4, 2, 0.3), (0, 0, 4, 2, 0.3 + math.pi)),  # flipped
    ((0, 0, 2, 2, 0.1), (0, 0, 2, 2, 0.1 + math.pi / 2)),  # a quarter turn of a square
    ((0, 0, 4, 2, 0.0), (2, 0, 4, 2, 0.0)),  # shared long edges
    ((0, 0, 4, 2, 0.0), (4, 0, 4, 2, 0.0)),  # touching
    ((0, 0, 4, 4, 0.7), (0, 0, 1, 1, 0.2)),  # inside
    ((0, 0, 4, 4, 0.0), (1.5, 1.5, 1, 1, 0.0)),  # inside, in the corner
    ((0, 0, 4, 2, 0.0), (9, 9, 4, 2, 1.0)),  # apart
    ((0, 0, 4, 0, 0.0), (0, 0, 4, 2, 1.0)),  # no area
    ((0, 0, 6, 1, 0.0), (0, 0, 6, 1, 1e-9)),  # almost the same
]


@pytest.mark.parametrize('a, b', DEGENERATE)
def test_intersections_of_degenerate_pairs_equal_shapely(a, b):
    for p, q in ((a, b), (b, a)):
        inter = float(
            rotated_intersection(
                torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)
            )
        )
        assert inter == pytest.approx(polygon(p).intersection(polygon(q)).area, abs=4e-5)


def test_rotated_iou_and_its_gradient():
    a = torch.tensor([0.0, 0, 4, 2, 0.0], dtype=torch.float64)
    b = torch.tensor([1.0, 0.2, 3, 2, 0.4], dtype=torch.float64, requires_grad=True)
    assert float(rotated_iou(a, a)) == pytest.approx(1, abs=1e-5)
    assert float(rotated_iou(a * 0, a * 0)) == 0
    assert torch.autograd.gradcheck(lambda x: rotated_iou(a, x), b)


def greedy(overlap):
    keep = []
    for j in range(len(overlap)):
        if not any(overlap[i][j] for i in keep):
            keep.append(j)
    return keep


@settings(deadline=None, max_examples=30)
@given(count=st.integers(0, 40), seed=st.integers(0, 1000), limit=st.sampled_from([None, 3]))
def test_nms_equals_the_greedy_loop(count, seed, limit):
    rng = np.random.default_rng(seed)
    boxes = random_boxes(count, rng)
    scores = np.round(rng.random(count), 1)  # with ties
    order = np.argsort(-scores, kind='stable')
    shapes = [polygon(boxes[i]) for i in order]
    iou = [[p.intersection(q).area / p.union(q).area > 0.2 for q in shapes] for p in shapes]
    found = rotated_nms(torch.tensor(boxes), torch.tensor(scores), 0.2, limit)
    assert found.tolist() == order[greedy(iou)][:limit].tolist()

    gap = np.linalg.norm(boxes[order, None, :2] - boxes[order, :2], axis=-1) <= 2.5
    found = circle_nms(torch.tensor(boxes[:, :2]), torch.tensor(scores), 2.5, limit)
    assert found.tolist() == order[greedy(gap)][:limit].tolist()


class _GreedyNms(torch.nn.Module):
    def forward(self, overlaps):
        return greedy_keep(overlaps)


def test_exported_nms_equals_the_eager_one():
    overlaps = torch.rand(30, 30) < 0.15
    exported = torch.export.export(_GreedyNms(), (overlaps,)).module()
    for chance in (0.0, 0.05, 0.3, 1.0):
        overlaps = torch.rand(30, 30) < chance
        assert torch.equal(exported(overlaps), greedy_keep(overlaps))
    chain = torch.diag(torch.ones(29), 1) > 0  # each suppresses the next: as many rounds as boxes
    assert torch.equal(exported(chain), torch.arange(30) % 2 == 0)


def test_nms_in_fixed_rounds_says_whether_they_were_enough():
    overlaps = torch.rand(30, 30, generator=torch.Generator().manual_seed(0)) < 0.15
    keep, is_done = greedy_keep_within(overlaps, 31)
    assert is_done and torch.equal(keep, greedy_keep(overlaps))
    chain = torch.diag(torch.ones(29), 1) > 0
    keep, is_done = greedy_keep_within(chain, 31)
    assert is_done and torch.equal(keep, greedy_keep(chain))
    keep, is_done = greedy_keep_within(chain, 28)
    assert not is_done and torch.equal(keep[:28], greedy_keep(chain)[:28])


def test_all_pairs_overlap_as_the_near_ones_do():
    generator = torch.Generator().manual_seed(0)
    places = 12 * torch.rand(50, 2, generator=generator)
    boxes = torch.cat([places, 0.5 + 4 * torch.rand(50, 3, generator=generator)], 1)
    counted = torch.rand(50, generator=generator) < 0.8
    expected = rotated_overlaps(boxes, 0.1, counted)
    assert expected.any()
    assert torch.equal(rotated_overlaps(boxes, 0.1, counted, all_pairs=True), expected)
