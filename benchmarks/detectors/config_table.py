"""`benchmark.py configs`: parameters, operations, time and memory of training of each config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet3d.models import Base3DDetector
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.detectors.builders import OURS, Entry
from benchmarks.detectors.detector import Detector, calibrate
from benchmarks.detectors.synthetic import SyntheticObjects
from benchmarks.measure import peak_memory, timed
from benchmarks.point_clouds import BenchmarkFrame
from benchmarks.report import number, table
from stratified3d.apis import init_detector
from stratified3d.layers.attention import StratifiedAttention
from stratified3d.models.heads.center import StratifiedCenterHead

REACH = 51.2  # meters within which the objects lie
OBJECTS = 240  # of all tasks together


def list_configs() -> dict[str, Path]:
    """Path of every config by its name, without the parts that all names have in common."""
    configs = {}
    for path in sorted(OURS.glob('*.py')):
        name = path.name.split('_8xb')[0].split('_1xb')[0]
        configs[name.removeprefix('stratified-')] = path
    return configs


def run(
    frames: Sequence[BenchmarkFrame],
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    only: Sequence[str],
    quick: bool,
) -> dict[str, Any]:
    """Measure every config on the last frame, ten simulated sweeps.

    Raises:
        ValueError: an unknown name in `only`, no runs, synthetic objects that are not found.
    """
    configs = list_configs()
    for name in only:
        if name not in configs:
            raise ValueError(f'there is no config {name!r}; there are {", ".join(configs)}')
    if runs < 1:
        raise ValueError(f'--runs must be at least 1, not {runs}')
    names = list(only or configs)
    frame = frames[-1]
    rows = []
    for name in tqdm(names[:1] if quick else names, desc='configs'):
        costs = measure(configs[name], frame.points, device, dtype, runs)
        rows.append(dict(name=name, **costs))
    return dict(frame=frame.name, points=len(frame.points), rounds=runs, rows=rows)


def measure(
    path: Path, points: Tensor, device: torch.device, dtype: torch.dtype, runs: int
) -> dict[str, Any]:
    """Costs of one config with random weights, norms calibrated on the frame.

    Returns:
        parameters; gflop and detect_ms of a detection; step_ms and step_mib of a training step of
        one frame, memory on top of the weights.
    """
    config = Config.fromfile(path)
    trained: Base3DDetector = init_detector(config, device=device).train()
    head = trained.head
    tasks = config.model.head.tasks
    objects = SyntheticObjects(REACH, tuple(map(len, tasks)), OBJECTS // len(tasks))
    entry = Entry(
        path.stem,
        config,
        cell=head.cell_size[0],
        origin=config.model.point_cloud_range[0],
        ours=True,
    )

    detector = Detector(entry, entry.build(), {}, objects, device, dtype)
    points = points[:, : trained.voxel_encoder.in_channels].to(device)
    calibrate(detector.model, lambda: detector.detect(points))
    detections = detector.detect(points)
    columns = len(head.code_weights) - 1
    is_center_head = isinstance(head, StratifiedCenterHead)
    wrong = objects.check(detections, columns) if is_center_head else None
    if wrong:
        raise ValueError(f'{path.name}: wrong, so not timed: {wrong}')
    # products are counted on a CPU: torch does not see those in spconv's CUDA kernels
    counted = Detector(entry, entry.build(), {}, objects, torch.device('cpu'), torch.float32)
    costs = dict(
        parameters=detector.parameters,
        gflop=count_flops(counted, points.cpu()),
        detect_ms=timed(lambda: detector.detect(points), device, runs),
    )

    sample = _training_sample(objects, columns, device)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            losses = trained.loss(dict(points=[points]), [sample])
        sum(losses.values()).backward()
        trained.zero_grad()

    step_ms = timed(step, device, runs)
    return dict(costs, step_ms=step_ms, step_mib=peak_memory(step, device))


def count_flops(detector: Detector, points: Tensor) -> float:
    """GFLOP of a detection as torch counts products, without the padding of a backend's windows."""
    mixers = [m for m in detector.model.modules() if isinstance(m, StratifiedAttention)]
    backends = [mixer.backend for mixer in mixers]
    for mixer in mixers:
        mixer.backend = 'reference'
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused operators that the counter does not know

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        detector.detect(points)

    torch.backends.mha.set_fastpath_enabled(fast_path)
    for mixer, backend in zip(mixers, backends):
        mixer.backend = backend
    return counter.get_total_flops() / 1e9


def _training_sample(
    objects: SyntheticObjects, columns: int, device: torch.device
) -> Det3DDataSample:
    boxes, labels = objects.ground_truth()
    boxes = boxes[:, :columns].to(device)
    instances = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=columns), labels_3d=labels.to(device)
    )
    return Det3DDataSample(gt_instances_3d=instances)


def render(result: dict[str, Any]) -> str:
    """One table."""
    lines = [
        ['config', 'parameters', 'GFLOP', 'detect, ms', 'training step, ms', 'its memory, MiB']
    ]
    for row in result['rows']:
        lines.append(
            [
                row['name'],
                f'{row["parameters"]:,}',
                number(row['gflop']),
                number(row['detect_ms'].median),
                number(row['step_ms'].median),
                number(row['step_mib']),
            ]
        )
    return (
        f'{result["frame"]}: {result["points"]:,} points, one frame at a time; median of '
        f'{result["rounds"]} runs. GFLOP: products and convolutions of a detection, two operations '
        'per multiply-add; memory: the peak of a step on top of the weights.\n\n'
        f'{table(lines)}'
    )
