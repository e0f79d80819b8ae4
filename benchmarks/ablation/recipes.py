"""Parts of the recipe, taken away or put into the short trainings as the full-size configs have
them."""

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
    full, own = (
        next(t for t in _pipeline(c) if t.type == 'GlobalRotScaleTrans')
        for c in (Config.fromfile(config_table.list_configs()['centerpoint_voxel03']), config)
    )
    own.update(full)


def plain_backbone(config: Config) -> None:
    """The same convolutions without the shortcuts."""
    config.model.backbone.type = 'PlainBEVBackbone'


def _pipeline(config: Config) -> list:
    dataset = config.train_dataloader.dataset
    return dataset.pipeline if 'pipeline' in dataset else dataset.dataset.pipeline


@MODELS.register_module()
class PlainBEVBackbone(ResidualBEVBackbone):
    """ResidualBEVBackbone without its shortcuts: the plain network that He et al. 2016 compare
    with."""

    def __init__(self, **settings):
        super().__init__(**settings)
        for stage in self.stages:
            for block in stage:
                block.shortcut = _Nothing()


class _Nothing(nn.Module):
    def forward(self, x: Tensor) -> int:
        return 0
