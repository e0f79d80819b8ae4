"""What the center head builds of mmdet3d's CenterHead: branches, losses and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def box_branches(velocity: bool, axis: bool, iou: bool, joint: bool) -> dict[str, tuple[int, int]]:
    """Channels and convolutions of the branches beside the heatmap, in the order of the outputs."""
    widths = dict(reg=2, height=1, dim=3, rot=2, vel=2 * velocity, axis=2 * axis, iou=1 * iou)
    if joint:
        widths = dict(box=sum(widths.values()))
    return {name: (width, 2) for name, width in widths.items() if width}


def without_yaw(code_weights: list[float], axis_weight: float) -> list[float]:
    """Return the weights with 0 for sine and cosine of the yaw, which other losses replace."""
    if not axis_weight:
        raise ValueError('direction_weight needs the axis branch: set axis_weight')
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
