"""Parts of the recipe, taken away or put into the short trainings as the full-size configs have them."""
from __future__ import annotations

from mmdet3d.registry import MODELS
from mmengine.config import Config
from torch import Tensor, nn

from projects.attention_zoo.benchmarks import family


def without_sampling(config: Config) -> None:
    """Paste no objects into training frames."""
    _pipeline(config)[:] = [t for t in _pipeline(config) if t.type != 'ObjectSample']


def full_augmentation(config: Config) -> None:
    """Rotate, scale and move frames as far as the full-size configs do."""
    full, own = (next(t for t in _pipeline(c) if t.type == 'GlobalRotScaleTrans')
                 for c in (Config.fromfile(family.members()['centerpoint_voxel03']), config))
    own.update(full)


def plain_backbone(config: Config) -> None:
    """Backbone and pyramid of mmdet3d's CenterPoint, as deep and wide as the residual ones that they replace."""
    settings = config.model.backbone
    config.model.backbone = dict(settings, type='PlainBEVBackbone')


def _pipeline(config: Config) -> list:
    dataset = config.train_dataloader.dataset
    while 'pipeline' not in dataset:
        dataset = dataset.dataset
    return dataset.pipeline


@MODELS.register_module()
class PlainBEVBackbone(nn.Module):
    """mmdet3d's SECOND and SECONDFPN with the settings of ResidualBEVBackbone: two 3x3 convolutions where that has a
    residual block, no shortcuts; coarser stages are brought to the first one's size by transposed convolutions."""

    def __init__(self, in_channels: int, channels: list[int], depths: list[int], strides: list[int],
                 out_channels: int):
        super().__init__()
        norm = dict(type='BN', eps=1e-3, momentum=0.1)
        # SECOND's strided convolution comes on top of those that it counts
        self.stages = MODELS.build(dict(type='SECOND', in_channels=in_channels, out_channels=channels, norm_cfg=norm,
                                        layer_nums=[2 * depth - 1 for depth in depths], layer_strides=strides))
        scales = [1]
        for stride in strides[1:]:
            scales.append(scales[-1] * stride)
        self.pyramid = MODELS.build(dict(type='SECONDFPN', in_channels=channels, norm_cfg=norm, upsample_strides=scales,
                                         out_channels=[out_channels] * len(channels)))
        self.stride, self.out_channels = strides[0], out_channels * len(channels)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """[B, in_channels, Y, X] -> one map [B, out_channels * stages, Y / stride, X / stride]."""
        return tuple(self.pyramid(self.stages(x)))
