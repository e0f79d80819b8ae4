"""mmdet3d's CenterPoint on our data, as good as the same frames and short training allow."""

from __future__ import annotations

import torch
from mmdet3d.models.dense_heads import CenterHead
from mmdet3d.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from spconv.pytorch.conv import SparseConvolution
from torch import nn

from benchmarks.detectors.convolutions import same_in_torch
from benchmarks.detectors.synthetic import HeadOutputs
from stratified3d.models.bev_format import fast_memory_format, has_fast_bf16


@HOOKS.register_module()
class HeatmapPrior(Hook):
    """Let the heatmap of mmdet3d's CenterHead start at its prior, a probability of 0.1.

    mmengine's initialization does not reach the heads inside CenterHead's list, so `init_bias` is
    never applied and every cell starts at 0.5. A short training would mostly unlearn that.
    """

    def before_train(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        head = model.pts_bbox_head
        if not isinstance(head, CenterHead):
            raise TypeError(f"HeatmapPrior is for mmdet3d's CenterHead, not {type(head).__name__}")
        if runner.iter == 0 and not runner._resume:
            for task in head.task_heads:
                nn.init.constant_(task.heatmap[-1].bias, task.init_bias)


@HOOKS.register_module()
class CorrectSparseConvolutions(Hook):
    """Let mmdet3d's sparse convolutions learn on a CPU, with correct results.

    The pairs of voxels are spconv's, the products torch's, the weights the same. spconv's own sums
    are wrong on a CPU with more than one thread, and its backward pass needs CUDA.
    """

    def before_run(self, runner: Runner) -> None:
        if any(p.is_cuda for p in runner.model.parameters()):
            return
        for module in runner.model.modules():
            if isinstance(module, SparseConvolution):
                module.forward = same_in_torch(module).forward


@HOOKS.register_module()
class FastDensePart(Hook):
    """Run mmdet3d's dense part as ours, in the memory layout and dtype that the device is fast at.

    Losses and decoding stay in float32.
    """

    def before_run(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        device = next(model.parameters()).device
        fast = torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device))
        for part in (model.pts_backbone, model.pts_neck, model.pts_bbox_head):
            part.to(memory_format=fast_memory_format())
            part.forward = fast(part.forward)
        model.pts_bbox_head.register_forward_hook(_to_float)


def _to_float(module: nn.Module, args: tuple, out: HeadOutputs) -> HeadOutputs:
    return tuple([{name: value.float() for name, value in task.items()}] for (task,) in out)


def _use_centerpoint(config: Config, name: str, *hooks: str) -> None:
    """Replace our model by mmdet3d's, unchanged except for our score threshold of detections."""
    path = f'mmdet3d::centerpoint/centerpoint_{name}_second_secfpn_8xb4-cyclic-20e_nus-3d.py'
    model = get_config(path).model
    for part in (model.pts_bbox_head.bbox_coder, model.test_cfg.pts):
        part.score_threshold = config.model.head.score_threshold
    config.model = model
    added = [dict(type=hook) for hook in ('HeatmapPrior', 'FastDensePart', *hooks)]
    config.custom_hooks = [*config.custom_hooks, *added]


def centerpoint_voxel(config: Config) -> None:
    """CenterPoint with voxels of 0.1 m, range +-51.2 m, cells of 0.8 m and six tasks."""
    _use_centerpoint(config, 'voxel01', 'CorrectSparseConvolutions')


def centerpoint_pillar(config: Config) -> None:
    """CenterPoint with pillars of 0.2 m, range +-51.2 m, cells of 0.8 m and six tasks."""
    _use_centerpoint(config, 'pillar02')


def centerpoint_pillar_coarse(config: Config) -> None:
    """CenterPoint with pillars of 0.4 m, the size of our voxels, and half the stride.

    Range and cells are those of `centerpoint_pillar`.
    """
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
