"""CenterPoint's training targets, for all objects at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class CenterTargets(NamedTuple):
    """Targets of one task over the batch: heatmap [B, classes, Y, X]; boxes [B, max_objs, 8 or 10]
    (offset x and y in cells, gravity-center z, log dx dy dz, sin and cos of yaw, vx, vy); index [B,
    max_objs] int64 cells y * X + x; mask [B, max_objs] bool."""

    heatmap: Tensor
    boxes: Tensor
    index: Tensor
    mask: Tensor


def assign_targets(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    num_classes: Sequence[int],
    *,
    feature_map_size: tuple[int, int],
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    stride: int,
    max_objs: int = 500,
    min_overlap: float = 0.1,
    min_radius: int = 2,
) -> list[CenterTargets]:
    """Draw a Gaussian at every object's cell and list what to regress there.

    The Gaussian's radius is the largest shift of a box of that size that keeps an overlap
    (CornerNet, Law and Deng 2018, section 3.3, as CenterPoint uses it). Equal to mmdet3d 1.4's
    CenterHead.get_targets; objects are taken class by class, at most max_objs a task, those whose
    center is off the map or that have no area are skipped.

    Args:
        boxes: one [K, 7 or 9] a sample: gravity center x, y, z, dx, dy, dz (meters), yaw, and vx,
        vy (m/s).
        labels: one [K] a sample, classes counted through the tasks; others (-1) are ignored.
        num_classes: classes of each task.
        feature_map_size: (Y, X) cells.
        voxel_size, point_cloud_range: meters; stride: voxels a cell.
        max_objs, min_overlap, min_radius: see above; the radius in cells.
    Returns:
        One CenterTargets a task.
    """
    first_class = torch.tensor([0, *num_classes]).cumsum(0).tolist()
    samples = [
        _sample_targets(
            b,
            c,
            first_class,
            feature_map_size,
            voxel_size,
            point_cloud_range,
            stride,
            max_objs,
            min_overlap,
            min_radius,
        )
        for b, c in zip(boxes, labels)
    ]
    return [CenterTargets(*(torch.stack(parts) for parts in zip(*task))) for task in zip(*samples)]


def widen_targets(
    target: CenterTargets, radius: int, feature_map_size: tuple[int, int]
) -> CenterTargets:
    """Let the cells around an object's own regress it too: (2 radius + 1)^2 places learn from an
    object instead of one.

    A peak that is found a cell off then still points at the center (AFDet, Ge et al. 2020, trains
    its offsets on such a square; here all numbers are). A cell within reach of several objects is
    given to the one whose center is nearest, and an object's own cell always to itself.

    Args:
        target: of `assign_targets`, M entries a sample.
        radius: cells; feature_map_size: (Y, X).
    Returns:
        The same with M (2 radius + 1)^2 entries; the heatmap is unchanged.
    """
    height, width = feature_map_size
    shift = torch.arange(-radius, radius + 1, device=target.index.device)
    dy, dx = (d.flatten() for d in torch.meshgrid(shift, shift, indexing='ij'))
    y = (target.index // width).unsqueeze(2) + dy  # [B, M, A]
    x = (target.index % width).unsqueeze(2) + dx
    mask = target.mask.unsqueeze(2) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    cell = torch.where(mask, y * width + x, 0).flatten(1)
    boxes = target.boxes.unsqueeze(2).repeat(1, 1, len(dx), 1)  # [B, M, A, code]
    boxes[..., 0] -= dx
    boxes[..., 1] -= dy
    distance = (boxes[..., :2] - 0.5).square().sum(3).masked_fill((dx == 0) & (dy == 0), -1)
    distance = distance.masked_fill(~mask, torch.inf).flatten(1)
    nearest = distance.new_full((len(cell), height * width), torch.inf).scatter_reduce(
        1, cell, distance, 'amin'
    )
    mask = mask.flatten(1) & (distance <= nearest.gather(1, cell))
    return CenterTargets(target.heatmap, boxes.flatten(1, 2), cell, mask)


def _sample_targets(
    boxes,
    labels,
    first_class,
    feature_map_size,
    voxel_size,
    point_cloud_range,
    stride,
    max_objs,
    min_overlap,
    min_radius,
) -> list[CenterTargets]:
    height, width = feature_map_size
    order = labels.argsort(stable=True)
    known = (labels[order] >= 0) & (labels[order] < first_class[-1])
    boxes, labels = boxes[order[known]].float(), labels[order[known]].long()
    start = torch.searchsorted(
        labels, torch.tensor(first_class, device=labels.device)
    )  # [tasks + 1]
    task = torch.bucketize(labels, torch.tensor(first_class[1:], device=labels.device), right=True)
    slot = torch.arange(len(labels), device=labels.device) - start[task]

    size = boxes.new_tensor(voxel_size)
    low = boxes.new_tensor(point_cloud_range)
    center = (boxes[:, :2] - low[:2]) / size[:2] / stride  # [K, 2] cells
    cell = center.trunc().long()
    extent = boxes[:, 3:5] / size[:2] / stride
    valid = boxes[:, :7].isfinite().all(1) & (extent > 0).all(1)
    valid &= (cell >= 0).all(1) & (cell < cell.new_tensor([width, height])).all(1)
    valid &= slot < max_objs
    radius = (
        _gaussian_radius(extent[:, 1], extent[:, 0], min_overlap)
        .nan_to_num()
        .long()
        .clamp(min=min_radius)
    )

    heatmap = boxes.new_zeros(first_class[-1], height, width)
    _draw_gaussians(heatmap, labels[valid], cell[valid], radius[valid])
    code = torch.cat(
        [
            center - cell,
            boxes[:, 2:3],
            boxes[:, 3:6].log(),
            boxes[:, 6:7].sin(),
            boxes[:, 6:7].cos(),
            boxes[:, 7:],
        ],
        1,
    )
    targets = []
    for t, (a, b) in enumerate(zip(first_class, first_class[1:])):
        mine = valid & (task == t)
        place = slot[mine]
        targets.append(
            CenterTargets(
                heatmap[a:b],
                boxes.new_zeros(max_objs, code.shape[1]).index_copy(0, place, code[mine]),
                labels.new_zeros(max_objs).index_copy(
                    0, place, cell[mine, 1] * width + cell[mine, 0]
                ),
                torch.zeros(max_objs, dtype=torch.bool, device=labels.device).index_fill(
                    0, place, True
                ),
            )
        )
    return targets


def _gaussian_radius(height: Tensor, width: Tensor, min_overlap: float) -> Tensor:
    """[K] cells, from the three ways in which a shifted box can meet the true one."""
    b1 = height + width
    c1 = width * height * (1 - min_overlap) / (1 + min_overlap)
    r1 = (b1 + (b1**2 - 4 * c1).sqrt()) / 2
    b2 = 2 * (height + width)
    c2 = (1 - min_overlap) * width * height
    r2 = (b2 + (b2**2 - 16 * c2).sqrt()) / 2
    b3 = -2 * min_overlap * (height + width)
    c3 = (min_overlap - 1) * width * height
    r3 = (b3 + (b3**2 - 16 * min_overlap * c3).sqrt()) / 2
    return torch.minimum(torch.minimum(r1, r2), r3)


def _draw_gaussians(heatmap: Tensor, labels: Tensor, cell: Tensor, radius: Tensor) -> None:
    """Raise heatmap [C, Y, X] in place to exp(-d^2 / 2 sigma^2) within each object's square; sigma
    = diameter / 6."""
    if not len(labels):
        return
    _, height, width = heatmap.shape
    reach = min(int(radius.max()), max(height, width))  # nothing farther is on the map
    offset = torch.arange(-reach, reach + 1, device=cell.device)
    dy, dx = torch.meshgrid(offset, offset, indexing='ij')
    sigma = (2 * radius + 1).double()[:, None, None] / 6
    value = (
        (-(dx * dx + dy * dy) / (2 * sigma * sigma)).exp().float()
    )  # [K, 2 reach + 1, 2 reach + 1]
    x, y = cell[:, 0, None, None] + dx, cell[:, 1, None, None] + dy
    drawn = (
        (torch.maximum(dx.abs(), dy.abs()) <= radius[:, None, None])
        & (x >= 0)
        & (x < width)
        & (y >= 0)
        & (y < height)
    )
    index = (labels[:, None, None] * height + y) * width + x
    heatmap.view(-1).scatter_reduce_(0, index[drawn], value[drawn], 'amax')
