"""The detectors of `benchmark.py model`: ours and mmdet3d's CenterPoint, as configured and at our
map's stride."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import mmdet3d
import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from spconv.pytorch.conv import SparseConvolution
from torch import Tensor, nn

from benchmarks.detectors.synthetic import SyntheticObjects
from stratified3d.apis import init_detector
from stratified3d.layers.attention import StratifiedAttention
from stratified3d.layers.sparse_conv import SparseConv
from stratified3d.models import voxel_encoder
from stratified3d.models.heads.center import StratifiedCenterHead
from stratified3d.models.heads.center_peaks import Peaks, gather_at
from stratified3d.ops.voxelize import Voxels, voxelize

OURS = Path(__file__).parents[2] / 'configs/stratified'
THEIRS = Path(mmdet3d.__file__).parent / '.mim/configs/centerpoint'
PILLAR, VOXEL = 'CenterPoint pillar 0.2', 'CenterPoint voxel 0.1'
# of the maps; mmdet3d has the first
LAYOUTS = ('contiguous', 'channels-last')
# of sparse convolutions on a CPU; spconv's sums are wrong there with more than one thread, so the
# first is refused
SPCONV, ONE_THREAD, RULEBOOK = 'spconv', 'spconv on one thread', "spconv's pairs, torch's products"


class Entry(NamedTuple):
    """A detector of the table. config: of its model; cell: meters of a cell of the head's map;
    origin: meters of the map's corner; ours: whose it is; sparse: whether it has sparse
    convolutions of mmdet3d."""

    name: str
    config: Config
    cell: float
    origin: float
    ours: bool
    sparse: bool = False

    def build(self) -> nn.Module:
        """The model on the CPU with random weights, always the same, in evaluation mode."""
        torch.manual_seed(0)
        if self.ours:
            return init_detector(self.config, device='cpu')
        before = logging.root.manager.disable
        logging.disable(logging.INFO)  # mmengine would list every parameter
        try:
            with DefaultScope.overwrite_default_scope('mmdet3d'):
                model = MODELS.build(self.config.model)
            model.init_weights()
        finally:
            logging.disable(before)
        return model.eval()

    def settings(self, device: torch.device) -> list[dict[str, Any]]:
        """Ways to run the same model on this device; the first is its authors'."""
        if self.ours:
            return [{}]
        more: list[dict[str, Any]] = [{}]
        if device.type == 'cuda':  # mmdet3d calls the second one considerably faster
            more = [dict(voxels='ordered'), dict(voxels='unordered')]
        elif self.sparse:
            more = [dict(convolution=ONE_THREAD), dict(convolution=RULEBOOK)]
        found = [dict(layout=layout, **m) for layout in LAYOUTS for m in more]
        return (
            [dict(found[0], convolution=SPCONV), *found]
            if device.type == 'cpu' and self.sparse
            else found
        )


def entries(reach: float | None = None) -> list[Entry]:
    """Everyone, or everyone with its range cut to +-reach meters, which 2.4 divides."""
    found = []
    for name, leaf in (('stratified pillar 0.3', 'pillar03'), ('stratified voxel 0.3', 'voxel03')):
        config = Config.fromfile(OURS / f'stratified-centerpoint_{leaf}_8xb4-cyclic-20e_nus-3d.py')
        model = config.model
        if reach:
            model.point_cloud_range = _cut(model.point_cloud_range, reach)
        found.append(
            Entry(
                name,
                config,
                model.voxel_size[0] * model.backbone.strides[0],
                model.point_cloud_range[0],
                True,
            )
        )
    full = found[0].config.model.point_cloud_range
    for name, leaf, limits, stride in (
        (PILLAR, 'pillar02_second', None, None),
        # the first stage takes every third pillar, all else follows: our cells of 0.6 m, our range
        (f'{PILLAR}, map of 0.6 m', 'pillar02_second', full, 3),
        (VOXEL, 'voxel01_second', None, None),
        # mmdet3d's own, with our cells of 0.6 m and our range
        ('CenterPoint voxel 0.075', 'voxel0075_second', None, None),
    ):
        config = Config.fromfile(THEIRS / f'centerpoint_{leaf}_secfpn_8xb4-cyclic-20e_nus-3d.py')
        voxel_layer = config.model.data_preprocessor.voxel_layer
        limits = limits or voxel_layer.point_cloud_range
        _set_range(config.model, _cut(limits, reach) if reach else limits)
        if stride:
            config.model.pts_backbone.layer_strides = [stride, 2, 2]
            config.model.pts_neck.upsample_strides = [1, 2, 4]
            config.model.pts_bbox_head.bbox_coder.out_size_factor = (
                config.model.test_cfg.pts.out_size_factor
            ) = stride
        coder = config.model.pts_bbox_head.bbox_coder
        found.append(
            Entry(
                name,
                config,
                coder.voxel_size[0] * coder.out_size_factor,
                coder.pc_range[0],
                False,
                'voxel' in leaf,
            )
        )
    return found


def _cut(limits: list[float], reach: float) -> list[float]:
    return [-reach, -reach, limits[2], reach, reach, limits[5]]


def _set_range(model: Config, limits: list[float]) -> None:
    """Everywhere that a CenterPoint of mmdet3d is told its range or its grid."""
    voxel_layer = model.data_preprocessor.voxel_layer
    voxel_layer.point_cloud_range = list(limits)
    x, y = (round((limits[i + 3] - limits[i]) / voxel_layer.voxel_size[i]) for i in range(2))
    if 'sparse_shape' in model.pts_middle_encoder:
        model.pts_middle_encoder.sparse_shape = [model.pts_middle_encoder.sparse_shape[0], y, x]
    else:
        model.pts_middle_encoder.output_shape = (y, x)
        model.pts_voxel_encoder.point_cloud_range = list(limits)
    model.pts_bbox_head.bbox_coder.pc_range = model.test_cfg.pts.pc_range = list(limits[:2])


def calibrate(model: nn.Module, forward: Callable[[], Any]) -> None:
    """Batch norms take the statistics of what forward() shows them: random weights then neither
    swell nor fade from layer to layer, as trained ones do not."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average, here of one pass
        norm.train()
    forward()
    model.eval()


class Detector:
    """An entry's model in one setting on a device.

    What the head makes is computed and kept in `made`, and the maps of planted objects go on in
    their place: random weights find thousands of boxes or none, and suppression would take as long
    as it happens to. Our head computes boxes at the peaks of its heatmaps alone, so the planted
    heatmaps are put in before; with settings of None it computes them everywhere.

    Args:
        entry: whose model it is.
        model: of the entry, on the CPU; it is copied.
        settings: one of the entry's; None runs everything plainly, ours with the reference
        attention.
        planted: what is found.
        mark: called with the name of each part that has ended.
    """

    def __init__(
        self,
        entry: Entry,
        model: nn.Module,
        settings: dict[str, Any] | None,
        planted: SyntheticObjects,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.entry, self.settings, self.device, self.dtype = entry, settings, device, dtype
        self.mark: Callable[[str], None] = lambda part: None
        self.model = model = copy.deepcopy(model)
        self.planted, self.made, self.voxels = planted, {}, 0
        if entry.ours:
            ends = {
                'voxel features': model.voxel_encoder,
                'encoder': model.encoder,
                'backbone, neck': model.backbone,
            }
            if isinstance(model.head, StratifiedCenterHead):
                self._plant_peaks(model.head, everywhere=settings is None)
        else:
            ends = {
                'voxelize': model.data_preprocessor,
                'voxel features': model.pts_voxel_encoder,
                'encoder': model.pts_middle_encoder,
                'backbone, neck': model.pts_neck,
                'head': model.pts_bbox_head,
            }
            ends['head'].register_forward_hook(self._plant)
        ends['encoder'].register_forward_pre_hook(self._count_voxels)
        for part, module in ends.items():
            module.register_forward_hook(lambda *_, part=part: self.mark(part))
        self._apply(settings)
        model.to(device)

    def _apply(self, settings: dict[str, Any] | None) -> None:
        for module in self.model.modules():
            if settings is None and isinstance(module, StratifiedAttention):
                module.backend = 'reference'
            if not self.entry.ours and isinstance(module, SparseConvolution):
                way = RULEBOOK if settings is None else settings.get('convolution')
                if way == RULEBOOK:
                    module.forward = same_in_torch(module).forward
                elif way == ONE_THREAD:
                    module.forward = _on_one_thread(module.forward)
        if settings and settings.get('layout') == 'channels-last':
            for part in (self.model.pts_backbone, self.model.pts_neck, self.model.pts_bbox_head):
                part.to(memory_format=torch.channels_last)

    def hurry(self) -> None:
        """Voxels may come in any order from now on, where the settings say so; results are not
        repeatable then."""
        if self.settings and self.settings.get('voxels') == 'unordered':
            self.model.data_preprocessor.voxel_layer.deterministic = False

    def _count_voxels(self, module: nn.Module, args: tuple) -> None:
        self.voxels = len(args[1])  # coords

    def _plant(self, module: nn.Module, args: tuple, out: tuple[list[dict[str, Tensor]]]) -> tuple:
        self.made = dict(
            heatmaps=[task['heatmap'] for (task,) in out],
            boxes=[value for (task,) in out for name, value in task.items() if name != 'heatmap'],
        )
        return self.planted.maps(out, self.entry.cell, self.entry.origin)

    def _plant_peaks(self, head: StratifiedCenterHead, everywhere: bool) -> None:
        """The same for our head, which takes its boxes from where the planted heatmaps have their
        peaks."""
        heat, look_up = [], head.look_up
        find = (lambda maps: look_up(head(maps))) if everywhere else head.find

        def planted(logits: Tensor) -> tuple[list[dict[str, Tensor]]]:
            one = logits.new_empty(1, 1, 1, 1)  # shapes are all that is asked for
            return self.planted.maps(
                tuple(
                    [
                        {
                            name: one.expand(
                                1, getattr(task, name)[-1].out_channels, *logits.shape[2:]
                            )
                            for name in ('heatmap', *head.outputs)
                        }
                    ]
                    for task in head.task_heads
                ),
                self.entry.cell,
                self.entry.origin,
            )

        def plant(t: int, logits: Tensor) -> Tensor:
            heat.append(logits)
            return planted(logits)[t][0]['heatmap']

        def find_planted(maps: Sequence[Tensor]) -> list[tuple[Peaks, Tensor]]:
            heat.clear()
            found = find(maps)
            self.mark('head')
            self.made = dict(heatmaps=list(heat), boxes=[code for _, code in found])
            return [
                (peaks, gather_at(torch.cat([task[name] for name in head.outputs], 1), peaks))
                for (peaks, _), (task,) in zip(found, planted(heat[0]))
            ]

        for t, task in enumerate(head.task_heads):
            task.heatmap.register_forward_hook(lambda module, args, out, t=t: plant(t, out))
        head.find = find_planted

    def _voxelize(self, *args: Any) -> Voxels:
        voxels = voxelize(*args)
        self.mark('voxelize')
        return voxels

    @property
    def cells(self) -> tuple[int, int]:
        """(y, x) of the head's map, of the last pass."""
        return tuple(self.made['heatmaps'][0].shape[2:])

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @torch.no_grad()
    def detect(self, points: Tensor) -> InstanceData:
        """points [P, 5] on the device -> boxes, which are those planted."""
        sample = self.planted.sample()
        # ours voxelizes inside its voxel encoder
        with (
            mock.patch.object(voxel_encoder, 'voxelize', self._voxelize),
            torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32),
        ):
            data = self.model.data_preprocessor(
                dict(inputs=dict(points=[points]), data_samples=[sample]), False
            )
            return self.model(**data, mode='predict')[0].pred_instances_3d


def same_in_torch(conv: SparseConvolution) -> SparseConv:
    """The same convolution with the same weights, right with any number of threads."""
    same = SparseConv(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        kind='submanifold' if conv.subm else 'strided',
        key=conv.indice_key,
        bias=conv.bias is not None,
    )
    same.conv.weight, same.conv.bias = conv.weight, conv.bias
    return same


def _on_one_thread(forward: Callable) -> Callable:
    def run(*args: Any) -> Any:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return forward(*args)
        finally:
            torch.set_num_threads(threads)

    return run
