"""Selection of the heatmap cells that become queries of TransFusion's head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def select_queries(
    logits: Tensor, is_small: Tensor, num_proposals: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the num_proposals highest local maxima of each sample over all classes.

    Where a sample has fewer of them, its best other cells follow and have score 0.

    Args:
        logits: [B, classes, Y, X] of the heatmap.
        is_small: [classes, 1, 1] bool, classes whose every cell may be a query.
        num_proposals: N, at most classes * Y * X.
    Returns:
        Scores, classes and cells y * X + x of the queries, each [B, N], without gradient.
    """
    scores = logits.detach().float().sigmoid()
    is_peak = local_maxima(scores) | is_small
    # other cells come after all peaks: their scores are below 0
    ranked = torch.where(is_peak, scores, scores - 1).flatten(1)
    scores, index = ranked.topk(num_proposals)
    cells = logits.shape[2] * logits.shape[3]
    return scores.clamp(min=0), index // cells, index % cells


def local_maxima(scores: Tensor) -> Tensor:
    """Return where scores [..., Y, X] are at least those of the eight neighbors, as bool.

    Of equal neighbors the first in reading order counts as the larger.
    """
    height, width = scores.shape[-2:]
    padded = F.pad(scores, (1, 1, 1, 1), value=-torch.inf)
    shifted = []  # in reading order, the fifth is the cell itself
    for y in range(3):
        for x in range(3):
            shifted.append(padded[..., y : y + height, x : x + width])
    before = torch.stack(shifted[:4]).amax(0)
    after = torch.stack(shifted[5:]).amax(0)
    return (scores > before) & (scores >= after)
