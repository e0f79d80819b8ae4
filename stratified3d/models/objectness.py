"""The loss of the score that strata tokens are chosen by: does a voxel lie in an object?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from stratified3d.layers.strata import VoxelScores


def objectness_loss(
    scores: Sequence[tuple[VoxelScores, Sequence[float]]], gt: Sequence[InstanceData]
) -> Tensor:
    """Return the weighted binary cross-entropy of scores: mean over voxels, sum over selections.

    A voxel is to have a high score if its center lies in a ground-truth box, which is first grown
    by half a voxel on every side: points of an object fill voxels whose centers lie beside it.

    Args:
        scores: one for each selection, with the size (x, y, z) of its voxels in meters.
        gt: one per sample, with bboxes_3d.
    Returns:
        A scalar in fp32; 0 without voxels, and then still a function of the scores, so that all
        processes of a distributed training have the same gradients to share.
    """
    return torch.stack([_loss_of(score, size, gt) for score, size in scores]).sum()


def _loss_of(
    scores: VoxelScores, voxel_size: Sequence[float], gt: Sequence[InstanceData]
) -> Tensor:
    """The loss of one selection."""
    is_object = torch.zeros_like(scores.sample, dtype=torch.bool)
    for i, instances in enumerate(gt):
        boxes = instances.bboxes_3d.tensor.to(scores.positions)
        is_object |= voxels_in_boxes(scores.positions, boxes, voxel_size) & (scores.sample == i)

    logits = scores.logits.float()
    total = F.binary_cross_entropy_with_logits(logits, is_object.float(), reduction='sum')
    return scores.weight * total / max(len(logits), 1)


def voxels_in_boxes(positions: Tensor, boxes: Tensor, voxel_size: Sequence[float]) -> Tensor:
    """Whether each voxel's center lies in any of the boxes, grown by half a voxel on every side.

    Args:
        positions: [N, 3] meters.
        boxes: [K, >= 7] bottom-center x, y, z, dx, dy, dz, yaw.
        voxel_size: (x, y, z) meters; boxes grow by the larger of x and y in both directions.
    Returns:
        [N] bool.
    """
    x, y, z = (positions.unsqueeze(1) - boxes[:, :3]).unbind(2)  # [N, K]
    cos, sin = boxes[:, 6].cos(), boxes[:, 6].sin()
    along = x * cos + y * sin
    across = y * cos - x * sin
    above = z - boxes[:, 5] / 2  # from the center

    margin = max(voxel_size[:2])
    is_along = along.abs() <= (boxes[:, 3] + margin) / 2
    is_across = across.abs() <= (boxes[:, 4] + margin) / 2
    is_level = above.abs() <= (boxes[:, 5] + voxel_size[2]) / 2
    return (is_along & is_across & is_level).any(1)
