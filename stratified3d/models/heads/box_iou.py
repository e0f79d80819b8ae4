"""Overlap of predicted and true boxes in the center head: what its IoU branch learns and what its
IoU loss lowers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stratified3d.ops import rotated_intersection

# e^5 meters: larger boxes would only overflow
_LARGEST_LOG_SIZE = 5.0


def overlap(code: Tensor, target: Tensor, cell: Sequence[float]) -> tuple[Tensor, Tensor]:
    """3D IoU of rotated boxes that are coded in the same cell, and how far apart they are;
    differentiable.

    Args:
        code, target: [..., >= 8] offset x and y in cells, gravity-center z, log dx dy dz (meters),
        sin and cos of yaw.
        cell: (x, y) meters of a cell.
    Returns:
        iou [...] in 0 to 1, and distance [...]: squared distance of the centers over the squared
        diagonal of the smallest upright box around both, in 0 to 1 (the penalty of distance-IoU,
        Zheng et al. 2020, section 3.2, with upright corners in the bird's-eye view). Both in fp64,
        which the intersection needs.
    """
    code, target = code[..., :8].double(), target[..., :8].double()
    size = code.new_tensor(cell)
    gap = torch.cat(
        [(code[..., :2] - target[..., :2]) * size, code[..., 2:3] - target[..., 2:3]], -1
    )  # [..., 3]
    dims, true_dims = (x[..., 3:6].clamp(max=_LARGEST_LOG_SIZE).exp() for x in (code, target))
    yaw, true_yaw = _yaw(code), _yaw(target)
    area = rotated_intersection(
        torch.cat([gap[..., :2], dims[..., :2], yaw], -1),
        torch.cat([torch.zeros_like(gap[..., :2]), true_dims[..., :2], true_yaw], -1),
    )
    top = torch.minimum(gap[..., 2] + dims[..., 2] / 2, true_dims[..., 2] / 2)
    bottom = torch.maximum(gap[..., 2] - dims[..., 2] / 2, -true_dims[..., 2] / 2)
    shared = area * (top - bottom).clamp(min=0)
    iou = shared / (dims.prod(-1) + true_dims.prod(-1) - shared)
    reach, true_reach = _half_extent(dims, yaw), _half_extent(true_dims, true_yaw)
    around = torch.maximum(gap + reach, true_reach) - torch.minimum(gap - reach, -true_reach)
    return iou, gap.square().sum(-1) / around.square().sum(-1)


def rectify_score(heat: Tensor, iou: Tensor, power: Tensor) -> Tensor:
    """Scores that know how well the box fits: heat^(1 - power) * IoU^power (Hu et al. 2022,
    AFDetV2).

    Args:
        heat: [...] scores; iou: [...] as the branch gives it, 2 IoU - 1; power: [...] of the IoU.
    """
    return heat ** (1 - power) * ((iou + 1) / 2).clamp(0, 1) ** power


def class_powers(power: float | Sequence[float], num_classes: int) -> list[float]:
    """Powers of `rectify_score`, one a class, from a number for all or one each.

    Raises:
        ValueError: powers beyond 0 to 1 or another number of them.
    """
    powers = (
        [float(power)] * num_classes if isinstance(power, (int, float)) else list(map(float, power))
    )
    if len(powers) != num_classes or not all(0 <= p <= 1 for p in powers):
        raise ValueError(
            f'iou_power is a number from 0 to 1 or one a class ({num_classes}), not {power}'
        )
    return powers


def _yaw(code: Tensor) -> Tensor:
    sin, cos = code[..., 6:7], code[..., 7:8]
    # the angle of (0, 0) has no gradient
    return torch.atan2(sin, torch.where((sin == 0) & (cos == 0), torch.ones_like(cos), cos))


def _half_extent(dims: Tensor, yaw: Tensor) -> Tensor:
    """[..., 3] of the upright box around a turned one."""
    cos, sin = yaw.cos().abs(), yaw.sin().abs()
    x, y, z = dims.split(1, -1)
    return torch.cat([x * cos + y * sin, x * sin + y * cos, z], -1) / 2
