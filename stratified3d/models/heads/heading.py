"""Telling the front of a box from its back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_POINTS = (9, 3)  # sampled along and across a box
_REACH = 1.3  # half of the sampled length over half of the box's
# standard deviations of the noise on boxes in training: m, rad
_CENTER_NOISE = 0.3
_YAW_NOISE = 0.08


class HeadingBranch(nn.Module):
    """Tell the front of boxes from their back by features sampled along them.

    The second stage of CenterPoint (Yin et al. 2021, section 4.2) samples a feature map at places
    of a predicted box. Here they form a grid in the frame of the box, so that what is learned of
    one heading holds for all of them. The logit is that of the box minus that of the same box
    turned by pi: nothing but a difference between its ends can decide.

    Args:
        channels: of the feature map.
        cell_size, origin: (x, y) meters of a cell, and of the corner of the feature map.
    """

    def __init__(self, channels: int, cell_size: Sequence[float], origin: Sequence[float]):
        super().__init__()
        self.cell_size = tuple(cell_size)
        self.origin = tuple(origin)
        along, across = _POINTS
        self.layers = nn.Sequential(
            nn.Linear(along * across * channels, channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, 1, bias=False),
        )

    def forward(self, feature_map: Tensor, boxes: Tensor) -> Tensor:
        """Return logits [B, M], positive where the yaw of a box points to its front.

        Args:
            feature_map: [B, C, Y, X].
            boxes: [B, M, >= 7] x, y, z, dx, dy, dz (m), yaw (rad).
        """
        height, width = feature_map.shape[2:]
        x, y = self._sample_places(boxes).unbind(-1)  # [B, M, P] meters
        column = (x - self.origin[0]) / self.cell_size[0] / width * 2 - 1  # -1 to 1
        row = (y - self.origin[1]) / self.cell_size[1] / height * 2 - 1
        grid = torch.stack([column, row], -1)  # [B, M, P, 2]
        with torch.autocast(feature_map.device.type, enabled=False):
            samples = F.grid_sample(feature_map.float(), grid.float(), align_corners=False)
            samples = samples.permute(0, 2, 3, 1)  # [B, M, P, C]
            turned = samples.flip(2)
            logits = self.layers(samples.flatten(2)) - self.layers(turned.flatten(2))
        return logits.squeeze(2)

    def _sample_places(self, boxes: Tensor) -> Tensor:
        """x and y [B, M, P, 2] of the grid of each box; turned by pi their order is reversed."""
        axes = [torch.linspace(-_REACH / 2, _REACH / 2, n, device=boxes.device) for n in _POINTS]
        along, across = torch.meshgrid(*axes, indexing='ij')
        forward = along.flatten() * boxes[..., 3:4]  # [B, M, P]
        left = across.flatten() * boxes[..., 4:5]
        sin, cos = boxes[..., 6:7].sin(), boxes[..., 6:7].cos()
        x = boxes[..., 0:1] + forward * cos - left * sin
        y = boxes[..., 1:2] + forward * sin + left * cos
        return torch.stack([x, y], -1)

    def logits_by_sample(self, feature_map: Tensor, boxes: Tensor, sample: Tensor) -> Tensor:
        """Return the logits [K] of boxes [K, >= 7] that belong to these samples [K]."""
        logits = boxes.new_zeros(len(boxes))
        for i in range(len(feature_map)):
            rows = (sample == i).nonzero().squeeze(1)
            logits[rows] = self(feature_map[i : i + 1], boxes[None, rows])[0]
        return logits

    def loss(self, feature_map: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Return the mean binary cross-entropy over the ground-truth boxes, moved a little.

        Args:
            feature_map: [B, C, Y, X].
            boxes: one [K, >= 7] per sample.
        """
        padded = nn.utils.rnn.pad_sequence([x[:, :7].float() for x in boxes], batch_first=True)
        known = padded[..., 3] > 0  # [B, M]
        noise = torch.randn_like(padded[..., :3])
        moved = padded.clone()
        moved[..., :2] += _CENTER_NOISE * noise[..., :2]
        moved[..., 6] += _YAW_NOISE * noise[..., 2]
        logits = self(feature_map, moved)
        loss = F.softplus(-logits) * known
        return loss.sum() / known.sum().clamp(min=1)
