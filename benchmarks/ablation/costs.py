"""What a detector costs: operations of its dense part, time per frame of a stream."""

from __future__ import annotations

from statistics import median

import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.detectors.streaming import StreamRunner, simulate_stream, stack_sweeps
from stratified3d.models.detector import StratifiedCenterPoint


def bev_gflop(config: Config, frames: int = 2) -> float | None:
    """GFLOP of backbone and head, forward; the backward pass needs twice that.

    Convolutions alone are counted, two operations per multiply-add, without computing anything.

    Args:
        config: of a detector; other detectors than ours give None.
        frames: in the batch.
    """
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        model = MODELS.build(config.model)
    if not isinstance(model, StratifiedCenterPoint):
        return None
    _, height, width = model.encoder.out_shape
    shape = (frames, model.encoder.out_channels, height, width)
    backbone = model.backbone.to('meta')  # type: ignore[attr-defined]
    head = model.head.to('meta')  # type: ignore[attr-defined]
    with FlopCounterMode(display=False) as counter:
        head(backbone(torch.empty(shape, device='meta')))
    return counter.get_total_flops() / 1e9


def stream_ms(config: Config, frames: int = 5) -> float | None:
    """Median milliseconds per frame of a simulated stream, on the CPU; random weights.

    The detector sees what its test pipeline loads: stacked sweeps, or one sweep with a memory, in
    which every frame is encoded once.

    Args:
        config: of a detector; other detectors than ours give None.
        frames: that are timed, after as many as the stack or the memory takes.
    """
    if config.model.type != 'StratifiedCenterPoint':
        return None
    pipeline = config.test_dataloader.dataset.pipeline
    load = next(t for t in pipeline if t.type == 'LoadAlignedSweeps')
    runner = StreamRunner(config, torch.device('cpu'))
    earlier = load.sweeps_num
    stacked = 0 if runner.model.memory_frames else earlier
    stream = simulate_stream(frames + earlier + 1, load.get('every', 1))
    times = []
    for i in range(len(stream)):
        seen = stack_sweeps(stream[max(i - stacked, 0) : i + 1])
        times.append(runner.time(seen))
    return median(times[earlier + 1 :])
