"""CPU backend: kernels in numba for fp32, fp16 and bf16; strata are collected by torch.

Importing this module needs torch alone; numba and the kernels load with the first call.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from stratified3d.ops.stratified_attention.sdpa import collect_strata, read_strata
from stratified3d.ops.windows import WindowPlan

__all__ = ['collect_strata', 'read_strata', 'stratified_attention', 'unsupported_reason']


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
    from stratified3d.ops.stratified_attention.cpu import launch

    return launch.attend(q, k, v, plan, strata_k, strata_v, strata_bias, scale)


def unsupported_reason(q: Tensor) -> str | None:
    """Why the kernels cannot run on such a query [..., D], or None where they can."""
    if torch.compiler.is_compiling():
        return 'torch.compile and torch.export cannot trace its kernels'
    if importlib.util.find_spec('numba') is None:
        return 'the package numba is not installed'
    if q.device.type != 'cpu':
        return f'its kernels run on a CPU, not on {q.device.type}'
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f'its kernels take fp32, fp16 and bf16, not {q.dtype}'
    return None
