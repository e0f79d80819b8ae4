"""Changes of the recipe: parts removed, or set as in the full-size configs."""

from __future__ import annotations

from mmdet3d.registry import MODELS
from mmengine.config import Config
from torch import Tensor, nn

from benchmarks.detectors import config_table
from stratified3d.models.bev_backbone import ResidualBEVBackbone


def without_sampling(config: Config) -> None:
    """Paste no objects into training frames."""
    _pipeline(config)[:] = [t for t in _pipeline(config) if t.type != 'ObjectSample']


def full_augmentation(config: Config) -> None:
    """Rotate, scale and move frames as far as the full-size configs do."""
    full_size = Config.fromfile(config_table.list_configs()['centerpoint_voxel03'])
    _global_augmentation(config).update(_global_augmentation(full_size))


def _global_augmentation(config: Config) -> dict:
    return next(t for t in _pipeline(config) if t.type == 'GlobalRotScaleTrans')


def plain_backbone(config: Config) -> None:
    """Use the same convolutions without the shortcuts."""
    config.model.backbone.type = 'PlainBEVBackbone'


def separable_backbone(config: Config) -> None:
    """Use a 3x3 convolution per channel and a 1x1 convolution for each 3x3 one."""
    config.model.backbone.type = 'SeparableBEVBackbone'


def without_flips(config: Config) -> None:
    """Mirror no training frame."""
    _pipeline(config)[:] = [t for t in _pipeline(config) if t.type != 'RandomFlip3D']


def with_turns(config: Config) -> None:
    """Paste objects turned about the sensor, instead of where they were."""
    sample = next(t for t in _pipeline(config) if t.type == 'ObjectSample')
    sample.db_sampler.turned = True


def paste_on_ground(config: Config) -> None:
    """Find the ground of each frame for pasted objects, which sensors of other heights saw."""
    pipeline = _pipeline(config)
    for place, transform in enumerate(pipeline):
        if transform['type'] == 'ObjectSample':
            transform.use_ground_plane = True
            pipeline.insert(place, dict(type='FindGroundPlane'))
            return


def use_sweeps(config: Config, count: int, every: int = 1) -> None:
    """Stack so many earlier sweeps on a keyframe, or every second one, and so on."""
    for pipeline in _pipelines(config):
        load = next(t for t in pipeline if t.type == 'LoadAlignedSweeps')
        load.update(sweeps_num=count, every=every)


def one_sweep(config: Config) -> None:
    """Use the keyframe alone, and of pasted objects what one sweep saw."""
    use_sweeps(config, 0)
    _pipeline(config).insert(-1, dict(type='DropSweeps', prob=1.0))


def remember_sweeps(config: Config, count: int, every: int = 1) -> None:
    """Use the sweeps of `use_sweeps` as earlier frames, whose strata tokens are remembered."""
    use_sweeps(config, count, every)
    config.model.encoder.setdefault('mixer', {}).update(memory=dict(frames=count))
    for pipeline in _pipelines(config):
        pipeline[-1].update(type='PackClip', frames=count)


def _pipelines(config: Config) -> list[list]:
    """Of training, validation and test."""
    others = [config[f'{name}_dataloader'].dataset.pipeline for name in ('val', 'test')]
    return [_pipeline(config), *others]


def _pipeline(config: Config) -> list:
    dataset = config.train_dataloader.dataset
    return dataset.pipeline if 'pipeline' in dataset else dataset.dataset.pipeline


@MODELS.register_module()
class PlainBEVBackbone(ResidualBEVBackbone):
    """ResidualBEVBackbone without its shortcuts: the plain network of He et al. 2016."""

    def __init__(self, **settings):
        super().__init__(**settings)
        for stage in self.stages:
            for block in stage:
                block.shortcut = _Zero()


class _Zero(nn.Module):
    def forward(self, x: Tensor) -> int:
        return 0


@MODELS.register_module()
class SeparableBEVBackbone(ResidualBEVBackbone):
    """ResidualBEVBackbone of depthwise separable convolutions (MobileNet, Howard et al. 2017)."""

    def __init__(self, **settings):
        super().__init__(**settings)
        for stage in self.stages:
            for block in stage:
                block.conv1 = _separable(block.conv1)
                block.conv2 = _separable(block.conv2)


def _separable(conv: nn.Conv2d) -> nn.Sequential:
    """Two convolutions in place of a 3x3 one."""
    width = conv.in_channels
    return nn.Sequential(
        nn.Conv2d(width, width, 3, conv.stride[0], 1, groups=width, bias=False),
        nn.Conv2d(width, conv.out_channels, 1, bias=False),
    )
