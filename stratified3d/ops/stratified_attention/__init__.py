"""Stratified attention: what users call, and which backend answers.

The equations and their cost are derived in README.md beside this file. Every backend module has the
same three functions with the same positional arguments; the functions here check the arguments,
choose the backend and call it. Under autocast they take its dtype for all but the bias, as torch's
own attention does.
"""

from __future__ import annotations

import os
from types import ModuleType

import torch
from torch import Tensor

from stratified3d.ops.stratified_attention import kernels as triton
from stratified3d.ops.stratified_attention import reference, sdpa
from stratified3d.ops.windows import WindowPlan, checks_values

# fastest first: `None` takes the first that can run
BACKENDS: dict[str, ModuleType] = {'triton': triton, 'sdpa': sdpa, 'reference': reference}


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
    return triton.unsupported_reason(q) if backend == 'triton' else None


def choose_backend(backend: str | None, q: Tensor) -> str:
    """The backend that will run: the argument, else STRATIFIED3D_BACKEND, else the first that
    supports q.

    Raises:
        ValueError: the named backend cannot run, with its reason.
    """
    named = backend or os.environ.get('STRATIFIED3D_BACKEND')
    reasons = {}
    for name in (named,) if named else BACKENDS:
        reasons[name] = unsupported_reason(name, q)
        if reasons[name] is None:
            return name
    listing = '; '.join(f'{name}: {reason}' for name, reason in reasons.items())
    raise ValueError(
        f'no attention backend for {tuple(q.shape)} {q.dtype} on {q.device}: {listing}'
    )


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
    backend: str | None = None,
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
        backend: see `choose_backend`.
    Returns:
        [N, H, D] in q's dtype.
    Raises:
        ValueError: shapes, dtypes or devices that do not fit, strata keys without values, a plan of
        other rows.
    """
    q, k, v, strata_k, strata_v = _cast_for_autocast(q, k, v, strata_k, strata_v)
    _check_rows(q=q, k=k, v=v)
    n, heads, width = q.shape
    if plan.window_start.shape != (n,) or plan.sample.shape != (n,):
        raise ValueError(f'the plan is for {len(plan.sample)} rows, q has {n}')
    batch = len(plan.batch_offsets) - 1
    if (strata_k is None) != (strata_v is None):
        raise ValueError('strata_k and strata_v come together: one of them is None')
    if strata_k is None and strata_bias is not None:
        raise ValueError('strata_bias was given without strata_k and strata_v')
    if strata_k is not None:
        _check_strata(q, strata_k, strata_v, strata_bias, batch)
        if strata_k.shape[1] == 0:
            strata_k = strata_v = strata_bias = None
    _check_offsets(plan.batch_offsets, q)
    if (
        checks_values(q)
        and n
        and not (
            (plan.window_start >= 0)
            & (plan.window_start < plan.window_end)
            & (plan.window_end <= n)
        ).all()
    ):
        raise ValueError(f'the plan holds windows outside rows 0 to {n}')
    return _run(
        'stratified_attention',
        backend,
        q,
        k,
        v,
        plan,
        strata_k,
        strata_v,
        strata_bias,
        _scale(scale, width),
    )


def collect_strata(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch_offsets: Tensor,
    *,
    scale: float | None = None,
    backend: str | None = None,
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
        backend: see `choose_backend`.
    Returns:
        [B, M, H, D] in q's dtype; a sample without rows gives zeros.
    Raises:
        ValueError: shapes, dtypes or devices that do not fit; batch_offsets that do not run from 0
        to N.
    """
    q, k, v = _cast_for_autocast(q, k, v)
    _check_rows(k=k, v=v)
    if q.dim() != 4 or q.shape[2:] != k.shape[1:] or q.dtype != k.dtype or q.device != k.device:
        raise ValueError(f'q is [B, M, H, D] matching k: {_describe(q=q, k=k)}')
    _check_strides(q=q)
    if batch_offsets.shape != (len(q) + 1,):
        raise ValueError(
            f'batch_offsets is [B + 1] = [{len(q) + 1}], not {tuple(batch_offsets.shape)}'
        )
    _check_offsets(batch_offsets, k)
    return _run('collect_strata', backend, q, k, v, batch_offsets, _scale(scale, q.shape[-1]))


def read_strata(
    q: Tensor,
    strata_k: Tensor,
    strata_v: Tensor,
    batch_offsets: Tensor,
    *,
    strata_bias: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
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
        backend: see `choose_backend`.
    Returns:
        [N, H, D] in q's dtype; a sample whose tokens are all absent (or M = 0) gives zeros.
    Raises:
        ValueError: shapes, dtypes or devices that do not fit; batch_offsets that do not run from 0
        to N.
    """
    q, strata_k, strata_v = _cast_for_autocast(q, strata_k, strata_v)
    _check_rows(q=q)
    _check_strata(q, strata_k, strata_v, strata_bias, len(batch_offsets) - 1)
    _check_offsets(batch_offsets, q)
    if strata_k.shape[1] == 0:
        return torch.zeros_like(q)
    return _run(
        'read_strata',
        backend,
        q,
        strata_k,
        strata_v,
        batch_offsets,
        strata_bias,
        _scale(scale, q.shape[-1]),
    )


def _run(op: str, backend: str | None, q: Tensor, *arguments) -> Tensor:
    """Call an op of the chosen backend; autocast is off inside, where every backend accumulates in
    fp32 or wider."""
    function = getattr(BACKENDS[choose_backend(backend, q)], op)
    with torch.autocast(q.device.type, enabled=False):
        return function(q, *arguments)


def _cast_for_autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """Under autocast the inputs take its dtype, as those of torch's own attention; a bias and fp64
    stay."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [
        x.to(dtype)
        if x is not None and x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        else x
        for x in tensors
    ]


def _scale(scale: float | None, width: int) -> float:
    return width**-0.5 if scale is None else float(scale)


def _describe(**tensors: Tensor | None) -> str:
    return ', '.join(
        f'{name} {tuple(t.shape)} {t.dtype} on {t.device}'
        for name, t in tensors.items()
        if t is not None
    )


def _check_rows(**tensors: Tensor) -> None:
    first, *others = tensors.values()
    same = all(
        x.shape == first.shape and x.dtype == first.dtype and x.device == first.device
        for x in others
    )
    if first.dim() != 3 or not same or first.shape[2] == 0:
        raise ValueError(
            f'{", ".join(tensors)} are [N, H, D] of one shape, dtype and device: {_describe(**tensors)}'
        )
    _check_strides(**tensors)


def _check_strides(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ValueError(f'{name}: the last stride must be 1, not {x.stride()}')


def _check_strata(
    q: Tensor, strata_k: Tensor, strata_v: Tensor, strata_bias: Tensor | None, batch: int
) -> None:
    if (
        strata_k.dim() != 4
        or strata_k.shape != strata_v.shape
        or strata_k.shape[0] != batch
        or strata_k.shape[2:] != q.shape[1:]
    ):
        problem = f'strata_k and strata_v are [B, M, H, D] with B = {batch}'
    elif (
        not q.dtype == strata_k.dtype == strata_v.dtype
        or not q.device == strata_k.device == strata_v.device
    ):
        problem = 'strata and q share dtype and device'
    elif strata_bias is not None and (
        strata_bias.shape != strata_k.shape[:3]
        or strata_bias.device != q.device
        or not strata_bias.is_floating_point()
    ):
        problem = 'strata_bias is [B, M, H] floating point'
    else:
        return _check_strides(strata_k=strata_k, strata_v=strata_v)
    raise ValueError(
        f'{problem}: {_describe(q=q, strata_k=strata_k, strata_v=strata_v, strata_bias=strata_bias)}'
    )


def _check_offsets(batch_offsets: Tensor, rows: Tensor) -> None:
    n = len(rows)
    if batch_offsets.dtype not in (torch.int32, torch.int64) or batch_offsets.device != rows.device:
        raise ValueError(
            f'batch_offsets (of the plan) are integers on {rows.device}: {_describe(it=batch_offsets)}'
        )
    if checks_values(batch_offsets):
        offsets = batch_offsets.tolist()
        if offsets[0] != 0 or offsets[-1] != n or offsets != sorted(offsets):
            raise ValueError(f'batch_offsets must ascend from 0 to {n}, not {offsets}')
