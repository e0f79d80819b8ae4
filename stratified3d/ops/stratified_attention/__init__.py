"""Stratified attention: the three functions that users call.

The equations and their cost are derived in README.md beside this file. Every backend has the same
three functions with the same positional arguments; the functions here check the arguments, choose
the backend and call it. Under autocast they take its dtype for all but the bias, as torch's own
attention does.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from stratified3d.ops.checks import (
    check_offsets,
    check_plan,
    check_rows,
    check_strata,
    check_token_queries,
)
from stratified3d.ops.stratified_attention.backends import (
    BACKENDS,
    Backend,
    choose_backend,
    unsupported_reason,
)
from stratified3d.ops.windows import WindowPlan

__all__ = [
    'BACKENDS',
    'Backend',
    'choose_backend',
    'collect_strata',
    'read_strata',
    'stratified_attention',
    'unsupported_reason',
]


def stratified_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: WindowPlan,
    strata_k: Tensor | None = None,
    strata_v: Tensor | None = None,
    *,
    strata_bias: Tensor | None = None,
    scale: float | None = None,
    backend: str | Backend | None = None,
) -> Tensor:
    """Let every voxel attend to its window and to the strata of its sample, in one softmax.

    out[i] = sum_j softmax_j(scale q[i] k[j] + bias[j]) v[j], j over the rows of i's window (bias 0)
    and the strata tokens of i's sample (bias from strata_bias). Cost: O(N H D (window + M)) time,
    O(N H D) memory.

    Args:
        q, k, v: [N, H, D] in the plan's window order; fp64, fp32, fp16 or bf16; accumulated in fp32
        or wider.
        plan: from `plan_windows`.
        strata_k, strata_v: [B, M, H, D], both or neither; M = 0 is valid.
        strata_bias: [B, M, H] fp32, added to the strata logits; -inf marks an absent token.
        Differentiable.
        scale: factor on the products; default D**-0.5.
        backend: a name, see `choose_backend`, or a `Backend` of your own.
    Returns:
        [N, H, D] in q's dtype.
    Raises:
        ValueError: shapes, dtypes or devices that do not fit, strata keys without values, a plan of
        other rows.
    """
    q, k, v = _lower(q), _lower(k), _lower(v)
    strata_k, strata_v = _lower(strata_k), _lower(strata_v)
    check_rows(q=q, k=k, v=v)
    check_strata(q, strata_k, strata_v, strata_bias, batch=len(plan.batch_offsets) - 1)
    check_plan(plan, q)
    if strata_k is not None and strata_k.shape[1] == 0:
        # M = 0: window attention alone
        strata_k = strata_v = strata_bias = None

    scale = _scale(scale, q)
    function = _backend(backend, q).stratified_attention
    with _without_autocast(q):
        return function(q, k, v, plan, strata_k, strata_v, strata_bias, scale)


def collect_strata(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch_offsets: Tensor,
    *,
    scale: float | None = None,
    backend: str | Backend | None = None,
) -> Tensor:
    """Let every strata token attend to all voxels of its sample.

    out[b, m] = sum_i softmax_i(scale q[b, m] k[i]) v[i] over the rows i of sample b (the pooling
    attention of Set Transformer, Lee et al. 2019, section 3.2, with queries that depend on the
    data). Cost: O(M N H D) time, O(N H D) memory.

    Args:
        q: [B, M, H, D]; fp64, fp32, fp16 or bf16.
        k, v: [N, H, D], rows grouped by sample.
        batch_offsets: [B + 1] int32; sample b owns rows batch_offsets[b] to batch_offsets[b + 1].
        scale: factor on the products; default D**-0.5.
        backend: a name, see `choose_backend`, or a `Backend` of your own.
    Returns:
        [B, M, H, D] in q's dtype; a sample without rows gives zeros.
    Raises:
        ValueError: shapes, dtypes or devices that do not fit; batch_offsets that do not run from 0
        to N.
    """
    q, k, v = _lower(q), _lower(k), _lower(v)
    check_rows(k=k, v=v)
    check_token_queries(q, k, batch_offsets)

    scale = _scale(scale, q)
    function = _backend(backend, q).collect_strata
    with _without_autocast(q):
        return function(q, k, v, batch_offsets, scale)


def read_strata(
    q: Tensor,
    strata_k: Tensor,
    strata_v: Tensor,
    batch_offsets: Tensor,
    *,
    strata_bias: Tensor | None = None,
    scale: float | None = None,
    backend: str | Backend | None = None,
) -> Tensor:
    """Let every voxel attend to the strata tokens of its sample only.

    out[i] = sum_m softmax_m(scale q[i] strata_k[b, m] + strata_bias[b, m]) strata_v[b, m], b the
    sample of row i. Cost: O(N M H D) time, O(N H D) memory.

    Args:
        q: [N, H, D], rows grouped by sample; fp64, fp32, fp16 or bf16.
        strata_k, strata_v: [B, M, H, D].
        batch_offsets: [B + 1] int32.
        strata_bias: [B, M, H] fp32; -inf marks an absent token.
        scale: factor on the products; default D**-0.5.
        backend: a name, see `choose_backend`, or a `Backend` of your own.
    Returns:
        [N, H, D] in q's dtype; a sample whose tokens are all absent (or M = 0) gives zeros.
    Raises:
        ValueError: shapes, dtypes or devices that do not fit; batch_offsets that do not run from 0
        to N.
    """
    q, strata_k, strata_v = _lower(q), _lower(strata_k), _lower(strata_v)
    check_rows(q=q)
    check_strata(q, strata_k, strata_v, strata_bias, batch=len(batch_offsets) - 1)
    check_offsets(batch_offsets, q)
    if strata_k.shape[1] == 0:
        return torch.zeros_like(q)

    scale = _scale(scale, q)
    function = _backend(backend, q).read_strata
    with _without_autocast(q):
        return function(q, strata_k, strata_v, batch_offsets, strata_bias, scale)


def _backend(backend: str | Backend | None, q: Tensor) -> Backend:
    """The module or object whose functions run."""
    if backend is None or isinstance(backend, str):
        return BACKENDS[choose_backend(backend, q)]
    return backend


def _without_autocast(q: Tensor) -> torch.autocast:
    """Every backend accumulates in fp32 or wider, which autocast would undo."""
    return torch.autocast(q.device.type, enabled=False)


@overload
def _lower(x: Tensor) -> Tensor: ...
@overload
def _lower(x: None) -> None: ...
def _lower(x: Tensor | None) -> Tensor | None:
    """x in autocast's dtype where autocast is on, as torch's own attention does; fp64 stays."""
    if x is None or not torch.is_autocast_enabled(x.device.type):
        return x
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def _scale(scale: float | None, q: Tensor) -> float:
    return q.shape[-1] ** -0.5 if scale is None else float(scale)
