"""Export a detector: trace it from points to boxes, compile it, and pack it into one file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

import stratified3d
from stratified3d.deploy.package import KEY, release
from stratified3d.deploy.program import LARGEST, MAX_POINTS, DetectorProgram
from stratified3d.models.bev_format import has_fast_bf16
from stratified3d.sensors import model_sensor

OVERFLOWS = ('error', 'drop')


def export_detector(
    model: Any,
    out: str | Path,
    *,
    bev_dtype: str = 'auto',
    capacity: int | None = None,
    overflow: str = 'error',
) -> dict[str, Any]:
    """Write a detector as one file that `deploy.load` runs.

    It is compiled for the device of the model and, on a CPU, for the instructions of this one.

    Args:
        model: of `init_detector`.
        out: the .pt2 file.
        bev_dtype: of the convolutions on the BEV feature map, 'fp32', 'bf16' or 'auto': bf16 where
            the model's config allows it and this machine is faster with it.
        capacity: the largest number of voxels; None for any.
        overflow: what happens to a frame with more voxels: 'error', or 'drop' the farthest.
    Returns:
        What the file says about itself, see `describe`.
    Raises:
        ValueError: settings that are none, or parts of the model that cannot be exported.
        OSError: the file cannot be written.
    """
    out = Path(out)
    _check(out, bev_dtype, capacity, overflow)
    if bev_dtype == 'auto':
        bev_dtype = model.bev_dtype
    device = next(model.parameters()).device
    use_bf16 = bev_dtype == 'bf16' or (bev_dtype == 'auto' and has_fast_bf16(device))
    dtype = torch.bfloat16 if use_bf16 else torch.float32
    info = describe(model, dtype, capacity, overflow)
    program = DetectorProgram(model, dtype, capacity if overflow == 'drop' else None)
    compile_program(trace(program), out, info)
    return info


def _check(out: Path, bev_dtype: str, capacity: int | None, overflow: str) -> None:
    if out.suffix != '.pt2':
        raise ValueError(f'{out}: the name of a package ends in .pt2')
    if bev_dtype not in ('fp32', 'bf16', 'auto'):
        raise ValueError(f"bev_dtype is 'fp32', 'bf16' or 'auto', not {bev_dtype!r}")
    if overflow not in OVERFLOWS:
        raise ValueError(f'overflow is one of {", ".join(OVERFLOWS)}, not {overflow!r}')
    if capacity is not None and capacity < 1:
        raise ValueError(f'capacity counts voxels and is at least 1, not {capacity}')
    if not out.parent.is_dir():
        raise FileNotFoundError(f'there is no folder {out.parent}')


def describe(
    model: Any, bev_dtype: torch.dtype, capacity: int | None, overflow: str
) -> dict[str, Any]:
    """Return what a package says about itself, in JSON's types."""
    encoder = model.voxel_encoder
    return dict(
        classes=list(model.class_names),
        point_cloud_range=list(encoder.point_cloud_range),
        voxel_size=list(encoder.voxel_size),
        sensor=asdict(model_sensor(model.cfg)),
        device=next(model.parameters()).device.type,
        bev_dtype=str(bev_dtype).removeprefix('torch.'),
        capacity=capacity,
        overflow=overflow,
        largest=LARGEST,
        versions=dict(torch=release(torch.__version__), stratified3d=stratified3d.__version__),
    )


def trace(program: DetectorProgram) -> ExportedProgram:
    """Trace a program for any number of points from 2 to `MAX_POINTS`."""
    device = next(program.head.parameters()).device
    points = torch.rand(100, program.voxel_encoder.in_channels, device=device)
    rows = Dim('points', min=2, max=MAX_POINTS)
    with torch.no_grad():
        return torch.export.export(program, (points,), dynamic_shapes=({0: rows},))


def compile_program(program: ExportedProgram, out: Path, info: dict[str, Any]) -> None:
    """Compile a traced program with AOTInductor and write it with what it says about itself."""
    settings: dict[str, Any] = {
        'aot_inductor.metadata': {KEY: json.dumps(info)},
        # as many as the process that runs it has, not as the one that compiles it
        'cpp.dynamic_threads': True,
    }
    partial = out.with_name(f'.{out.stem}.partial.pt2')
    try:
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(partial), inductor_configs=settings
        )
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
