"""What the center head builds of mmdet3d's CenterHead, and its branch for the heading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# of the heading branch: points sampled along and across a box
_POINTS = (9, 3)  # sampled along and across a box
_REACH = 1.3  # half of the sampled length over half of the box's
_NOISE = (0.3, 0.3, 0.08)  # standard deviations on boxes in training: x, y (m), yaw (rad)


def box_branches(velocity: bool, axis: bool, iou: bool, joint: bool) -> dict[str, tuple[int, int]]:
    """Channels and convolutions of the branches beside the heatmap, in the order of the outputs."""
    widths = dict(reg=2, height=1, dim=3, rot=2, vel=2 * velocity, axis=2 * axis, iou=1 * iou)
    if joint:
        widths = dict(box=sum(widths.values()))
    return {name: (width, 2) for name, width in widths.items() if width}


def without_yaw(code_weights: list[float], axis_weight: float) -> list[float]:
    """Return the weights with 0 for sine and cosine of the yaw, which other losses replace."""
    if not axis_weight:
        raise ValueError('a heading branch needs the axis branch: set axis_weight')
    return [*code_weights[:6], 0.0, 0.0, *code_weights[8:]]


def unused_bbox_coder(
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    stride: int,
    use_velocity: bool,
) -> dict:
    """Config of mmdet3d's decoder, which its constructor asks for; it needs boxes of all cells."""
    return dict(
        type='CenterPointBBoxCoder',
        pc_range=list(point_cloud_range[:2]),
        out_size_factor=stride,
        voxel_size=list(voxel_size[:2]),
        code_size=9 if use_velocity else 7,
    )


def layer_settings(
    tasks: Sequence[Sequence[str]], shared_channels: int, bbox_weight: float
) -> dict[str, Any]:
    """Settings of mmdet3d's CenterHead for its layers and losses."""
    return dict(
        tasks=[dict(num_class=len(names), class_names=list(names)) for names in tasks],
        share_conv_channel=shared_channels,
        separate_head=dict(
            type='SeparateHead', head_conv=shared_channels, init_bias=-2.19, final_kernel=3
        ),
        loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'),
        loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=bbox_weight),
    )


class HeadingBranch(nn.Module):
    """Tell the front of boxes from their back by features sampled along them.

    The second stage of CenterPoint (Yin et al. 2021, section 4.2) samples a feature map at places
    of a predicted box. Here they form a grid in the frame of the box, so that what is learned of
    one heading holds for all of them. The logit is that of the box minus that of the same box
    turned by pi: nothing but a difference between its ends can decide.

    Args:
        channels: of the feature map.
        cell_size, origin: (x, y) meters of a cell, and of the corner of the feature map.
        tasks: lists of class names; their concatenation is the order of the labels.
        weight: of the loss.
        classes: whose boxes are learned from; those of no heading, such as cones, are noise.
            Default all.
        jitter: whether training moves the boxes a little, as predictions are.
    Raises:
        ValueError: classes that no task has.
    """

    def __init__(
        self,
        channels: int,
        cell_size: Sequence[float],
        origin: Sequence[float],
        tasks: Sequence[Sequence[str]],
        weight: float = 1.0,
        classes: Sequence[str] | None = None,
        jitter: bool = True,
    ):
        super().__init__()
        self.cell_size = tuple(cell_size)
        self.origin = tuple(origin)
        self.weight = weight
        self.jitter = jitter
        names = [name for task in tasks for name in task]
        unknown = [name for name in classes or () if name not in names]
        if unknown:
            raise ValueError(f'heading: no class is {unknown[0]!r}; there are {", ".join(names)}')
        self.is_learned = [classes is None or name in classes for name in names]
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
        if len(feature_map) == 1:
            return self(feature_map, boxes[None])[0]
        logits = boxes.new_zeros(len(boxes))
        for i in range(len(feature_map)):
            rows = (sample == i).nonzero().squeeze(1)
            logits[rows] = self(feature_map[i : i + 1], boxes[None, rows])[0]
        return logits

    def loss(
        self, feature_map: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of the binary cross-entropy over ground-truth boxes, and their number.

        Left out are boxes of other classes or of none (-1), of NaN, without area and off the map.

        Args:
            feature_map: [B, C, Y, X].
            boxes, labels: one [K, >= 7] and one [K] per sample.
        """
        padded = nn.utils.rnn.pad_sequence([x[:, :7].float() for x in boxes], batch_first=True)
        label = nn.utils.rnn.pad_sequence(list(labels), batch_first=True, padding_value=-1)
        is_learned = torch.tensor([*self.is_learned, False], device=label.device)  # -1 is the last
        counted = is_learned[label] & self._is_valid(padded, feature_map.shape[2:])  # [B, M]

        moved = torch.where(counted.unsqueeze(2), padded, 1.0)
        if self.jitter:
            noise = torch.randn_like(moved[..., :3]) * moved.new_tensor(_NOISE)
            moved = torch.cat(
                [moved[..., :2] + noise[..., :2], moved[..., 2:6], moved[..., 6:] + noise[..., 2:]],
                -1,
            )
        loss = F.softplus(-self(feature_map, moved)) * counted
        return self.weight * loss.sum(), counted.sum()

    def _is_valid(self, boxes: Tensor, map_size: Sequence[int]) -> Tensor:
        """Whether boxes [..., >= 7] have finite numbers, an area and a center on the map (Y, X)."""
        x = (boxes[..., 0] - self.origin[0]) / self.cell_size[0]
        y = (boxes[..., 1] - self.origin[1]) / self.cell_size[1]
        is_inside = (x >= 0) & (x < map_size[1]) & (y >= 0) & (y < map_size[0])
        return is_inside & boxes.isfinite().all(-1) & (boxes[..., 3:5] > 0).all(-1)
