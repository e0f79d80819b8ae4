"""mmdet3d's own CenterPoint on our data, made as good as the same frames and the same short training allow."""
from __future__ import annotations

from mmdet3d.models.dense_heads import CenterHead
from mmdet3d.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

PILLAR = 'mmdet3d::centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py'


@HOOKS.register_module()
class HeatmapPrior(Hook):
    """Let the heatmap of mmdet3d's CenterHead start at its prior, a probability of 0.1.

    mmengine's initialisation does not reach the heads inside CenterHead's list, so that `init_bias` is never applied
    and every cell starts at 0.5; a short training would spend itself on unlearning that.
    """

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        head = model.pts_bbox_head
        if not isinstance(head, CenterHead):
            raise TypeError(f'HeatmapPrior is for mmdet3d\'s CenterHead, not {type(head).__name__}')
        if runner.iter == 0 and not runner._resume:
            for task in head.task_heads:
                nn.init.constant_(task.heatmap[-1].bias, task.init_bias)


def centerpoint_pillar(config: Config) -> None:
    """Put CenterPoint with pillars of 0.2 m, range +-51.2 m and six tasks in our model's place.

    As in mmdet3d but for the prior of its heatmap and the score that a detection needs, which is ours.
    """
    model = get_config(PILLAR).model
    model.pts_bbox_head.bbox_coder.score_threshold = config.model.head.score_threshold
    model.test_cfg.pts.score_threshold = config.model.head.score_threshold
    config.model = model
    config.custom_hooks = [*config.custom_hooks, dict(type='HeatmapPrior')]


def centerpoint_pillar_coarse(config: Config) -> None:
    """The same with pillars of 0.4 m and the map's stride halved: cells as large as before, a fifth of the time."""
    centerpoint_pillar(config)
    model = config.model
    size = 0.4
    model.data_preprocessor.voxel_layer.voxel_size = [size, size, 8]
    model.pts_voxel_encoder.voxel_size = [size, size, 8]
    model.pts_middle_encoder.output_shape = [256, 256]
    model.pts_backbone.layer_strides = [1, 2, 2]
    for part in (model.pts_bbox_head.bbox_coder, model.train_cfg.pts, model.test_cfg.pts):
        part.out_size_factor = 2
        part.voxel_size = [size, size]
    model.train_cfg.pts.voxel_size = [size, size, 8]
    model.train_cfg.pts.grid_size = [256, 256, 1]
