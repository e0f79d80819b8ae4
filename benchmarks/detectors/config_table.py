"""`benchmark.py configs`: what each of our configs costs: parameters, operations, time, memory of
training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.detectors.builders import OURS, Detector, Entry, calibrate
from benchmarks.detectors.synthetic import SyntheticObjects
from benchmarks.measure import peak_memory, timed
from benchmarks.point_clouds import BenchmarkFrame
from benchmarks.report import number, table
from stratified3d.apis import init_detector
from stratified3d.layers.attention import StratifiedAttention
from stratified3d.models.heads.center import StratifiedCenterHead

REACH, OBJECTS = 51.2, 240


def list_configs() -> dict[str, Path]:
    """{name without what all have in common: config} of the config_table."""
    return {
        path.name.split('_8xb')[0].split('_1xb')[0].removeprefix('stratified-'): path
        for path in sorted(OURS.glob('*.py'))
    }


def run(
    frames: Sequence[BenchmarkFrame],
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    only: Sequence[str],
    quick: bool,
) -> dict[str, Any]:
    """Every config on the last frame, ten simulated sweeps.

    Raises:
        ValueError: a name in `only` that is none, no runs, planted objects that are not found.
    """
    found = list_configs()
    if unknown := [name for name in only if name not in found]:
        raise ValueError(f'there is no config {unknown[0]!r}; there are {", ".join(found)}')
    if runs < 1:
        raise ValueError(f'--runs is 1 or more, not {runs}')
    names = list(only or found)[: 1 if quick else None]
    rows = [
        dict(name=name, **measure(found[name], frames[-1].points, device, dtype, runs))
        for name in tqdm(names, desc='configs')
    ]
    return dict(frame=frames[-1].name, points=len(frames[-1].points), rounds=runs, rows=rows)


def measure(
    path: Path, points: Tensor, device: torch.device, dtype: torch.dtype, runs: int
) -> dict[str, Any]:
    """One config with random weights, norms calibrated on the frame: parameters, GFLOP and
    milliseconds of a detection, and of a training step of one frame milliseconds and MiB on top of
    the weights."""
    config = Config.fromfile(path)
    trained = init_detector(config, device=device).train()
    tasks = config.model.head.tasks
    planted = SyntheticObjects(REACH, tuple(map(len, tasks)), OBJECTS // len(tasks))
    entry = Entry(path.stem, config, trained.head.cell[0], config.model.point_cloud_range[0], True)
    detector = Detector(entry, entry.build(), {}, planted, device, dtype)
    points = points[:, : trained.voxel_encoder.in_channels].to(device)
    calibrate(detector.model, lambda: detector.detect(points))
    seen, columns = detector.detect(points), len(trained.head.code_weights) - 1
    if isinstance(trained.head, StratifiedCenterHead) and (missed := planted.missed(seen, columns)):
        raise ValueError(f'{path.name}: wrong, so not timed: {missed}')
    found = dict(
        parameters=detector.parameters,
        gflop=count_flops(detector, points),
        detect_ms=timed(lambda: detector.detect(points), device, runs),
    )
    truth = _truth(planted, trained, device)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            losses = trained.loss(dict(points=[points]), [truth])
        sum(losses.values()).backward()
        trained.zero_grad()

    return found | dict(step_ms=timed(step, device, runs), step_mib=peak_memory(step, device))


def count_flops(detector: Detector, points: Tensor) -> float:
    """GFLOP of a detection: products as torch counts them, of the windows' own pairs without a
    backend's padding."""
    mixers = [m for m in detector.model.modules() if isinstance(m, StratifiedAttention)]
    backends = [mixer.backend for mixer in mixers]
    for mixer in mixers:
        mixer.backend = 'reference'
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused operators that the counter does not know
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        detector.detect(points)
    torch.backends.mha.set_fastpath_enabled(fast)
    for mixer, backend in zip(mixers, backends):
        mixer.backend = backend
    return counter.get_total_flops() / 1e9


def _truth(planted: SyntheticObjects, model: nn.Module, device: torch.device) -> Det3DDataSample:
    boxes, labels = planted.truth()
    boxes = boxes[:, : len(model.head.code_weights) - 1].to(device)
    return Det3DDataSample(
        gt_instances_3d=InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[1]),
            labels_3d=labels.to(device),
        )
    )


def render(result: dict[str, Any]) -> str:
    """One table."""
    head = ['config', 'parameters', 'GFLOP', 'detect, ms', 'training step, ms', 'its memory, MiB']
    rows = [
        [
            row['name'],
            f'{row["parameters"]:,}',
            number(row['gflop']),
            number(row['detect_ms'].median),
            number(row['step_ms'].median),
            number(row['step_mib']),
        ]
        for row in result['rows']
    ]
    return (
        f'{result["frame"]}: {result["points"]:,} points, one frame at a time; median of {result["rounds"]} runs. '
        'GFLOP: products and convolutions of a detection, two operations a multiply-add; memory: what a step '
        f'holds at most on top of the weights.\n\n{table([head, *rows])}'
    )
