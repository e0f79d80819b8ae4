"""Dense 2D backbone on the bird's-eye-view map, with its feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet3d.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class ResidualBEVBackbone(nn.Module):
    """Residual stages at growing stride; all are brought to the first stage's size and
    concatenated.

    Args:
        in_channels: of the map.
        channels: width of each stage.
        depths: residual blocks of each stage.
        strides: of each stage over the one before; the first is the stride of the output.
        out_channels: width that each stage contributes to the output.
    Raises:
        ValueError: settings of different lengths.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (128, 128, 256),
        depths: Sequence[int] = (1, 2, 2),
        strides: Sequence[int] = (1, 2, 2),
        out_channels: int = 128,
    ):
        super().__init__()
        if not len(channels) == len(depths) == len(strides) > 0:
            raise ValueError(
                f'channels {list(channels)}, depths {list(depths)} and strides {list(strides)} must have '
                'one entry a stage'
            )
        self.stages, self.laterals = nn.ModuleList(), nn.ModuleList()
        for width, depth, stride in zip(channels, depths, strides):
            blocks = [_ResidualBlock(in_channels, width, stride)]
            blocks += [_ResidualBlock(width, width) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
            self.laterals.append(
                nn.Sequential(
                    nn.Conv2d(width, out_channels, 1, bias=False),
                    _norm(out_channels),
                    nn.ReLU(inplace=True),
                )
            )
            in_channels = width
        self.stride, self.out_channels = strides[0], out_channels * len(channels)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """[B, in_channels, Y, X] -> one map [B, out_channels * stages, ceil(Y / stride), ceil(X /
        stride)]."""
        levels = []
        for stage, lateral in zip(self.stages, self.laterals):
            x = stage(x)
            level = lateral(x)
            levels.append(F.interpolate(level, size=levels[0].shape[2:]) if levels else level)
        return (torch.cat(levels, 1),)


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016), which a strided block averages first
    (He et al. 2019, "Bag of tricks for image classification", ResNet-D): every cell counts, and all
    gradients stay channels-last."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = _norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = _norm(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut.append(nn.AvgPool2d(stride, ceil_mode=True))
        if stride != 1 or in_channels != channels:
            self.shortcut.extend([nn.Conv2d(in_channels, channels, 1, bias=False), _norm(channels)])

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
