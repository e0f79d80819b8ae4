"""The model family in short trainings: full-size voxels, encoder and backbone, the rest the
quickstart's."""

from __future__ import annotations

from functools import partial

from mmengine.config import Config

from benchmarks.detectors import config_table

# what a short training sets for the head, whichever it is
SHORT = ('iou_weight', 'iou_loss_weight', 'code_weights', 'score_threshold')
NAMES = tuple(name for name, path in config_table.list_configs().items() if '_nus-3d' in path.name)


def put(name: str, config: Config) -> None:
    """Put a member's voxels, encoder and backbone, and its head if of another kind, into a config
    of the ablation.

    Args:
        name: a key of `config_table.list_configs`.
    """
    model = Config.fromfile(config_table.list_configs()[name]).model
    short = config.model.head
    config.model.update(
        {part: model[part] for part in ('voxel_size', 'voxel_encoder', 'encoder', 'backbone')}
    )
    if model.head.type != short.type:
        config.model.head = model.head
        config.model.head.update({key: short[key] for key in SHORT})


CHANGES = {name: partial(put, name) for name in NAMES}
