"""Peaks of a heatmap: boxes or queries come from these cells. The center head's branches at them
alone, and NMS of the boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from stratified3d.ops import circle_nms, rotated_nms

_ROUND = 32  # the number of peaks is padded to a multiple of this


class Peaks(NamedTuple):
    """K cells of a batch that may become boxes.

    sample, label, y, x: [K] int64 each.
    score: [K] heatmap scores.
    """

    sample: Tensor
    label: Tensor
    y: Tensor
    x: Tensor
    score: Tensor


def select_peaks(
    logits: Tensor, iou_power: Sequence[float], score_threshold: float, max_num: int
) -> Peaks:
    """Return the max_num highest cells of each sample over all classes.

    Cells whose score would not exceed the threshold even with an IoU of 1 are left out.

    Args:
        logits: [B, classes, Y, X] of the heatmap.
        iou_power: of each class, see `rectify_score`; 0 without an IoU branch.
        score_threshold: of the rectified score.
        max_num: peaks per sample.
    """
    best = best_cells(logits, max_num)
    power = best.score.new_tensor(iou_power)[best.label]
    highest = best.score ** (1 - power)  # the rectified score with an IoU of 1
    rows = (highest > score_threshold).nonzero().squeeze(1)
    return Peaks(*(column[rows] for column in best))


def best_cells(logits: Tensor, max_num: int) -> Peaks:
    """Return the max_num highest cells of each sample over all classes, fewer on a smaller map.

    Args:
        logits: [B, classes, Y, X] of the heatmap.
        max_num: cells per sample.
    """
    batch, classes, height, width = logits.shape
    cells = height * width
    count = min(max_num, classes * cells)
    scores, index = logits.float().sigmoid().flatten(1).topk(count)  # [B, count]
    sample = torch.arange(batch, device=logits.device).repeat_interleave(count)
    index = index.flatten()
    cell = index % cells
    return Peaks(sample, index // cells, cell // width, cell % width, scores.flatten())


def select_queries(
    logits: Tensor, is_small: Tensor, num_proposals: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the num_proposals highest local maxima of each sample over all classes.

    Where a sample has fewer of them, its best other cells follow and have score 0.

    Args:
        logits: [B, classes, Y, X] of the heatmap.
        is_small: [classes, 1, 1] bool, classes whose every cell may be a query.
        num_proposals: N, at most classes * Y * X.
    Returns:
        Scores, classes and cells y * X + x of the queries, each [B, N], without gradient.
    """
    scores = logits.detach().float().sigmoid()
    is_peak = local_maxima(scores) | is_small
    # other cells come after all peaks: their scores are below 0
    ranked = torch.where(is_peak, scores, scores - 1).flatten(1)
    scores, index = ranked.topk(num_proposals)
    cells = logits.shape[2] * logits.shape[3]
    return scores.clamp(min=0), index // cells, index % cells


def local_maxima(scores: Tensor) -> Tensor:
    """Return where scores [..., Y, X] are at least those of the eight neighbors, as bool.

    Of equal neighbors the first in reading order counts as the larger.
    """
    height, width = scores.shape[-2:]
    padded = F.pad(scores, (1, 1, 1, 1), value=-torch.inf)
    shifted = []  # in reading order, the fifth is the cell itself
    for y in range(3):
        for x in range(3):
            shifted.append(padded[..., y : y + height, x : x + width])
    before = torch.stack(shifted[:4]).amax(0)
    after = torch.stack(shifted[5:]).amax(0)
    return (scores > before) & (scores >= after)


def gather_at(feature_map: Tensor, peaks: Peaks) -> Tensor:
    """Return the features [K, C] of a map [B, C, Y, X] at the peaks."""
    return feature_map[peaks.sample, :, peaks.y, peaks.x]


def run_branches_at(branches: Sequence[nn.Sequential], feature_map: Tensor, peaks: Peaks) -> Tensor:
    """Return the joined outputs [K, C] of branches of 3x3 convolutions at the peaks.

    Equal to `gather_at` of what the branches make of the whole map, but only the cells around the
    peaks are computed.

    Args:
        branches: ConvModules and a convolution at the end, 3x3 with zero padding, all of the same
            depth; in evaluation mode.
        feature_map: [B, C, Y, X], input of the branches.
    """
    count = len(peaks.x)
    patches, inside = _cut_patches(feature_map, peaks, reach=len(branches[0]))
    outputs = [_run_branch(branch, patches, inside).flatten(1)[:count] for branch in branches]
    return torch.cat(outputs, 1)


def check_nms(nms: dict, num_tasks: int) -> dict:
    """Return a copy of the settings of NMS, see `StratifiedCenterHead`, after a check.

    Raises:
        ValueError: an unknown type, settings that are missing or do not fit the tasks.
    """
    nms = dict(nms)
    if nms.get('type') not in ('circle', 'rotated'):
        raise ValueError(f"nms type is 'circle' or 'rotated', not {nms.get('type')!r}")
    if nms['type'] == 'circle' and len(nms.get('radius', ())) != num_tasks:
        raise ValueError(
            f'nms radius has {len(nms.get("radius", ()))} entries for {num_tasks} tasks'
        )
    if nms['type'] == 'rotated' and 'iou' not in nms:
        raise ValueError("nms type 'rotated' needs its iou, e.g. dict(type='rotated', iou=0.2)")
    return nms


def apply_nms(nms: dict, boxes: Tensor, scores: Tensor, task: int, max_num: int) -> Tensor:
    """Return the indices of the boxes [K, >= 7] of a task that NMS keeps, at most max_num.

    Args:
        nms: of `check_nms`.
    """
    if nms['type'] == 'circle':
        return circle_nms(boxes[:, :2], scores, nms['radius'][task], max_num)
    x, y, _, dx, dy, _, yaw, *_ = boxes.unbind(1)
    return rotated_nms(torch.stack([x, y, dx, dy, yaw], 1), scores, nms['iou'], max_num)


def _cut_patches(feature_map: Tensor, peaks: Peaks, reach: int) -> tuple[Tensor, Tensor]:
    """Cut a square of side 2 reach + 1 around every peak; zero outside of the map.

    Returns:
        patches [K, C, side, side], and inside [K, 1, side, side] bool: whether a cell is on the
        map. K is padded.
    """
    # libraries prepare a convolution for every new shape: use few shapes
    padding = -len(peaks.x) % _ROUND
    sample = F.pad(peaks.sample, (0, padding))
    offset = torch.arange(-reach, reach + 1, device=feature_map.device)
    y = (F.pad(peaks.y, (0, padding))[:, None] + offset)[:, :, None]  # [K, side, 1]
    x = (F.pad(peaks.x, (0, padding))[:, None] + offset)[:, None]  # [K, 1, side]

    height, width = feature_map.shape[2:]
    inside = ((y >= 0) & (y < height) & (x >= 0) & (x < width)).unsqueeze(1)
    y = y.clamp(0, height - 1)
    x = x.clamp(0, width - 1)
    patches = feature_map.permute(0, 2, 3, 1)[sample[:, None, None], y, x]  # [K, side, side, C]
    patches = patches.permute(0, 3, 1, 2).masked_fill(~inside, 0)
    return patches, inside


def _run_branch(branch: nn.Sequential, patches: Tensor, inside: Tensor) -> Tensor:
    """Output [K, width, 1, 1] of a branch at the center of the patches."""
    for layer in branch:
        conv = cast(nn.Conv2d, layer.conv if isinstance(layer, ConvModule) else layer)
        patches = F.conv2d(patches, conv.weight, conv.bias)  # unpadded: a cell less on every side
        inside = inside[..., 1:-1, 1:-1]
        if isinstance(layer, ConvModule):
            # the next layer pads its input with zeros, whatever this layer gives outside of the map
            patches = layer.activate(layer.norm(patches)).masked_fill(~inside, 0)
    return patches
