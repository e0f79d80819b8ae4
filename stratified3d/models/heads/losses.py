"""Parts of the training losses that both heads share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stratified3d.models.heads.box_iou import iou3d_and_distance

# the focal loss takes logarithms of a score and of 1 - score
_SMALLEST_SCORE = 1e-4


def heatmap_scores(logits: Tensor) -> Tensor:
    """Return the scores of heatmap logits in fp32, clamped to 1e-4 away from 0 and 1.

    mmdet3d's `clip_sigmoid` would overwrite the predictions instead.
    """
    return logits.float().sigmoid().clamp(_SMALLEST_SCORE, 1 - _SMALLEST_SCORE)


def regression_weights(bbox_targets: Tensor, code_weights: Sequence[float]) -> Tensor:
    """Return the weight [..., 8 or 10] of each number to learn.

    An unknown number, such as a velocity that is NaN, has weight 0.

    Args:
        bbox_targets: [..., 8 or 10] box encodings of the objects.
        code_weights: 8 or 10, of the numbers that are known.
    """
    return bbox_targets.isfinite() * bbox_targets.new_tensor(code_weights)


def iou_losses(
    encoding: Tensor,
    bbox_targets: Tensor,
    predicted_iou: Tensor | None,
    *,
    cell_size: Sequence[float],
    branch_weight: float,
    box_weight: float,
    avg_factor: Tensor,
    mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the losses of the IoU branch and of the IoU of the boxes.

    loss_iou_branch is the L1 distance of the branch from 2 IoU - 1, where the IoU itself gets no
    gradient. loss_iou is 1 - IoU + distance, see `iou3d_and_distance`.

    Args:
        encoding, bbox_targets: [..., >= 8] predicted and wanted box encodings, without NaN.
        predicted_iou: [...] output of the IoU branch; None without that branch.
        cell_size: (x, y) meters of a cell.
        branch_weight, box_weight: of the two losses; 0 leaves a loss out.
        avg_factor: what the sums are divided by.
        mask: [...] bool, entries that count; all by default.
    """
    losses: dict[str, Tensor] = {}
    if not branch_weight and not box_weight:
        return losses
    iou, distance = iou3d_and_distance(encoding, bbox_targets, cell_size)
    counted = torch.ones_like(iou) if mask is None else mask.to(iou.dtype)  # fp64

    if branch_weight:
        assert predicted_iou is not None, 'a head with iou_weight has an IoU branch'
        error = (predicted_iou - (2 * iou.detach() - 1)).abs() * counted
        losses['loss_iou_branch'] = (branch_weight * error.sum() / avg_factor).float()
    if box_weight:
        error = (1 - iou + distance) * counted
        losses['loss_iou'] = (box_weight * error.sum() / avg_factor).float()
    return losses
