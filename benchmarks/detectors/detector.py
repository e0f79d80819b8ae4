"""A detector in one setting on a device, which finds synthetic objects instead of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmdet3d.models import Base3DDetector
from mmengine.structures import InstanceData
from spconv.pytorch.conv import SparseConvolution
from torch import Tensor, nn

from benchmarks.detectors.builders import ONE_THREAD, RULEBOOK, Entry
from benchmarks.detectors.convolutions import on_one_thread, same_in_torch
from benchmarks.detectors.synthetic import HeadOutputs, SyntheticObjects
from stratified3d.layers.attention import StratifiedAttention
from stratified3d.models import voxel_encoder
from stratified3d.models.heads.center import StratifiedCenterHead
from stratified3d.models.heads.peaks import Peaks, gather_at
from stratified3d.ops.voxelize import Voxels, voxelize


def calibrate(model: nn.Module, forward: Callable[[], Any]) -> None:
    """Let batch norms take the statistics of one forward pass.

    Activations of random weights then keep their size from layer to layer, as those of trained
    weights do.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the plain average, here of one pass
            module.train()
    forward()
    model.eval()


class Detector:
    """An entry's model in one setting on a device.

    The outputs of the head are computed and kept in `outputs`, then those of synthetic objects
    replace them: random weights find thousands of boxes or none, and the time of NMS would depend
    on that. Our head computes boxes at the peaks of its heatmaps only, so the synthetic heatmaps
    are inserted before; with settings of None it computes them everywhere.

    Args:
        entry: of this model.
        model: on the CPU; it is copied.
        settings: one of the entry's variants; None runs everything plainly, ours with the reference
            attention.
        objects: that the detector finds.
    """

    def __init__(
        self,
        entry: Entry,
        model: Base3DDetector,
        settings: dict[str, Any] | None,
        objects: SyntheticObjects,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.entry = entry
        self.settings = settings
        self.objects = objects
        self.device = device
        self.dtype = dtype
        self.outputs: dict[str, list[Tensor]] = {}
        self.voxels = 0  # of the last pass
        # called with the name of each part that has ended
        self.mark: Callable[[str], None] = lambda part: None

        self.model = copy.deepcopy(model)
        self._add_hooks()
        if not entry.ours:
            self.model.pts_bbox_head.register_forward_hook(self._replace_outputs)
        elif isinstance(self.model.head, StratifiedCenterHead):
            SyntheticPeaks(self, self.model.head, everywhere=settings is None)
        self._apply(settings)
        self.model.to(device)

    def _add_hooks(self) -> None:
        """Mark the end of each part, and count voxels."""
        model = self.model
        if self.entry.ours:
            encoder = model.encoder
            parts = {
                'voxel features': model.voxel_encoder,
                'encoder': encoder,
                'backbone, neck': model.backbone,
            }
        else:
            encoder = model.pts_middle_encoder
            parts = {
                'voxelize': model.data_preprocessor,
                'voxel features': model.pts_voxel_encoder,
                'encoder': encoder,
                'backbone, neck': model.pts_neck,
            }
        encoder.register_forward_pre_hook(self._count_voxels)
        for name, module in parts.items():
            module.register_forward_hook(partial(self._mark_end, name))

    def _mark_end(self, part: str, *_: Any) -> None:
        self.mark(part)

    def _count_voxels(self, module: nn.Module, args: tuple) -> None:
        self.voxels = len(args[1])  # coords

    def _apply(self, settings: dict[str, Any] | None) -> None:
        for module in self.model.modules():
            if settings is None and isinstance(module, StratifiedAttention):
                module.backend = 'reference'
            if not self.entry.ours and isinstance(module, SparseConvolution):
                convolution = RULEBOOK if settings is None else settings.get('convolution')
                if convolution == RULEBOOK:
                    module.forward = same_in_torch(module).forward
                elif convolution == ONE_THREAD:
                    module.forward = on_one_thread(module.forward)
        if settings and settings.get('layout') == 'channels-last':
            for part in (self.model.pts_backbone, self.model.pts_neck, self.model.pts_bbox_head):
                part.to(memory_format=torch.channels_last)

    def allow_any_order(self) -> None:
        """Let voxels come in any order from now on if the settings say so.

        Results are not repeatable then.
        """
        if self.settings and self.settings.get('voxels') == 'unordered':
            self.model.data_preprocessor.voxel_layer.deterministic = False

    def _replace_outputs(self, module: nn.Module, args: tuple, out: HeadOutputs) -> HeadOutputs:
        self.outputs = dict(heatmaps=[], boxes=[])
        for (task,) in out:
            for name, value in task.items():
                self.outputs['heatmaps' if name == 'heatmap' else 'boxes'].append(value)
        replaced = self.objects.outputs(out, self.entry.cell, self.entry.origin)
        self.mark('head')
        return replaced

    def _voxelize(self, *args: Any) -> Voxels:
        voxels = voxelize(*args)
        self.mark('voxelize')
        return voxels

    @property
    def cells(self) -> tuple[int, ...]:
        """(y, x) of the head's feature map in the last pass."""
        return tuple(self.outputs['heatmaps'][0].shape[2:])

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @torch.no_grad()
    def detect(self, points: Tensor) -> InstanceData:
        """points [P, 5] on the device -> boxes of the synthetic objects."""
        batch = dict(inputs=dict(points=[points]), data_samples=[self.objects.sample()])
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with _marked_voxelize(self._voxelize), autocast:
            data = self.model.data_preprocessor(batch, False)
            return self.model(**data, mode='predict')[0].pred_instances_3d


def _by_place(peaks: Peaks, encoding: Tensor) -> Tensor:
    """Box encodings in the order of their cells; devices order peaks of one score differently."""
    room = 1 << 12  # cells in a row, rows and classes are fewer
    key = ((peaks.sample * room + peaks.label) * room + peaks.y) * room + peaks.x
    return encoding[key.argsort()]


class SyntheticPeaks:
    """Let our head find synthetic objects.

    Every heatmap is replaced as soon as it is computed, so that the head takes its boxes from the
    peaks of the synthetic ones; then these boxes are replaced.

    Args:
        detector: whose outputs are kept.
        head: of its model; its `predict_at_peaks` is replaced.
        everywhere: compute boxes in all cells.
    """

    def __init__(self, detector: Detector, head: StratifiedCenterHead, everywhere: bool):
        self.detector = detector
        self.head = head
        self.heatmaps: list[Tensor] = []
        self.predict = self._predict_everywhere if everywhere else head.predict_at_peaks
        for t, task_head in enumerate(head.task_heads):
            task_head.heatmap.register_forward_hook(partial(self._replace_heatmap, t))
        head.predict_at_peaks = self.predict_at_peaks  # type: ignore[method-assign]

    def predict_at_peaks(self, feature_maps: Sequence[Tensor]) -> list[tuple[Peaks, Tensor]]:
        """What the head's own method returns, with the boxes of the synthetic objects."""
        self.heatmaps.clear()
        results = self.predict(feature_maps)
        self.detector.mark('head')
        self.detector.outputs = dict(
            heatmaps=list(self.heatmaps), boxes=[_by_place(*result) for result in results]
        )
        replaced = []
        for (peaks, _), (task,) in zip(results, self._synthetic_outputs(self.heatmaps[0])):
            everywhere = torch.cat([task[name] for name in self.head.branches], 1)
            replaced.append((peaks, gather_at(everywhere, peaks)))
        return replaced

    def _predict_everywhere(self, feature_maps: Sequence[Tensor]) -> list[tuple[Peaks, Tensor]]:
        return self.head.gather_at_peaks(self.head(feature_maps))

    def _replace_heatmap(self, task: int, module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        self.heatmaps.append(out)
        return self._synthetic_outputs(out)[task][0]['heatmap']

    def _synthetic_outputs(self, logits: Tensor) -> HeadOutputs:
        one = logits.new_empty(1, 1, 1, 1)  # only shapes are needed
        shapes = []
        for task_head in self.head.task_heads:
            task = {}
            for name in ('heatmap', *self.head.branches):
                channels = getattr(task_head, name)[-1].out_channels
                task[name] = one.expand(1, channels, *logits.shape[2:])
            shapes.append([task])
        entry = self.detector.entry
        return self.detector.objects.outputs(tuple(shapes), entry.cell, entry.origin)


@contextmanager
def _marked_voxelize(function: Callable[..., Voxels]) -> Iterator[None]:
    """Let our voxel encoder call this function, because it voxelizes inside its forward pass."""
    voxel_encoder.voxelize = function
    try:
        yield
    finally:
        voxel_encoder.voxelize = voxelize
