"""Non-maximum suppression in the bird's-eye view, in plain torch: no compiled operator on any
device."""

from __future__ import annotations

import torch
from torch import Tensor

# one of two boxes is grown by this much (meters) on every side, so that edges of the two never
# coincide
_MARGIN = 1e-6


def circle_nms(
    centers: Tensor, scores: Tensor, radius: float, max_keep: int | None = None
) -> Tensor:
    """Keep the best of all boxes whose centers lie within a radius (CenterPoint, Yin et al. 2021,
    section 4).

    Args:
        centers: [K, 2] meters.
        scores: [K].
        radius: meters; a box at most this far from a better kept one is suppressed.
        max_keep: at most so many are returned.
    Returns:
        [<= max_keep] int64 indices, by falling score.
    """
    order = scores.argsort(descending=True, stable=True)
    gap = centers[order].unsqueeze(0) - centers[order].unsqueeze(1)
    return order[_greedy_keep(gap.square().sum(-1) <= radius**2)][:max_keep]


def rotated_nms(boxes: Tensor, scores: Tensor, iou: float, max_keep: int | None = None) -> Tensor:
    """Keep the best of all boxes that overlap in the bird's-eye view.

    Args:
        boxes: [K, 5] x, y, dx, dy (meters), yaw (radians).
        scores: [K].
        iou: a box that overlaps a better kept one by more than this is suppressed.
        max_keep: at most so many are returned.
    Returns:
        [<= max_keep] int64 indices, by falling score.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order].double()
    # only boxes whose circumscribed circles meet can overlap
    reach = boxes[:, 2:4].norm(dim=1) / 2
    near = torch.cdist(boxes[:, :2], boxes[:, :2]) <= reach[:, None] + reach
    first, second = near.triu(1).nonzero(as_tuple=True)
    overlaps = torch.zeros_like(near)
    overlaps[first, second] = rotated_iou(boxes[first], boxes[second]) > iou
    return order[_greedy_keep(overlaps)][:max_keep]


def rotated_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of rotated rectangles, pair by pair.

    Args:
        a, b: [..., 5] x, y, dx, dy (meters), yaw (radians); fp64 for an error below 1e-5.
    Returns:
        [...]; boxes without area give 0.
    """
    inter = rotated_intersection(a, b)
    union = a[..., 2] * a[..., 3] + b[..., 2] * b[..., 3] - inter
    return torch.where(
        union > 0, inter / union.clamp(min=torch.finfo(union.dtype).tiny), torch.zeros_like(union)
    )


def rotated_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Area shared by rotated rectangles, pair by pair: [..., 5], [..., 5] -> [...] square meters.

    The boundary of the intersection is what of each boundary lies in the other rectangle, so its
    area is half the sum of cross products (Green's theorem) of the edges of a clipped to b and of
    the edges of b clipped to a.
    """
    # relative to a's center, so that large coordinates cost no digits
    b = torch.cat([b[..., :2] - a[..., :2], b[..., 2:4] + 2 * _MARGIN, b[..., 4:]], -1)
    a = torch.cat([torch.zeros_like(a[..., :2]), a[..., 2:]], -1)
    return ((_clipped_cross(a, b) + _clipped_cross(b, a)) / 2).clamp(min=0)


def _clipped_cross(a: Tensor, b: Tensor) -> Tensor:
    """Sum of cross products of a's edges clipped to rectangle b."""
    start = _corners(a)  # [..., 4, 2]
    step = start.roll(-1, -2) - start
    cos, sin = b[..., 4, None].cos(), b[..., 4, None].sin()
    local_start = _turn(start - b[..., None, :2], cos, sin)
    local_step = _turn(step, cos, sin)
    half = b[..., None, 2:4] / 2  # [..., 1, 2]
    # Liang-Barsky: the part of the edge between t0 and t1 lies between both pairs of parallel sides
    parallel = local_step.abs() < 1e-12
    safe = torch.where(parallel, torch.ones_like(local_step), local_step)
    bounds = torch.stack([(-half - local_start) / safe, (half - local_start) / safe])
    inside = local_start.abs() <= half
    low = torch.where(parallel, torch.where(inside, -torch.inf, torch.inf), bounds.amin(0))
    high = torch.where(parallel, torch.where(inside, torch.inf, -torch.inf), bounds.amax(0))
    t0 = low.amax(-1).clamp(min=0, max=1).unsqueeze(-1)  # [..., 4, 1]
    t1 = torch.maximum(high.amin(-1).clamp(min=0, max=1).unsqueeze(-1), t0)
    p, q = start + t0 * step, start + t1 * step
    return (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(-1)


def _corners(boxes: Tensor) -> Tensor:
    """[..., 5] -> [..., 4, 2], counter-clockwise."""
    signs = boxes.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    local = signs * boxes[..., None, 2:4]
    return (
        _turn(local, boxes[..., 4, None].cos(), -boxes[..., 4, None].sin()) + boxes[..., None, :2]
    )


def _turn(points: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [..., n, 2] by minus the angle of cos, sin [..., 1]."""
    x, y = points.unbind(-1)
    return torch.stack([x * cos + y * sin, y * cos - x * sin], -1)


def _greedy_keep(overlaps: Tensor) -> Tensor:
    """Greedy suppression among boxes sorted by falling score: [K, K] bool -> [K] bool.

    Box j falls if a kept box i < j overlaps it. Repeating that rule from "all kept" settles box j
    once all before it have settled, so it ends in the greedy solution, after as many rounds as the
    longest chain of suppressions.
    """
    blocks = overlaps.triu(1)
    keep = torch.ones(len(overlaps), dtype=torch.bool, device=overlaps.device)
    while True:
        update = ~(blocks & keep.unsqueeze(1)).any(0)
        if torch.equal(update, keep):
            return keep
        keep = update
