"""GPU backend: kernels in Triton.

Importing this module needs torch alone; Triton and the kernels load with the first call.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from stratified3d.ops.stratified_attention.kernels import operators
from stratified3d.ops.windows import WindowPlan

_HAS_TRITON = importlib.util.find_spec('triton') is not None


def stratified_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: WindowPlan,
    strata_k: Tensor | None,
    strata_v: Tensor | None,
    strata_bias: Tensor | None,
    scale: float,
) -> Tensor:
    """One softmax over windows and strata, see `stratified3d.ops.stratified_attention`."""
    windows = (plan.window_start, plan.window_end, plan.batch_offsets)
    bias = None if strata_bias is None else strata_bias.float()
    out, _ = operators.attend(q, k, v, *windows, strata_k, strata_v, bias, scale)
    return out


def collect_strata(q: Tensor, k: Tensor, v: Tensor, batch_offsets: Tensor, scale: float) -> Tensor:
    """Tokens attend to the rows of their sample, see `stratified3d.ops.collect_strata`."""
    out, _ = operators.collect(q, k, v, batch_offsets, scale)
    return out


def read_strata(
    q: Tensor,
    strata_k: Tensor,
    strata_v: Tensor,
    batch_offsets: Tensor,
    strata_bias: Tensor | None,
    scale: float,
) -> Tensor:
    """Rows attend to the tokens of their sample, see `stratified3d.ops.read_strata`."""
    without_windows = (None, None, None, None)
    bias = None if strata_bias is None else strata_bias.float()
    out, _ = operators.attend(q, *without_windows, batch_offsets, strata_k, strata_v, bias, scale)
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., H, D] rotated by tables [..., R], see `stratified3d.ops.apply_rotary`."""
    return operators.rotate(x, cos, sin, False)


def unsupported_reason(q: Tensor) -> str | None:
    """Why the kernels cannot run on such a query [..., D], or None where they can."""
    if not _HAS_TRITON:
        return 'the package triton is not installed'
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f'its kernels take fp32, fp16 and bf16, not {q.dtype}'
    if not 1 <= q.shape[-1] <= 128:
        return f'its kernels take heads of width 1 to 128, not {q.shape[-1]}'

    if q.is_cuda:
        device = torch.cuda.get_device_properties(q.device)
        if device.major < 8:
            return f'it needs compute capability 8.0, not {device.major}.{device.minor}'
        return None
    if os.environ.get('TRITON_INTERPRET') != '1':
        return (
            f'it needs a CUDA device, not {q.device.type} '
            '(TRITON_INTERPRET=1 runs it anywhere, slowly)'
        )
    if q.dtype == torch.bfloat16:
        return "Triton's interpreter rounds bf16 wrongly"
    return None
