"""The cells of a heatmap that become boxes, and the box branches of the center head at these cells
alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn

_ROUND = 32  # peaks are rounded up to as many


class Peaks(NamedTuple):
    """K cells of a batch that may become boxes: sample, label, y and x, each [K] int64, and heat
    [K], their score."""

    sample: Tensor
    label: Tensor
    y: Tensor
    x: Tensor
    heat: Tensor


def choose_peaks(
    logits: Tensor, power: Sequence[float], score_threshold: float, max_num: int
) -> Peaks:
    """The `max_num` highest cells of each sample over all classes, without those that no IoU lifts
    over the threshold.

    Args:
        logits: [B, classes, Y, X] of the heatmap.
        power: of the IoU in the score of each class, see `rectify_score`; 0 where there is none.
    """
    _, classes, height, width = logits.shape
    heat, index = (
        logits.float().sigmoid().flatten(1).topk(min(max_num, classes * height * width))
    )  # [B, K]
    label = index // (height * width)
    best = heat ** (1 - heat.new_tensor(power)[label])  # with an IoU of 1
    sample, rank = (best > score_threshold).nonzero(as_tuple=True)
    index, cell = index[sample, rank], index[sample, rank] % (height * width)
    return Peaks(sample, index // (height * width), cell // width, cell % width, heat[sample, rank])


def gather_at(maps: Tensor, peaks: Peaks) -> Tensor:
    """[B, C, Y, X] -> [K, C] at the peaks."""
    return maps[peaks.sample, :, peaks.y, peaks.x]


def run_at(branches: Sequence[nn.Sequential], maps: Tensor, peaks: Peaks) -> list[Tensor]:
    """What branches of 3x3 convolutions give at the peaks: equal to `gather_at(branch(maps),
    peaks)`, for the work of the cells around the peaks.

    Args:
        branches: ConvModules and a convolution at the end, 3x3 with zero padding, as many each; in
        evaluation mode.
        maps: [B, C, Y, X], what the branches read.
    Returns:
        One [K, width] a branch.
    """
    depth, count = len(branches[0]), len(peaks.x)
    # libraries prepare a convolution for every new shape: few shapes, then
    sample, y, x = (
        F.pad(index, (0, -count % _ROUND)) for index in (peaks.sample, peaks.y, peaks.x)
    )
    reach = torch.arange(-depth, depth + 1, device=maps.device)
    y, x = (
        (y[:, None] + reach)[:, :, None],
        (x[:, None] + reach)[:, None],
    )  # [K, side, 1], [K, 1, side]
    height, width = maps.shape[2:]
    # a layer pads what the one before made of the map, not of what lies around it
    inside = ((y >= 0) & (y < height) & (x >= 0) & (x < width)).unsqueeze(1)  # [K, 1, side, side]
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    patches = maps.permute(0, 2, 3, 1)[sample[:, None, None], y, x].permute(
        0, 3, 1, 2
    )  # [K, C, side, side]
    patches = patches.masked_fill(~inside, 0)
    return [_run(branch, patches, inside).flatten(1)[:count] for branch in branches]


def _run(branch: nn.Sequential, patches: Tensor, inside: Tensor) -> Tensor:
    for layer in branch:
        conv = layer.conv if isinstance(layer, ConvModule) else layer
        patches = F.conv2d(
            patches, conv.weight, conv.bias
        )  # without padding: one cell less on each side
        inside = inside[..., 1:-1, 1:-1]
        if isinstance(layer, ConvModule):
            patches = layer.activate(layer.norm(patches)).masked_fill(~inside, 0)
    return patches
