"""Non-maximum suppression in the bird's-eye view, in plain torch on every device."""

from __future__ import annotations

import torch
from torch import Tensor

# one of two boxes is enlarged by this much (meters) on every side: their edges never coincide
_MARGIN = 1e-6


def circle_nms(
    centers: Tensor, scores: Tensor, radius: float, max_keep: int | None = None
) -> Tensor:
    """Keep the best of all boxes whose centers lie within a radius of each other.

    CenterPoint, Yin et al. 2021, section 4.

    Args:
        centers: [K, 2] meters.
        scores: [K].
        radius: meters; a box at most this far from a better kept one is suppressed.
        max_keep: the largest number of boxes to return; None for all.
    Returns:
        [<= max_keep] int64 indices, sorted by descending score.
    """
    order = scores.argsort(descending=True, stable=True)
    return order[greedy_keep(circle_overlaps(centers[order], radius))][:max_keep]


def rotated_nms(boxes: Tensor, scores: Tensor, iou: float, max_keep: int | None = None) -> Tensor:
    """Keep the best of all boxes that overlap in the bird's-eye view.

    Args:
        boxes: [K, 5] x, y, dx, dy (meters), yaw (radians).
        scores: [K].
        iou: a box that overlaps a better kept one by more than this is suppressed.
        max_keep: the largest number of boxes to return; None for all.
    Returns:
        [<= max_keep] int64 indices, sorted by descending score.
    """
    order = scores.argsort(descending=True, stable=True)
    return order[greedy_keep(rotated_overlaps(boxes[order], iou))][:max_keep]


def rotated_overlaps(
    boxes: Tensor, iou: float, counted: Tensor | None = None, all_pairs: bool = False
) -> Tensor:
    """Which of the boxes [K, 5] overlap by more than an IoU: [K, K] bool above the diagonal.

    Args:
        boxes, iou: see `rotated_nms`.
        counted: [K] bool; other boxes overlap none. None counts all.
        all_pairs: whether those too far apart are compared as well, so that no shape depends on the
            data; the result is the same.
    """
    boxes = boxes.double()
    # only boxes whose circumscribed circles meet can overlap
    reach = boxes[:, 2:4].norm(dim=1) / 2
    near = torch.cdist(boxes[:, :2], boxes[:, :2]) <= reach[:, None] + reach
    if counted is not None:
        near = near & counted[:, None] & counted
    first, second = _pairs_above_diagonal(near, all_pairs)
    overlaps = torch.zeros_like(near)
    overlaps[first, second] = rotated_iou(boxes[first], boxes[second]) > iou
    return overlaps & near


def _pairs_above_diagonal(near: Tensor, all_pairs: bool) -> tuple[Tensor, Tensor]:
    """Rows and columns of what is True in near [K, K], or of everything, above the diagonal."""
    if not all_pairs:
        first, second = near.triu(1).nonzero(as_tuple=True)
        return first, second
    count = near.shape[0]
    first, second = torch.triu_indices(count, count, 1, device=near.device).unbind()
    return first, second


def circle_overlaps(centers: Tensor, radius: float) -> Tensor:
    """Which of the centers [K, 2] lie within a radius of each other: [K, K] bool."""
    gap = centers.unsqueeze(0) - centers.unsqueeze(1)  # [K, K, 2]
    return gap.square().sum(-1) <= radius**2


def rotated_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of rotated rectangles, pair by pair.

    Args:
        a, b: [..., 5] x, y, dx, dy (meters), yaw (radians); fp64 for an error below 1e-5.
    Returns:
        [...]; boxes without area give 0.
    """
    inter = rotated_intersection(a, b)
    union = a[..., 2] * a[..., 3] + b[..., 2] * b[..., 3] - inter
    iou = inter / union.clamp(min=torch.finfo(union.dtype).tiny)
    return torch.where(union > 0, iou, torch.zeros_like(union))


def rotated_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Area shared by rotated rectangles, pair by pair: [..., 5], [..., 5] -> [...] square meters.

    The boundary of the intersection consists of the parts of each boundary that lie in the other
    rectangle. By Green's theorem its area is half the sum of cross products of the edges of a
    clipped to b and of the edges of b clipped to a.
    """
    # relative to a's center, so that large coordinates cost no digits
    b = torch.cat([b[..., :2] - a[..., :2], b[..., 2:4] + 2 * _MARGIN, b[..., 4:]], -1)
    a = torch.cat([torch.zeros_like(a[..., :2]), a[..., 2:]], -1)
    return ((_clipped_cross(a, b) + _clipped_cross(b, a)) / 2).clamp(min=0)


def _clipped_cross(a: Tensor, b: Tensor) -> Tensor:
    """Sum of cross products of a's edges clipped to rectangle b."""
    start = _corners(a)  # [..., 4, 2]
    step = torch.cat([start[..., 1:, :], start[..., :1, :]], -2) - start
    lo, hi = _clip(start, step, b)  # [..., 4]
    t0 = lo.clamp(min=0, max=1).unsqueeze(-1)  # [..., 4, 1]
    t1 = torch.maximum(hi.clamp(min=0, max=1).unsqueeze(-1), t0)
    p = start + t0 * step
    q = start + t1 * step
    cross = p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]
    return cross.sum(-1)


def _clip(start: Tensor, step: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Where lines start + t * step [..., n, 2] enter and leave a rectangle: t [..., n] of both.

    Liang-Barsky: a line is inside where it lies between both pairs of parallel sides.
    """
    cos = box[..., 4, None].cos()
    sin = box[..., 4, None].sin()
    start = _rotate(start - box[..., None, :2], cos, sin)
    step = _rotate(step, cos, sin)
    half = box[..., None, 2:4] / 2  # [..., 1, 2]

    is_parallel = step.abs() < 1e-12
    divisor = torch.where(is_parallel, torch.ones_like(step), step)
    crossings = torch.stack([(-half - start) / divisor, (half - start) / divisor])
    # a parallel line is between the sides for every t or for none
    is_between = start.abs() <= half
    reach = torch.where(is_between, torch.inf, -torch.inf)
    lo = torch.where(is_parallel, -reach, crossings.amin(0))
    hi = torch.where(is_parallel, reach, crossings.amax(0))
    return lo.amax(-1), hi.amin(-1)


def _corners(boxes: Tensor) -> Tensor:
    """[..., 5] -> [..., 4, 2], counter-clockwise."""
    signs = boxes.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    local = signs * boxes[..., None, 2:4]
    cos = boxes[..., 4, None].cos()
    sin = boxes[..., 4, None].sin()
    return _rotate(local, cos, -sin) + boxes[..., None, :2]


def _rotate(points: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [..., n, 2] by minus the angle of cos, sin [..., 1]."""
    x, y = points.unbind(-1)
    return torch.stack([x * cos + y * sin, y * cos - x * sin], -1)


def greedy_keep(overlaps: Tensor) -> Tensor:
    """Greedy NMS of boxes sorted by descending score: [K, K] bool -> [K] bool.

    Box j is suppressed if a kept box i < j overlaps it. The rule is repeated, beginning with all
    boxes kept. Box j is final once all before it are, so the result is the greedy solution, after
    as many rounds as the longest chain of suppressions.
    """
    blocks = overlaps.triu(1)
    keep = torch.ones(len(overlaps), dtype=torch.bool, device=overlaps.device)
    is_changed = torch.ones((), dtype=torch.bool, device=overlaps.device)
    if torch.compiler.is_compiling():
        return torch.while_loop(_is_unfinished, _repeat_rule, (keep, is_changed, blocks))[0]
    while is_changed:
        keep, is_changed, _ = _repeat_rule(keep, is_changed, blocks)
    return keep


def greedy_keep_within(overlaps: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """`greedy_keep` in a fixed number of rounds, and whether they were enough: [K] bool, [] bool.

    Nothing waits for the device.
    """
    blocks = overlaps.triu(1)
    keep = torch.ones(len(overlaps), dtype=torch.bool, device=overlaps.device)
    is_changed = torch.ones((), dtype=torch.bool, device=overlaps.device)
    for _ in range(rounds):
        keep, is_changed, _ = _repeat_rule(keep, is_changed, blocks)
    return keep, ~is_changed


def _is_unfinished(keep: Tensor, is_changed: Tensor, blocks: Tensor) -> Tensor:
    return is_changed.clone()


def _repeat_rule(keep: Tensor, is_changed: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which boxes [K] no kept box blocks, and whether that changed."""
    update = ~(blocks & keep.unsqueeze(1)).any(0)
    return update, (update != keep).any(), blocks.clone()
