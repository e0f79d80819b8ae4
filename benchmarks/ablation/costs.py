"""Floating-point operations of the dense part of a detector."""

from __future__ import annotations

import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch.utils.flop_counter import FlopCounterMode

from stratified3d.models.detector import StratifiedCenterPoint


def bev_gflop(config: Config, frames: int = 2) -> float | None:
    """GFLOP of backbone and head, forward; the backward pass needs twice that.

    Convolutions alone are counted, two operations per multiply-add, without computing anything.

    Args:
        config: of a detector; other detectors than ours give None.
        frames: in the batch.
    """
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        model = MODELS.build(config.model)
    if not isinstance(model, StratifiedCenterPoint):
        return None
    _, height, width = model.encoder.out_shape
    shape = (frames, model.encoder.out_channels, height, width)
    backbone = model.backbone.to('meta')  # type: ignore[attr-defined]
    head = model.head.to('meta')  # type: ignore[attr-defined]
    with FlopCounterMode(display=False) as counter:
        head(backbone(torch.empty(shape, device='meta')))
    return counter.get_total_flops() / 1e9
