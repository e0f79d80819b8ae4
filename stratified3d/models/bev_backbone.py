"""Dense 2D backbone on the BEV feature map, with its feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet3d.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class ResidualBEVBackbone(nn.Module):
    """Residual stages of increasing stride, upsampled to the size of the first and concatenated.

    Args:
        in_channels: of the BEV feature map.
        channels: width of each stage.
        depths: residual blocks of each stage.
        strides: of each stage relative to the one before; the first is the stride of the output.
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
                f'channels {list(channels)}, depths {list(depths)} and strides {list(strides)} '
                'must have one entry per stage'
            )
        self.stages = nn.ModuleList()
        self.laterals = nn.ModuleList()
        for width, depth, stride in zip(channels, depths, strides):
            blocks = [_ResidualBlock(in_channels, width, stride)]
            blocks += [_ResidualBlock(width, width) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
            lateral = [
                nn.Conv2d(width, out_channels, 1, bias=False),
                _norm(out_channels),
                nn.ReLU(inplace=True),
            ]
            self.laterals.append(nn.Sequential(*lateral))
            in_channels = width
        self.stride = strides[0]
        self.out_channels = out_channels * len(channels)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Return one BEV feature map [B, self.out_channels, ceil(Y / stride), ceil(X / stride)].

        Args:
            x: [B, in_channels, Y, X].
        """
        levels: list[Tensor] = []
        for stage, lateral in zip(self.stages, self.laterals):
            x = stage(x)
            level = lateral(x)
            if levels:
                level = F.interpolate(level, size=levels[0].shape[2:])
            levels.append(level)
        return (torch.cat(levels, 1),)


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016).

    The shortcut of a strided block is averaged first (ResNet-D, He et al. 2019, "Bag of tricks for
    image classification"): every cell contributes, and all gradients stay channels-last.
    """

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
