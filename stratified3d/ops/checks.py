"""Checks of the ops' arguments: each function raises ValueError or returns nothing.

Shapes, dtypes, devices and strides are always checked. Values are checked on the CPU, and on a GPU
only under STRATIFIED3D_CHECK=1, because reading them waits for the device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from stratified3d.ops.windows import WindowPlan

# bits of a window's index along an axis whose size is unknown
UNKNOWN_AXIS_BITS = 16
# largest distance of range / voxel_size from a whole number
_WHOLE = 1e-3


def checks_values(tensor: Tensor) -> bool:
    """Whether values of a tensor may be inspected.

    Always on the CPU, on a GPU only under STRATIFIED3D_CHECK=1, never while a graph is traced,
    which has no values.
    """
    if torch.compiler.is_compiling():
        return False
    return not tensor.is_cuda or os.environ.get('STRATIFIED3D_CHECK') == '1'


def check_grid(voxel_size: Sequence[float], point_cloud_range: Sequence[float]) -> None:
    """The range must be a positive multiple of the voxel size along every axis."""
    if len(voxel_size) != 3 or len(point_cloud_range) != 6:
        raise ValueError(
            f'voxel_size has 3 numbers and point_cloud_range 6, not {list(voxel_size)} and '
            f'{list(point_cloud_range)}'
        )
    bounds = zip(point_cloud_range[:3], point_cloud_range[3:])
    for axis, size, (lo, hi) in zip('xyz', voxel_size, bounds):
        _check_axis(axis, size, lo, hi)


def _check_axis(axis: str, size: float, lo: float, hi: float) -> None:
    """One axis of a grid: a voxel's size and the range, in meters."""
    if not size > 0 or not hi > lo:
        raise ValueError(
            f'{axis}: voxel size {size} m must be positive and the range {lo} to {hi} m not empty'
        )
    count = round((hi - lo) / size)
    if abs((hi - lo) / size - count) > _WHOLE:
        fitting = round(lo + max(count, 1) * size, 6)
        raise ValueError(
            f'{axis}: the range {lo} to {hi} m is not a multiple of the voxel size {size} m; '
            f'{lo} to {fitting} m would be'
        )


def check_points(points: Tensor, sample: Tensor) -> None:
    """Points [P, C >= 3] and the sample [P] of each."""
    if points.dim() != 2 or points.shape[1] < 3 or sample.shape != points.shape[:1]:
        raise ValueError(
            f'points are [P, C >= 3] and sample [P], not {tuple(points.shape)} and '
            f'{tuple(sample.shape)}'
        )


def check_windows(
    coords: Tensor,
    window_shape: Sequence[int],
    shift: Sequence[int],
    batch_size: int,
    spatial_shape: Sequence[int] | None,
) -> None:
    """Arguments of `plan_windows`; coordinates only where values are checked."""
    if coords.dim() != 2 or coords.shape[1] != 4 or coords.dtype != torch.int32:
        raise ValueError(
            f'coords are [N, 4] int32 (batch, z, y, x), not {tuple(coords.shape)} {coords.dtype}'
        )
    has_three = len(window_shape) == len(shift) == 3
    if not has_three or not all(0 <= s < w for s, w in zip(shift, window_shape)):
        raise ValueError(
            f'window_shape {tuple(window_shape)} must be positive (z, y, x) and shift '
            f'{tuple(shift)} within 0 <= shift < window_shape'
        )
    if spatial_shape is not None and len(spatial_shape) != 3:
        raise ValueError(f'spatial_shape is (z, y, x), not {tuple(spatial_shape)}')
    if batch_size < 1:
        raise ValueError(f'batch_size is at least 1, not {batch_size}')

    limits = spatial_shape
    if limits is None:
        limits = [w * 2**UNKNOWN_AXIS_BITS - s for w, s in zip(window_shape, shift)]
    if checks_values(coords) and len(coords):
        _check_coords(coords, (batch_size, *limits))


def _check_coords(coords: Tensor, limits: Sequence[int]) -> None:
    smallest = coords.amin(0).tolist()
    largest = coords.amax(0).tolist()
    for name, lo, hi, limit in zip(('batch', 'z', 'y', 'x'), smallest, largest, limits):
        if lo < 0 or hi >= limit:
            raise ValueError(f'coords: {name} runs from {lo} to {hi}, allowed is 0 to {limit - 1}')


def check_wavelengths(positions: Tensor, min_wavelength: float, max_wavelength: float) -> None:
    """Positions [..., 3], and wavelengths with 0 < min <= max."""
    if positions.shape[-1] != 3:
        raise ValueError(f'positions are [..., 3], not {tuple(positions.shape)}')
    if not 0 < min_wavelength <= max_wavelength:
        raise ValueError(f'wavelengths must satisfy 0 < {min_wavelength} <= {max_wavelength}')


def check_rotary_tables(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Tables [..., R] for the rows of x [..., H, D], with 2 R <= D."""
    channels = 2 * cos.shape[-1]
    if channels > x.shape[-1]:
        raise ValueError(f'tables for {channels} channels do not fit heads of width {x.shape[-1]}')
    if cos.shape[:-1] != x.shape[:-2] or sin.shape != cos.shape:
        raise ValueError(
            f'cos {tuple(cos.shape)} and sin {tuple(sin.shape)} must have the rows of x, '
            f'{tuple(x.shape[:-2])}'
        )


def check_rows(**tensors: Tensor) -> None:
    """Tensors by name: all [N, H, D], of one shape, dtype and device."""
    first, *others = tensors.values()
    is_same = all(x.shape == first.shape and _is_alike(x, first) for x in others)
    if first.dim() != 3 or not is_same or first.shape[2] == 0:
        raise ValueError(
            f'{", ".join(tensors)} are [N, H, D] of one shape, dtype and device: '
            f'{_describe(**tensors)}'
        )
    check_strides(**tensors)


def check_strides(**tensors: Tensor) -> None:
    """Channels must lie side by side in memory."""
    for name, x in tensors.items():
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ValueError(
                f'{name}: the last stride must be 1, not {x.stride()}; call contiguous() on it'
            )


def check_token_queries(q: Tensor, k: Tensor, batch_offsets: Tensor) -> None:
    """Queries q [B, M, H, D] of tokens against keys k [N, H, D] of rows, grouped by sample."""
    if q.dim() != 4 or q.shape[2:] != k.shape[1:] or not _is_alike(q, k):
        raise ValueError(f'q is [B, M, H, D] matching k: {_describe(q=q, k=k)}')
    check_strides(q=q)
    if batch_offsets.shape != (len(q) + 1,):
        raise ValueError(
            f'batch_offsets is [B + 1] = [{len(q) + 1}], not {tuple(batch_offsets.shape)}'
        )
    check_offsets(batch_offsets, k)


def check_strata(
    q: Tensor,
    strata_k: Tensor | None,
    strata_v: Tensor | None,
    strata_bias: Tensor | None,
    batch: int,
) -> None:
    """Strata that rows q [N, H, D] of so many samples may attend to; both or neither."""
    if (strata_k is None) != (strata_v is None):
        raise ValueError('strata_k and strata_v come together: one of them is None')
    if strata_k is None or strata_v is None:
        if strata_bias is not None:
            raise ValueError('strata_bias was given without strata_k and strata_v')
        return

    problem = None
    shape = strata_k.shape
    is_shaped = strata_k.dim() == 4 and shape[0] == batch and shape[2:] == q.shape[1:]
    if not is_shaped or shape != strata_v.shape:
        problem = f'strata_k and strata_v are [B, M, H, D] with B = {batch}'
    elif not (_is_alike(q, strata_k) and _is_alike(q, strata_v)):
        problem = 'strata and q share dtype and device'
    elif strata_bias is not None and not _is_bias(strata_bias, strata_k):
        problem = 'strata_bias is [B, M, H] floating point'
    if problem:
        given = _describe(q=q, strata_k=strata_k, strata_v=strata_v, strata_bias=strata_bias)
        raise ValueError(f'{problem}: {given}')
    check_strides(strata_k=strata_k, strata_v=strata_v)


def _is_alike(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device


def _is_bias(bias: Tensor, strata_k: Tensor) -> bool:
    is_number = bias.is_floating_point() and bias.device == strata_k.device
    return bias.shape == strata_k.shape[:3] and is_number


def check_plan(plan: WindowPlan, q: Tensor) -> None:
    """A plan for the rows of q [N, H, D]; its offsets and windows only where values are checked."""
    n = q.shape[0]
    if plan.window_start.shape != (n,) or plan.sample.shape != (n,):
        raise ValueError(f'the plan is for {len(plan.sample)} rows, q has {n}')
    check_offsets(plan.batch_offsets, q)
    if n and checks_values(q):
        is_inside = (plan.window_start >= 0) & (plan.window_end <= n)
        is_valid = is_inside & (plan.window_start < plan.window_end)
        if not is_valid.all():
            raise ValueError(f'the plan contains windows outside rows 0 to {n}')


def check_offsets(batch_offsets: Tensor, rows: Tensor) -> None:
    """Offsets of the samples among rows [N, ...]; their values only where values are checked."""
    is_integer = batch_offsets.dtype in (torch.int32, torch.int64)
    if not is_integer or batch_offsets.device != rows.device:
        raise ValueError(
            f'batch_offsets (of the plan) are integers on {rows.device}: '
            f'{_describe(it=batch_offsets)}'
        )
    if checks_values(batch_offsets):
        n = len(rows)
        offsets = batch_offsets.tolist()
        if offsets[0] != 0 or offsets[-1] != n or offsets != sorted(offsets):
            raise ValueError(f'batch_offsets must ascend from 0 to {n}, not {offsets}')


def _describe(**tensors: Tensor | None) -> str:
    """Shape, dtype and device of every tensor that is given."""
    return ', '.join(
        f'{name} {tuple(x.shape)} {x.dtype} on {x.device}'
        for name, x in tensors.items()
        if x is not None
    )
