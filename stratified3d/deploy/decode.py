"""A fixed number of boxes from the BEV feature map, NMS included."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stratified3d.models.heads.box_coding import has_center_in
from stratified3d.models.heads.peaks import best_cells
from stratified3d.ops.nms import (
    circle_overlaps,
    greedy_keep,
    greedy_keep_within,
    rotated_overlaps,
)

_ROUNDS = 48  # of NMS in a static program: the longest chain of boxes that suppress each other


def decode_boxes(
    head: Any, feature_map: Tensor, is_static: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Predict the boxes of one sample, as many as the head's `post_max_size` for each task.

    Args:
        head: a `StratifiedCenterHead` in evaluation mode.
        feature_map: [1, C, Y, X] of the backbone.
        is_static: whether NMS compares all pairs of boxes and takes a fixed number of rounds, so
            that neither shapes nor loops depend on the data.
    Returns:
        boxes [K, 7 or 9] with the bottom center, scores [K], labels [K] int64, sorted by descending
        score, and the number of detections, -1 where the rounds were too few; the other rows are 0.
    """
    shared = head.shared_conv(feature_map)
    tasks = [_decode_task(head, shared, task, is_static) for task in range(len(head.task_heads))]
    boxes, scores, labels, found, is_done = (torch.cat(columns) for columns in zip(*tasks))
    order = torch.where(found, scores, -1).argsort(descending=True, stable=True)
    found = found[order]
    bottom = boxes[:, 2:3] - boxes[:, 5:6] / 2
    boxes = torch.cat([boxes[:, :2], bottom, boxes[:, 3:]], 1)[order]
    return (
        torch.where(found[:, None], boxes, 0),
        torch.where(found, scores[order], 0),
        torch.where(found, labels[order], 0),
        torch.where(is_done.all(), found.sum(), -1),
    )


def _decode_task(head: Any, shared: Tensor, task: int, is_static: bool) -> tuple[Tensor, ...]:
    """Boxes, scores, labels and which of them are detections, post_max_size of each; whether NMS
    came to its end, [1] bool."""
    peaks = best_cells(head.task_heads[task].heatmap(shared), head.max_num)
    boxes, scores = head.decode_task(peaks, head.outputs_at(peaks, shared, task), task)
    is_good = has_center_in(boxes, head.post_center_range) & (scores > head.score_threshold)

    order = torch.where(is_good, scores, -1).argsort(descending=True, stable=True)
    boxes, scores, is_good = boxes[order], scores[order], is_good[order]
    labels = peaks.label[order] + sum(head.num_classes[:task])
    overlaps = _overlaps(head.nms, boxes, is_good, task, is_static)
    keep, is_done = _keep(overlaps, is_static)
    keep = keep & is_good
    first = (~keep).int().argsort(stable=True)[: head.post_max_size]
    return boxes[first], scores[first], labels[first], keep[first], is_done[None]


def _keep(overlaps: Tensor, is_static: bool) -> tuple[Tensor, Tensor]:
    """Greedy NMS: [K] bool, and whether it came to its end, [] bool."""
    if is_static:
        return greedy_keep_within(overlaps, _ROUNDS)
    return greedy_keep(overlaps), torch.ones_like(overlaps[0, 0])


def _overlaps(nms: dict, boxes: Tensor, is_good: Tensor, task: int, is_static: bool) -> Tensor:
    """Which boxes of a task may suppress each other: [K, K] bool."""
    if nms['type'] == 'circle':
        overlaps = circle_overlaps(boxes[:, :2], nms['radius'][task])
        return overlaps & is_good[:, None] & is_good
    x, y, _, dx, dy, _, yaw, *_ = boxes.unbind(1)
    boxes = torch.stack([x, y, dx, dy, yaw], 1)
    return rotated_overlaps(boxes, nms['iou'], is_good, all_pairs=is_static)
