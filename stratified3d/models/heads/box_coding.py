"""Conversions between mmdet3d's boxes, tensors and the box encoding that the heads predict.

A box is [7 or 9] numbers: gravity center x, y, z, dx, dy, dz (meters), yaw (rad), and vx, vy (m/s).
Its encoding is [8 or 10] numbers: center x and y in cells of the BEV feature map, gravity-center z,
log dx dy dz, sin and cos of yaw, and vx, vy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor


def unpack_ground_truth(
    instances: Sequence[InstanceData], box_size: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the ground-truth boxes and labels of the batch as tensors.

    Args:
        instances: bboxes_3d and labels_3d, one per sample.
        box_size: numbers of a box that are learned, 7 or 9.
    Returns:
        boxes, one [K, box_size] per sample, and labels, one [K] per sample.
    Raises:
        ValueError: boxes without velocity where it is to be learned.
    """
    all_boxes = []
    all_labels = []
    for sample in instances:
        labels = sample.labels_3d
        # mmdet3d stores the center of the bottom face
        boxes = torch.cat([sample.bboxes_3d.gravity_center, sample.bboxes_3d.tensor[:, 3:]], 1)
        boxes = boxes.to(labels.device)
        if boxes.shape[1] < box_size:
            raise ValueError(
                f'boxes have {boxes.shape[1]} numbers, but the head learns velocity and needs 9: '
                'set use_velocity=False'
            )
        all_boxes.append(boxes[:, :box_size])
        all_labels.append(labels)
    return all_boxes, all_labels


def encode_boxes(boxes: Tensor, center: Tensor) -> Tensor:
    """Return the encoding [K, 8 or 10] of boxes [K, 7 or 9], given their center [K, 2] in cells."""
    yaw = boxes[:, 6:7]
    return torch.cat(
        [center, boxes[:, 2:3], boxes[:, 3:6].log(), yaw.sin(), yaw.cos(), boxes[:, 7:]], 1
    )


def decode_boxes(encoding: Tensor, cell_size: Sequence[float], origin: Sequence[float]) -> Tensor:
    """Return the boxes [..., 7 or 9] of encodings [..., 8 or 10].

    Args:
        encoding: with the center in cells of the BEV feature map.
        cell_size, origin: (x, y) meters of a cell, and of the corner of the BEV feature map.
    """
    center = encoding[..., :2] * encoding.new_tensor(cell_size) + encoding.new_tensor(origin)
    yaw = torch.atan2(encoding[..., 6:7], encoding[..., 7:8])  # [..., 1]
    dims = encoding[..., 3:6].exp()
    return torch.cat([center, encoding[..., 2:3], dims, yaw, encoding[..., 8:]], -1)


def angle_of(sin: Tensor, cos: Tensor) -> Tensor:
    """Return atan2(sin, cos), with a gradient of 0 where both are 0."""
    undefined = (sin == 0) & (cos == 0)
    return torch.atan2(sin, torch.where(undefined, torch.ones_like(cos), cos))


def encode_axis(encoding: Tensor) -> Tensor:
    """Return sin and cos of twice the yaw [..., 2], from box encodings [..., >= 8].

    They are the same for a box that faces the other way. So they can be learned where the front
    cannot be told from the back, for which sin and cos of the yaw itself average to nothing.
    """
    sin, cos = encoding[..., 6], encoding[..., 7]
    return torch.stack([2 * sin * cos, cos * cos - sin * sin], -1)


def align_yaw(encoding: Tensor, axis: Tensor) -> Tensor:
    """Return box encodings [..., >= 8] whose yaw lies on the axis [..., 2] of `encode_axis`.

    Of the two directions of the axis it is the one nearer to the encoded yaw.
    """
    yaw = angle_of(axis[..., :1], axis[..., 1:]) / 2
    heading = torch.cat([yaw.sin(), yaw.cos()], -1)  # [..., 2]
    is_opposite = (heading * encoding[..., 6:8]).sum(-1, keepdim=True) < 0
    heading = torch.where(is_opposite, -heading, heading)
    return torch.cat([encoding[..., :6], heading, encoding[..., 8:]], -1)


def move_center(encoding: Tensor, cells: Tensor) -> Tensor:
    """Return encodings [..., 8 or 10] whose centers are moved by (x, y) cells [..., 2]."""
    return torch.cat([encoding[..., :2] + cells, encoding[..., 2:]], -1)


def has_center_in(boxes: Tensor, limits: Sequence[float]) -> Tensor:
    """Return whether the gravity center of each box [..., >= 7] is within the limits: [...] bool.

    Args:
        limits: (x_min, y_min, z_min, x_max, y_max, z_max) meters, both ends included.
    """
    lowest, highest = boxes.new_tensor(limits).chunk(2)
    center = boxes[..., :3]
    return ((center >= lowest) & (center <= highest)).all(-1)


def pack_detections(boxes: Tensor, scores: Tensor, labels: Tensor, meta: dict) -> InstanceData:
    """Return mmdet3d's InstanceData of boxes [K, 7 or 9], scores [K] and labels [K].

    Args:
        meta: of the sample; its box_type_3d is the class of the boxes.
    """
    bottom = boxes[:, 2:3] - boxes[:, 5:6] / 2  # z of the bottom face
    boxes = torch.cat([boxes[:, :2], bottom, boxes[:, 3:]], 1)
    box_type = meta.get('box_type_3d', LiDARInstance3DBoxes)
    return InstanceData(
        bboxes_3d=box_type(boxes, box_dim=boxes.shape[1]), scores_3d=scores, labels_3d=labels
    )


def resolve_code_weights(code_weights: Sequence[float] | None, use_velocity: bool) -> list[float]:
    """Return the weight of each number of the encoding: as given, else 1, and 0.2 for velocity.

    Raises:
        ValueError: other than 8 weights, or 10 with velocity.
    """
    size = 10 if use_velocity else 8
    weights = list(code_weights or [1.0] * 8 + [0.2] * (size - 8))
    if len(weights) != size:
        raise ValueError(
            f'code_weights has {len(weights)} entries, but a box encoding has {size} numbers'
        )
    return weights
