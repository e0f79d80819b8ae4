"""The attention backends, and which of them runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from stratified3d.ops.stratified_attention import cpu, kernels, reference, sdpa
from stratified3d.ops.windows import WindowPlan


class Backend(Protocol):
    """A module or an object with the three functions, which get arguments that were checked."""

    def stratified_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan: WindowPlan,
        strata_k: Tensor | None,
        strata_v: Tensor | None,
        strata_bias: Tensor | None,
        scale: float,
    ) -> Tensor: ...

    def collect_strata(
        self, q: Tensor, k: Tensor, v: Tensor, batch_offsets: Tensor, scale: float
    ) -> Tensor: ...

    def read_strata(
        self,
        q: Tensor,
        strata_k: Tensor,
        strata_v: Tensor,
        batch_offsets: Tensor,
        strata_bias: Tensor | None,
        scale: float,
    ) -> Tensor: ...


# fastest first: `None` takes the first that can run
BACKENDS: Mapping[str, Backend] = {
    'triton': kernels,
    'numba': cpu,
    'sdpa': sdpa,
    'reference': reference,
}


def unsupported_reason(backend: str, q: Tensor) -> str | None:
    """Why a backend cannot run on such a query, or None where it can.

    Args:
        backend: a name in BACKENDS.
        q: [..., D]; its dtype and device decide.
    """
    if backend not in BACKENDS:
        return f'there is no backend {backend!r}; known are {", ".join(BACKENDS)}'
    if q.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return f'dtype {q.dtype} is none of fp64, fp32, fp16 and bf16'
    if backend == 'triton':
        return kernels.unsupported_reason(q)
    return cpu.unsupported_reason(q) if backend == 'numba' else None


def choose_backend(backend: str | None, q: Tensor) -> str:
    """Name of the backend that will run on a query.

    It is the argument, else STRATIFIED3D_BACKEND, else the first in BACKENDS that supports q.

    Raises:
        ValueError: the named backend cannot run, with its reason.
    """
    requested = backend or os.environ.get('STRATIFIED3D_BACKEND')
    reasons = {}
    for name in (requested,) if requested else BACKENDS:
        reason = unsupported_reason(name, q)
        if reason is None:
            return name
        reasons[name] = reason
    listing = '; '.join(f'{name}: {reason}' for name, reason in reasons.items())
    raise ValueError(
        f'no attention backend for {tuple(q.shape)} {q.dtype} on {q.device}: {listing}'
    )
