"""CenterPoint's training targets, for all objects at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stratified3d.models.heads.box_coding import encode_boxes


class CenterTargets(NamedTuple):
    """Targets of one task over the batch.

    heatmap: [B, classes, Y, X] in 0 to 1.
    bbox_targets: [B, max_objs, 8 or 10] box encodings, the center relative to the object's cell.
    cell_index: [B, max_objs] int64, the object's cell y * X + x.
    mask: [B, max_objs] bool, which entries are objects.
    """

    heatmap: Tensor
    bbox_targets: Tensor
    cell_index: Tensor
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
    CenterHead.get_targets: objects are taken class by class, at most max_objs per task. Those whose
    center is off the BEV feature map or that have no area are skipped.

    Args:
        boxes: one [K, 7 or 9] per sample, see `box_coding`.
        labels: one [K] per sample, classes counted through the tasks; others (-1) are ignored.
        num_classes: classes of each task.
        feature_map_size: (Y, X) cells.
        voxel_size, point_cloud_range: meters.
        stride: voxels per cell.
        max_objs: entries per task and sample.
        min_overlap: IoU that a box shifted by the radius keeps.
        min_radius: cells.
    Returns:
        One CenterTargets per task.
    """
    class_offsets = torch.tensor([0, *num_classes]).cumsum(0).tolist()
    samples = []
    for sample_boxes, sample_labels in zip(boxes, labels):
        objects = _sort_by_class(sample_boxes, sample_labels, class_offsets)
        centers = _locate_centers(
            objects.boxes, feature_map_size, voxel_size, point_cloud_range, stride
        )
        valid = centers.valid & (objects.slot < max_objs)
        radius = _gaussian_radius(centers.extent[:, 1], centers.extent[:, 0], min_overlap)
        radius = radius.nan_to_num().long().clamp(min=min_radius)

        heatmap = objects.boxes.new_zeros(class_offsets[-1], *feature_map_size)
        _draw_gaussians(heatmap, objects.labels[valid], centers.cell[valid], radius[valid])
        samples.append(_fill_slots(heatmap, objects, centers, valid, class_offsets, max_objs))

    targets = []
    for task_targets in zip(*samples):
        targets.append(CenterTargets(*(torch.stack(parts) for parts in zip(*task_targets))))
    return targets


def widen_targets(
    target: CenterTargets, radius: int, feature_map_size: tuple[int, int]
) -> CenterTargets:
    """Let the cells around an object's own regress it too.

    (2 radius + 1)^2 cells learn from an object instead of one. A peak that is found a cell off then
    still points at the center (AFDet, Ge et al. 2020, trains its offsets on such a square; here all
    numbers are). A cell within reach of several objects is given to the one whose center is
    nearest, and an object's own cell always to itself.

    Args:
        target: of `assign_targets`, M entries per sample.
        radius: cells.
        feature_map_size: (Y, X) cells.
    Returns:
        The same with M (2 radius + 1)^2 entries; the heatmap is unchanged.
    """
    height, width = feature_map_size
    dy, dx = _square_offsets(radius, target.cell_index.device)
    dy = dy.flatten()  # [A]
    dx = dx.flatten()

    own_cell = target.cell_index.unsqueeze(2)
    y = own_cell // width + dy  # [B, M, A]
    x = own_cell % width + dx
    inside = _is_inside(y, x, feature_map_size)
    mask = target.mask.unsqueeze(2) & inside
    cell_index = torch.where(mask, y * width + x, 0)

    bbox_targets = target.bbox_targets.unsqueeze(2).repeat(1, 1, len(dx), 1)  # [B, M, A, 8 or 10]
    bbox_targets[..., 0] -= dx
    bbox_targets[..., 1] -= dy

    # squared distance of a cell's center from the object's
    distance = (bbox_targets[..., :2] - 0.5).square().sum(3)
    is_own = (dx == 0) & (dy == 0)
    distance = distance.masked_fill(is_own, -1)
    distance = distance.masked_fill(~mask, torch.inf)

    cell_index = cell_index.flatten(1)  # [B, M A]
    is_nearest = _is_least_of_cell(distance.flatten(1), cell_index, height * width)
    mask = mask.flatten(1) & is_nearest
    return CenterTargets(target.heatmap, bbox_targets.flatten(1, 2), cell_index, mask)


class _Objects(NamedTuple):
    """Objects of one sample, sorted by class: boxes [K, 7 or 9], labels, task and slot [K]."""

    boxes: Tensor
    labels: Tensor
    task: Tensor
    slot: Tensor


class _Centers(NamedTuple):
    """Where objects lie on the BEV feature map, x before y.

    center, extent: [K, 2] cells; cell: [K, 2] int64; valid: [K] bool, whether it can be learned.
    """

    center: Tensor
    extent: Tensor
    cell: Tensor
    valid: Tensor


def _sort_by_class(boxes: Tensor, labels: Tensor, class_offsets: list[int]) -> _Objects:
    """Sort the objects of known classes, and number them within their task: `slot`."""
    order = labels.argsort(stable=True)
    sorted_labels = labels[order]
    known = (sorted_labels >= 0) & (sorted_labels < class_offsets[-1])
    boxes = boxes[order[known]].float()
    labels = labels[order[known]].long()

    first_classes = torch.tensor(class_offsets, device=labels.device)
    start = torch.searchsorted(labels, first_classes)  # [tasks + 1]
    task = torch.bucketize(labels, first_classes[1:], right=True)
    slot = torch.arange(len(labels), device=labels.device) - start[task]
    return _Objects(boxes, labels, task, slot)


def _locate_centers(
    boxes: Tensor,
    feature_map_size: tuple[int, int],
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    stride: int,
) -> _Centers:
    size = boxes.new_tensor(voxel_size)[:2]
    origin = boxes.new_tensor(point_cloud_range)[:2]
    center = (boxes[:, :2] - origin) / size / stride
    cell = center.trunc().long()
    extent = boxes[:, 3:5] / size / stride

    is_finite = boxes[:, :7].isfinite().all(1)
    has_area = (extent > 0).all(1)
    is_inside = _is_inside(cell[:, 1], cell[:, 0], feature_map_size)
    return _Centers(center, extent, cell, is_finite & has_area & is_inside)


def _fill_slots(
    heatmap: Tensor,
    objects: _Objects,
    centers: _Centers,
    valid: Tensor,
    class_offsets: list[int],
    max_objs: int,
) -> list[CenterTargets]:
    """Targets of one sample, one CenterTargets per task without the dimension of the batch."""
    encoding = encode_boxes(objects.boxes, centers.center - centers.cell)
    cell_index = centers.cell[:, 1] * heatmap.shape[2] + centers.cell[:, 0]
    targets = []
    for task, (first, last) in enumerate(zip(class_offsets, class_offsets[1:])):
        in_task = valid & (objects.task == task)
        slot = objects.slot[in_task]
        task_boxes = encoding.new_zeros(max_objs, encoding.shape[1])
        task_cells = cell_index.new_zeros(max_objs)
        mask = torch.zeros_like(task_cells, dtype=torch.bool)
        targets.append(
            CenterTargets(
                heatmap[first:last],
                task_boxes.index_copy(0, slot, encoding[in_task]),
                task_cells.index_copy(0, slot, cell_index[in_task]),
                mask.index_fill(0, slot, True),
            )
        )
    return targets


def _gaussian_radius(height: Tensor, width: Tensor, min_overlap: float) -> Tensor:
    """[K] cells, from the three ways in which a shifted box can overlap the original."""
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
    """Raise heatmap [C, Y, X] in place to a Gaussian within each object's square."""
    if not len(labels):
        return
    _, height, width = heatmap.shape
    reach = min(int(radius.max()), max(height, width))  # nothing farther is on the map
    dy, dx = _square_offsets(reach, cell.device)  # [side, side]
    labels = labels[:, None, None]
    radius = radius[:, None, None]
    center_x, center_y = cell[:, :, None, None].unbind(1)
    y = center_y + dy  # [K, side, side]
    x = center_x + dx
    within_radius = torch.maximum(dx.abs(), dy.abs()) <= radius
    drawn = within_radius & _is_inside(y, x, (height, width))

    value = _gaussian(dx * dx + dy * dy, radius)
    row = labels * height + y
    index = row * width + x
    heatmap.view(-1).scatter_reduce_(0, index[drawn], value[drawn], 'amax')


def _square_offsets(reach: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """dy and dx of the cells at most `reach` away on each axis, [2 reach + 1, 2 reach + 1] each."""
    offset = torch.arange(-reach, reach + 1, device=device)
    dy, dx = torch.meshgrid(offset, offset, indexing='ij')
    return dy, dx


def _gaussian(squared_distance: Tensor, radius: Tensor) -> Tensor:
    """exp(-d^2 / 2 sigma^2) in fp32; sigma is a sixth of the diameter, 2 radius + 1."""
    sigma = (2 * radius + 1).double() / 6
    return (-squared_distance / (2 * sigma * sigma)).exp().float()


def _is_least_of_cell(values: Tensor, cell_index: Tensor, num_cells: int) -> Tensor:
    """Whether each value [B, N] is the least of all values of its sample and cell."""
    least = values.new_full((len(values), num_cells), torch.inf)
    least = least.scatter_reduce(1, cell_index, values, 'amin')
    return values <= least.gather(1, cell_index)


def _is_inside(y: Tensor, x: Tensor, feature_map_size: tuple[int, int]) -> Tensor:
    """Whether the cells are on the BEV feature map."""
    height, width = feature_map_size
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)
