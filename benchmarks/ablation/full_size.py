"""Short trainings of the full-size configs: their voxels, encoder and backbone, the quickstart's
rest."""

from __future__ import annotations

from functools import partial

from mmengine.config import Config

from benchmarks.detectors import config_table

# settings of the short trainings for any head
HEAD_SETTINGS = ('iou_weight', 'iou_loss_weight', 'code_weights', 'score_threshold')
NAMES = tuple(name for name, path in config_table.list_configs().items() if '_nus-3d' in path.name)


def use_full_size(name: str, config: Config) -> None:
    """Put the voxels, encoder and backbone of a full-size config into a config of the ablation.

    Its head is taken too if it is of another type.

    Args:
        name: a key of `config_table.list_configs`.
    """
    model = Config.fromfile(config_table.list_configs()[name]).model
    head = config.model.head
    for part in ('voxel_size', 'voxel_encoder', 'encoder', 'backbone'):
        config.model[part] = model[part]
    if model.head.type != head.type:
        config.model.head = model.head
        config.model.head.update({key: head[key] for key in HEAD_SETTINGS})


CHANGES = {name: partial(use_full_size, name) for name in NAMES}
