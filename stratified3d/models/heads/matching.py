"""Assignment of objects to queries: the cheapest pairing of predicted and ground-truth boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from stratified3d.models.heads.box_coding import move_center
from stratified3d.models.heads.box_iou import iou3d_and_distance
from stratified3d.models.heads.center_targets import CenterTargets, assign_targets

# replaces costs that are NaN or infinite: a diverged model shall show in its loss, not fail here
_LARGEST_COST = 1e8


class QueryTargets(NamedTuple):
    """Targets of the batch.

    heatmap: [B, classes, Y, X] in 0 to 1.
    bbox_targets: one [K, 8 or 10] per sample, box encodings with the center in cells of the map.
    labels: one [K] int64 per sample.
    """

    heatmap: Tensor
    bbox_targets: list[Tensor]
    labels: list[Tensor]


class MatchedPairs(NamedTuple):
    """M pairs of a query and an object of the batch.

    sample, query, label: [M] int64 each; label is the object's.
    bbox_targets: [M, 8 or 10] box encodings of the objects.
    """

    sample: Tensor
    query: Tensor
    label: Tensor
    bbox_targets: Tensor


def assign_query_targets(
    boxes: Sequence[Tensor], labels: Sequence[Tensor], num_classes: int, **settings: Any
) -> QueryTargets:
    """Return the heatmaps of all classes, and the objects that are on the BEV feature map.

    Args:
        boxes, labels, settings: see `assign_targets`.
        num_classes: of the head.
    Raises:
        ValueError: a label that is not one of the head's classes.
    """
    for i, sample_labels in enumerate(labels):
        largest = int(sample_labels.max()) if len(sample_labels) else 0
        if largest >= num_classes:
            raise ValueError(
                f'sample {i} has an object of class {largest}, but the head has {num_classes} '
                'classes, counted from 0'
            )
    max_objs = max(map(len, boxes))
    targets = assign_targets(boxes, labels, [1] * num_classes, max_objs=max_objs, **settings)
    return _merge_classes(targets)


def match_batch(
    logits: Tensor,
    encoding: Tensor,
    target: QueryTargets,
    *,
    cell_size: Sequence[float],
    feature_map_size: tuple[int, int],
    weights: Sequence[float],
) -> MatchedPairs:
    """Return the pairs of `match_queries` for all samples.

    Args:
        logits: [B, N, classes] of the queries.
        encoding: [B, N, >= 8] predicted box encodings.
        target: of the batch.
        cell_size, feature_map_size, weights: see `match_queries`.
    """
    pairs = []
    for i, (bbox_targets, labels) in enumerate(zip(target.bbox_targets, target.labels)):
        query, index = match_queries(
            logits[i],
            encoding[i],
            bbox_targets,
            labels,
            cell_size=cell_size,
            feature_map_size=feature_map_size,
            weights=weights,
        )
        sample = torch.full_like(query, i)
        pairs.append(MatchedPairs(sample, query, labels[index], bbox_targets[index]))
    return MatchedPairs(*(torch.cat(parts) for parts in zip(*pairs)))


@torch.no_grad()
def match_queries(
    logits: Tensor,
    encoding: Tensor,
    bbox_targets: Tensor,
    labels: Tensor,
    *,
    cell_size: Sequence[float],
    feature_map_size: tuple[int, int],
    weights: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Pair queries and objects one to one so that the sum of costs is least.

    Hungarian matching (Carion et al. 2020) with the costs of TransFusion (Bai et al. 2022, section
    3.5): a focal classification cost, the L1 distance of the centers as a share of the BEV feature
    map, and minus the 3D IoU, each times its weight. Complexity: O(N K), and for the assignment
    O(min(N, K)^2 max(N, K)) on the CPU.

    Args:
        logits: [N, classes] of the queries.
        encoding: [N, >= 8] predicted box encodings.
        bbox_targets: [K, >= 8] box encodings of the objects.
        labels: [K] classes of the objects.
        cell_size: (x, y) meters of a cell.
        feature_map_size: (Y, X) cells.
        weights: of classification, center and IoU.
    Returns:
        query [min(N, K)] and object [min(N, K)], int64, sorted by query.
    """
    if not len(labels):
        nothing = labels.new_zeros(0, dtype=torch.long)
        return nothing, nothing
    class_weight, center_weight, iou_weight = weights
    cost = class_weight * _focal_cost(logits)[:, labels]  # [N, K]
    cost = cost + center_weight * _center_cost(encoding, bbox_targets, feature_map_size)
    cost = cost + iou_weight * -pairwise_iou(encoding, bbox_targets, cell_size)
    cost = cost.nan_to_num(_LARGEST_COST, _LARGEST_COST, -_LARGEST_COST)
    query, index = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(query).to(labels.device), torch.from_numpy(index).to(labels.device)


def pairwise_iou(encoding: Tensor, bbox_targets: Tensor, cell_size: Sequence[float]) -> Tensor:
    """Return the 3D IoU [N, K] of box encodings [N, >= 8] with others [K, >= 8]."""
    shift = encoding[:, None, :2] - bbox_targets[None, :, :2]  # [N, K, 2] cells
    distance = (shift * encoding.new_tensor(cell_size)).norm(dim=2)
    reach = _circumscribed_radius(encoding)
    target_reach = _circumscribed_radius(bbox_targets)
    # only boxes whose circumscribed circles meet can overlap
    first, second = (distance <= reach[:, None] + target_reach).nonzero(as_tuple=True)

    iou = torch.zeros_like(distance)
    near_iou, _ = iou3d_and_distance(encoding[first], bbox_targets[second], cell_size)
    iou[first, second] = near_iou.to(iou.dtype)
    return iou


def _merge_classes(class_targets: Sequence[CenterTargets]) -> QueryTargets:
    """Join the targets of tasks of one class each, and list the objects of each sample."""
    heatmap = torch.cat([target.heatmap for target in class_targets], 1)
    width = heatmap.shape[3]
    bbox_targets = []
    labels = []
    for i in range(len(heatmap)):
        masks = [target.mask[i] for target in class_targets]
        encodings = [target.bbox_targets[i][mask] for target, mask in zip(class_targets, masks)]
        indices = [target.cell_index[i][mask] for target, mask in zip(class_targets, masks)]
        index = torch.cat(indices)
        cells = torch.stack([index % width, index // width], 1)  # [K, 2]
        bbox_targets.append(move_center(torch.cat(encodings), cells))
        labels.append(torch.cat([torch.full_like(x, label) for label, x in enumerate(indices)]))
    return QueryTargets(heatmap, bbox_targets, labels)


def _focal_cost(logits: Tensor) -> Tensor:
    """Change [N, classes] of the focal loss when a query is assigned an object of that class."""
    score = logits.sigmoid()
    as_object = 0.25 * (1 - score) ** 2 * -F.logsigmoid(logits)
    as_background = 0.75 * score**2 * -F.logsigmoid(-logits)
    return as_object - as_background


def _center_cost(
    encoding: Tensor, bbox_targets: Tensor, feature_map_size: tuple[int, int]
) -> Tensor:
    """L1 distance [N, K] of the centers, each axis as a share of the BEV feature map."""
    height, width = feature_map_size
    shift = encoding[:, None, :2] - bbox_targets[None, :, :2]
    return (shift / encoding.new_tensor([width, height])).abs().sum(2)


def _circumscribed_radius(encoding: Tensor) -> Tensor:
    """Radius [N] in meters of the circle around each box in the bird's-eye view."""
    return encoding[:, 3:5].exp().norm(dim=1) / 2
