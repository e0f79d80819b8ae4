"""Export a detector: trace it from points to boxes, compile it, and pack it into one file."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

import stratified3d
from stratified3d.deploy.package import KEY, host_instructions, processor_of, release
from stratified3d.deploy.program import COLUMNS, LARGEST, MAX_POINTS, DetectorProgram
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
    num_points: int | None = None,
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
        num_points: the largest number of points in range; with it and a capacity no shape depends
            on the data, on a GPU only. None for any, and shapes that do.
    Returns:
        What the file says about itself, see `build_program`.
    Raises:
        ValueError: settings that are none, or parts of the model that cannot be exported.
        OSError: the file cannot be written.
    Warns:
        UserWarning: the model has a memory of earlier frames, which the package leaves out.
    """
    out = Path(out)
    _check(out, bev_dtype, capacity, overflow, num_points)
    if bev_dtype == 'auto':
        bev_dtype = model.bev_dtype
    device = next(model.parameters()).device
    if num_points is not None and device.type == 'cpu':
        raise ValueError(
            'static shapes (num_points) cannot be compiled for a CPU: the program that torch 2.13 '
            'makes of them finds nothing; leave --points out, or export for a GPU'
        )
    use_bf16 = bev_dtype == 'bf16' or (bev_dtype == 'auto' and has_fast_bf16(device))
    dtype = torch.bfloat16 if use_bf16 else torch.float32
    program, info = build_program(model, dtype, capacity, overflow, num_points)
    if info['memory_frames']:
        warnings.warn(
            f'the memory of {info["memory_frames"]} earlier frames is left out: the package '
            'detects in every frame alone, as `detect` does',
            stacklevel=2,
        )
    compile_program(trace(program, num_points), out, info)
    return info


def _check(
    out: Path, bev_dtype: str, capacity: int | None, overflow: str, num_points: int | None
) -> None:
    if out.suffix != '.pt2':
        raise ValueError(f'{out}: the name of a package ends in .pt2')
    if bev_dtype not in ('fp32', 'bf16', 'auto'):
        raise ValueError(f"bev_dtype is 'fp32', 'bf16' or 'auto', not {bev_dtype!r}")
    if overflow not in OVERFLOWS:
        raise ValueError(f'overflow is one of {", ".join(OVERFLOWS)}, not {overflow!r}')
    if capacity is not None and capacity < 1:
        raise ValueError(f'capacity counts voxels and is at least 1, not {capacity}')
    if num_points is not None and num_points < 1:
        raise ValueError(f'num_points is at least 1, not {num_points}')
    if num_points is not None and capacity is None:
        raise ValueError(f'num_points={num_points} makes shapes static and needs a capacity')
    if not out.parent.is_dir():
        raise FileNotFoundError(f'there is no folder {out.parent}')
    if ' ' in torch.__path__[0]:
        raise ValueError(
            f'torch is installed in {torch.__path__[0]}, and its compiler cannot link libraries '
            'in a folder with a space in its name: export from an environment in another folder'
        )


def build_program(
    model: Any,
    bev_dtype: torch.dtype,
    capacity: int | None = None,
    overflow: str = 'error',
    num_points: int | None = None,
) -> tuple[DetectorProgram, dict[str, Any]]:
    """Return the program of a detector, and what its package says about itself in JSON's types.

    Args:
        model, capacity, overflow, num_points: see `export_detector`.
        bev_dtype: of the convolutions on the BEV feature map.
    """
    is_static = num_points is not None
    kept = capacity if is_static or overflow == 'drop' else None
    program = DetectorProgram(model, bev_dtype, kept, is_static)
    encoder = model.voxel_encoder
    device = next(model.parameters()).device.type
    info = dict(
        classes=list(model.class_names),
        point_cloud_range=list(encoder.point_cloud_range),
        voxel_size=list(encoder.voxel_size),
        sensor=asdict(model_sensor(model.cfg)),
        device=device,
        processor=processor_of(device),
        instructions=host_instructions(),
        memory_frames=model.memory_frames,
        bev_dtype=str(bev_dtype).removeprefix('torch.'),
        capacity=capacity,
        overflow=overflow,
        num_points=num_points,
        largest=LARGEST,
        versions=dict(torch=release(torch.__version__), stratified3d=stratified3d.__version__),
    )
    return program, info


def trace(program: DetectorProgram, num_points: int | None = None) -> ExportedProgram:
    """Trace a program for this number of points, or for any from 2 to `MAX_POINTS`."""
    device = next(program.head.parameters()).device
    points = torch.rand(num_points or 100, COLUMNS, device=device)
    rows = None if num_points is not None else {0: Dim('points', min=2, max=MAX_POINTS)}
    with torch.no_grad():
        return torch.export.export(program, (points,), dynamic_shapes=(rows,))


def compile_program(program: ExportedProgram, out: Path, info: dict[str, Any]) -> None:
    """Compile a traced program with AOTInductor and write it with what it says about itself."""
    settings: dict[str, Any] = {
        'aot_inductor.metadata': {KEY: json.dumps(info), **_as_text(info)},
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


def _as_text(info: dict[str, Any]) -> dict[str, str]:
    """The entries that a program in C++ needs, one line for each value, for it has no JSON."""
    names = ('classes', 'device', 'capacity', 'overflow', 'num_points')
    entries = {name: info[name] for name in names} | {'torch': info['versions']['torch']}
    return {
        f'{KEY}.{name}': '\n'.join(value) if isinstance(value, list) else str(value)
        for name, value in entries.items()
    }
