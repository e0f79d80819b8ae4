"""3D IoU of encoded boxes, and scores that take a predicted IoU into account."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stratified3d.models.heads.box_coding import angle_of
from stratified3d.ops import rotated_intersection

# e^5 meters: larger boxes would only overflow
_LARGEST_LOG_SIZE = 5.0


def iou3d_and_distance(
    encoding: Tensor, target: Tensor, cell_size: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the 3D IoU of rotated boxes and the normalized distance of their centers.

    The distance is the penalty of distance-IoU (Zheng et al. 2020, section 3.2): the squared
    distance of the centers over the squared diagonal of the smallest box around both, which is
    upright in the bird's-eye view. Both results are differentiable.

    Args:
        encoding, target: [..., >= 8] box encodings whose centers count from the same cell.
        cell_size: (x, y) meters of a cell.
    Returns:
        iou [...] and distance [...], both in 0 to 1 and fp64, which the intersection needs.
    """
    encoding = encoding[..., :8].double()
    target = target[..., :8].double()

    shift_xy = (encoding[..., :2] - target[..., :2]) * encoding.new_tensor(cell_size)
    shift_z = encoding[..., 2:3] - target[..., 2:3]
    shift = torch.cat([shift_xy, shift_z], -1)  # [..., 3] meters
    dims = _dims(encoding)
    target_dims = _dims(target)
    yaw = angle_of(encoding[..., 6:7], encoding[..., 7:8])
    target_yaw = angle_of(target[..., 6:7], target[..., 7:8])

    area = _common_area(shift, dims, yaw, target_dims, target_yaw)
    height = _common_height(shift[..., 2], dims[..., 2], target_dims[..., 2])
    intersection = area * height
    volume = dims.prod(-1)
    target_volume = target_dims.prod(-1)
    iou = intersection / (volume + target_volume - intersection)

    half_extent = _half_extent(dims, yaw)
    target_half_extent = _half_extent(target_dims, target_yaw)
    upper = torch.maximum(shift + half_extent, target_half_extent)
    lower = torch.minimum(shift - half_extent, -target_half_extent)
    squared_distance = shift.square().sum(-1)
    squared_diagonal = (upper - lower).square().sum(-1)
    return iou, squared_distance / squared_diagonal


def rectify_score(score: Tensor, iou: Tensor, power: Tensor) -> Tensor:
    """Return score^(1 - power) * IoU^power, which ranks boxes that fit well higher.

    IoU-aware rescoring of Hu et al. 2022 (AFDetV2).

    Args:
        score: [...] heatmap scores.
        iou: [...] output of the IoU branch, 2 IoU - 1.
        power: [...] of the IoU, 0 to 1.
    """
    return score ** (1 - power) * ((iou + 1) / 2).clamp(0, 1) ** power


def iou_power_per_class(power: float | Sequence[float], num_classes: int) -> list[float]:
    """Return the power of the IoU in `rectify_score` for each class.

    Args:
        power: one number for all classes, or one per class.
    Raises:
        ValueError: powers outside of 0 to 1 or another number of them.
    """
    if isinstance(power, (int, float)):
        powers = [float(power)] * num_classes
    else:
        powers = list(map(float, power))
    if len(powers) != num_classes or not all(0 <= p <= 1 for p in powers):
        raise ValueError(
            f'iou_power is a number from 0 to 1 or one per class ({num_classes}), not {power}'
        )
    return powers


def _dims(encoding: Tensor) -> Tensor:
    """[..., 3] meters."""
    return encoding[..., 3:6].clamp(max=_LARGEST_LOG_SIZE).exp()


def _common_area(
    shift: Tensor, dims: Tensor, yaw: Tensor, target_dims: Tensor, target_yaw: Tensor
) -> Tensor:
    """Area [...] of intersection in the bird's-eye view, with the target at the origin."""
    center = shift[..., :2]
    rectangle = torch.cat([center, dims[..., :2], yaw], -1)
    target_center = torch.zeros_like(center)
    target_rectangle = torch.cat([target_center, target_dims[..., :2], target_yaw], -1)
    return rotated_intersection(rectangle, target_rectangle)


def _common_height(shift: Tensor, height: Tensor, target_height: Tensor) -> Tensor:
    """Length [...] of the common part of two intervals, the second of which is centered at 0."""
    top = torch.minimum(shift + height / 2, target_height / 2)
    bottom = torch.maximum(shift - height / 2, -target_height / 2)
    return (top - bottom).clamp(min=0)


def _half_extent(dims: Tensor, yaw: Tensor) -> Tensor:
    """[..., 3] half the size of the upright box around a rotated one."""
    cos = yaw.cos().abs()
    sin = yaw.sin().abs()
    dx, dy, dz = dims.split(1, -1)
    return torch.cat([dx * cos + dy * sin, dx * sin + dy * cos, dz], -1) / 2
