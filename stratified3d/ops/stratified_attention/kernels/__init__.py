"""GPU backend: kernels in Triton behind torch.library operators, with fake kernels and registered
gradients.

Importing this module needs torch alone; Triton and the kernels load with the first call. An
operator returns what its backward pass needs (the log-sum-exp) beside its output; what an argument
that is absent would get as its gradient is an empty tensor, because an operator cannot return None.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from stratified3d.ops.windows import WindowPlan

_ROWS = (
    'Tensor q, Tensor? k, Tensor? v, Tensor? window_start, Tensor? window_end, Tensor batch_offsets, '
    'Tensor? strata_k, Tensor? strata_v, Tensor? strata_bias'
)
_TOKENS = 'Tensor q, Tensor k, Tensor v, Tensor batch_offsets'


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
    return _attend(
        q,
        k,
        v,
        plan.window_start,
        plan.window_end,
        plan.batch_offsets,
        strata_k,
        strata_v,
        None if strata_bias is None else strata_bias.float(),
        scale,
    )[0]


def collect_strata(q: Tensor, k: Tensor, v: Tensor, batch_offsets: Tensor, scale: float) -> Tensor:
    return _collect(q, k, v, batch_offsets, scale)[0]


def read_strata(
    q: Tensor,
    strata_k: Tensor,
    strata_v: Tensor,
    batch_offsets: Tensor,
    strata_bias: Tensor | None,
    scale: float,
) -> Tensor:
    return _attend(
        q,
        None,
        None,
        None,
        None,
        batch_offsets,
        strata_k,
        strata_v,
        None if strata_bias is None else strata_bias.float(),
        scale,
    )[0]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _rotate(x, cos, sin, False)


def unsupported_reason(q: Tensor) -> str | None:
    if importlib.util.find_spec('triton') is None:
        return 'the package triton is not installed'
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f'its kernels take fp32, fp16 and bf16, not {q.dtype}'
    if not 1 <= q.shape[-1] <= 128:
        return f'its kernels take heads of width 1 to 128, not {q.shape[-1]}'
    if q.is_cuda:
        capability = torch.cuda.get_device_capability(q.device)
        return (
            None
            if capability >= (8, 0)
            else f'it needs compute capability 8.0, not {capability[0]}.{capability[1]}'
        )
    if os.environ.get('TRITON_INTERPRET') != '1':
        return f'it needs a CUDA device, not {q.device.type} (TRITON_INTERPRET=1 runs it anywhere, slowly)'
    return "Triton's interpreter rounds bf16 wrongly" if q.dtype == torch.bfloat16 else None


@torch.library.custom_op(
    'stratified3d::attend', mutates_args=(), schema=f'({_ROWS}, float scale) -> (Tensor, Tensor)'
)
def _attend(*arguments):
    from stratified3d.ops.stratified_attention.kernels import launch

    return launch.attend(*arguments)


@_attend.register_fake
def _(q, *_):
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.custom_op(
    'stratified3d::attend_backward',
    mutates_args=(),
    schema=f'(Tensor grad, {_ROWS}, Tensor out, Tensor lse, float scale) '
    '-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)',
)
def _attend_backward(grad, q, *arguments):
    from stratified3d.ops.stratified_attention.kernels import launch

    grads = launch.attend_backward(grad, q, *arguments)
    return tuple(q.new_empty(0) if x is None else x for x in grads)


@_attend_backward.register_fake
def _(
    grad,
    q,
    k,
    v,
    window_start,
    window_end,
    batch_offsets,
    strata_k,
    strata_v,
    strata_bias,
    out,
    lse,
    scale,
):
    inputs = (q, k, v, strata_k, strata_v, strata_bias)
    return tuple(q.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs)


def _save(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate_rows(ctx, grad, _):
    tensors = ctx.saved_tensors
    grads = _attend_backward(grad, *tensors, ctx.scale)
    # the operator has these inputs among others that are not differentiable
    places = (0, 1, 2, 6, 7, 8)
    given = {i: x if tensors[i] is not None else None for i, x in zip(places, grads)}
    return *(given.get(i) for i in range(9)), None


_attend.register_autograd(_differentiate_rows, setup_context=_save)


@torch.library.custom_op(
    'stratified3d::collect', mutates_args=(), schema=f'({_TOKENS}, float scale) -> (Tensor, Tensor)'
)
def _collect(*arguments):
    from stratified3d.ops.stratified_attention.kernels import launch

    return launch.collect(*arguments)


@_collect.register_fake
def _(q, *_):
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op(
    'stratified3d::collect_backward',
    mutates_args=(),
    schema=f'(Tensor grad, {_TOKENS}, Tensor out, Tensor lse, float scale) '
    '-> (Tensor, Tensor, Tensor)',
)
def _collect_backward(*arguments):
    from stratified3d.ops.stratified_attention.kernels import launch

    return launch.collect_backward(*arguments)


@_collect_backward.register_fake
def _(grad, q, k, v, *_):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _differentiate_tokens(ctx, grad, _):
    return *_collect_backward(grad, *ctx.saved_tensors, ctx.scale), None, None


_collect.register_autograd(_differentiate_tokens, setup_context=_save)


@torch.library.custom_op(
    'stratified3d::rotate',
    mutates_args=(),
    schema='(Tensor x, Tensor cos, Tensor sin, bool back) -> Tensor',
)
def _rotate(*arguments):
    from stratified3d.ops.stratified_attention.kernels import launch

    return launch.rotate(*arguments)


@_rotate.register_fake
def _(x, *_):
    return x.new_empty(x.shape)


def _save_tables(ctx, inputs, output):
    _, *tables, ctx.back = inputs
    ctx.save_for_backward(*tables)


def _rotate_gradient(ctx, grad):
    return _rotate(grad, *ctx.saved_tensors, not ctx.back), None, None, None


_rotate.register_autograd(_rotate_gradient, setup_context=_save_tables)
