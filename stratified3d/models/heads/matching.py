"""Which query learns which object: the cheapest pairing of predicted and true boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from stratified3d.models.heads.box_iou import overlap

# instead of costs that are no numbers: a diverged model shall show in its loss, not in the pairing
_LARGEST_COST = 1e8


@torch.no_grad()
def match_queries(
    logits: Tensor,
    code: Tensor,
    true_code: Tensor,
    labels: Tensor,
    *,
    cell: Sequence[float],
    feature_map_size: tuple[int, int],
    weights: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Pair queries and objects one to one so that the sum of costs is least (Hungarian matching,
    Carion et al. 2020; costs of TransFusion, Bai et al. 2022, section 3.5).

    The cost of a pair is a focal classification cost, the L1 distance of the centers as a share of
    the map, and minus the 3D IoU, each times its weight. Cost: O(N K) and the assignment, O(min(N,
    K)^2 max(N, K)), on the CPU.

    Args:
        logits: [N, classes] of the queries.
        code: [N, >= 8] center x and y in cells of the map, gravity-center z, log dx dy dz, sin and
        cos of yaw.
        true_code: [K, >= 8] of the objects; labels: [K] their classes.
        cell: (x, y) meters of a cell; feature_map_size: (Y, X) cells.
        weights: of classification, center and IoU.
    Returns:
        query [min(N, K)] and object [min(N, K)], int64, by rising query.
    """
    if not len(labels):
        return labels.new_zeros(0, dtype=torch.long), labels.new_zeros(0, dtype=torch.long)
    score = logits.sigmoid()
    found = 0.25 * (1 - score) ** 2 * -F.logsigmoid(logits)
    missed = 0.75 * score**2 * -F.logsigmoid(-logits)
    size = code.new_tensor([feature_map_size[1], feature_map_size[0]])
    center = ((code[:, None, :2] - true_code[None, :, :2]) / size).abs().sum(2)  # [N, K]
    parts = (found - missed)[:, labels], center, -pairwise_iou(code, true_code, cell)
    cost = sum(weight * part for weight, part in zip(weights, parts))
    cost = cost.nan_to_num(_LARGEST_COST, _LARGEST_COST, -_LARGEST_COST)
    query, truth = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(query).to(labels.device), torch.from_numpy(truth).to(labels.device)


def pairwise_iou(code: Tensor, true_code: Tensor, cell: Sequence[float]) -> Tensor:
    """3D IoU of every predicted with every true box, coded as in `match_queries`: [N, K] in code's
    dtype."""
    size = code.new_tensor(cell)
    gap = ((code[:, None, :2] - true_code[None, :, :2]) * size).norm(dim=2)
    reach, true_reach = (c[:, 3:5].exp().norm(dim=1) / 2 for c in (code, true_code))
    # only boxes whose circumscribed circles meet can overlap
    first, second = (gap <= reach[:, None] + true_reach).nonzero(as_tuple=True)
    iou = torch.zeros_like(gap)
    iou[first, second] = overlap(code[first], true_code[second], cell)[0].to(iou.dtype)
    return iou
