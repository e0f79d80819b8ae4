"""mmdet3d's boxes to tensors and back, for the heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor


def unpack_ground_truth(
    instances: Sequence[InstanceData], box_size: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Ground truths of the batch as tensors.

    Args:
        instances: bboxes_3d and labels_3d, one a sample.
        box_size: numbers of a box that are learned, 7 or 9.
    Returns:
        boxes, one [K, box_size] a sample (gravity center x, y, z, dx, dy, dz, yaw, and vx, vy), and
        labels [K].
    Raises:
        ValueError: boxes without velocity where it is to be learned.
    """
    boxes, labels = [], []
    for sample in instances:
        box, label = sample.bboxes_3d, sample.labels_3d
        box = torch.cat([box.gravity_center, box.tensor[:, 3:]], 1).to(label.device)
        if box.shape[1] < box_size:
            raise ValueError(
                f'boxes have {box.shape[1]} numbers, but the head learns velocity and needs 9: '
                'set use_velocity=False'
            )
        boxes.append(box[:, :box_size])
        labels.append(label)
    return boxes, labels


def decode_boxes(code: Tensor, cell: Sequence[float], corner: Sequence[float]) -> Tensor:
    """What heads regress to boxes.

    Args:
        code: [..., 8 or 10] x and y in cells of the map, gravity-center z, log dx dy dz (meters),
        sin and cos of yaw,
            and vx, vy.
        cell, corner: (x, y) meters of a cell and of the map's corner.
    Returns:
        [..., 7 or 9] gravity center x, y, z, dx, dy, dz (meters), yaw (rad), and vx, vy (m/s).
    """
    center = code[..., :2] * code.new_tensor(cell) + code.new_tensor(corner)
    yaw = torch.atan2(code[..., 6:7], code[..., 7:8])
    return torch.cat([center, code[..., 2:3], code[..., 3:6].exp(), yaw, code[..., 8:]], -1)


def has_center_in(boxes: Tensor, limits: Sequence[float]) -> Tensor:
    """[...] bool: whether the gravity center of each box [..., >= 7] lies within (x, y, z low, x,
    y, z high)."""
    low, high = boxes.new_tensor(limits).chunk(2)
    return ((boxes[..., :3] >= low) & (boxes[..., :3] <= high)).all(-1)


def pack_detections(boxes: Tensor, scores: Tensor, labels: Tensor, meta: dict) -> InstanceData:
    """Boxes [K, 7 or 9] with gravity centers, scores [K] and labels [K] -> what mmdet3d calls
    predictions."""
    boxes = torch.cat(
        [boxes[:, :2], boxes[:, 2:3] - boxes[:, 5:6] / 2, boxes[:, 3:]], 1
    )  # to the bottom center
    box_type = meta.get('box_type_3d', LiDARInstance3DBoxes)
    return InstanceData(
        bboxes_3d=box_type(boxes, box_dim=boxes.shape[1]), scores_3d=scores, labels_3d=labels
    )


def choose_code_weights(code_weights: Sequence[float] | None, use_velocity: bool) -> list[float]:
    """Weight of each regressed number: as given, else 1, and 0.2 for velocity.

    Raises:
        ValueError: other than 8 weights, or 10 with velocity.
    """
    code_size = 10 if use_velocity else 8
    code_weights = list(code_weights or [1.0] * 8 + [0.2] * (code_size - 8))
    if len(code_weights) != code_size:
        raise ValueError(f'code_weights has {len(code_weights)} entries, the code has {code_size}')
    return code_weights


def grow_range(point_cloud_range: Sequence[float]) -> list[float]:
    """The range and 10 m around it: detections may lie there."""
    return [bound - 10 for bound in point_cloud_range[:3]] + [
        bound + 10 for bound in point_cloud_range[3:]
    ]
