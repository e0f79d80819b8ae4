"""The kernels as torch.library operators, with fake kernels and registered gradients.

Importing this module needs torch alone; Triton and the kernels load with the first call. An
operator returns what its backward pass needs (the log-sum-exp) beside its output. An operator
cannot return None, so the gradient of an absent argument is an empty tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ROWS = (
    'Tensor q, Tensor? k, Tensor? v, Tensor? window_start, Tensor? window_end, '
    'Tensor batch_offsets, Tensor? strata_k, Tensor? strata_v, Tensor? strata_bias'
)
_TOKENS = 'Tensor q, Tensor k, Tensor v, Tensor batch_offsets'
# places in _ROWS of q, k, v, strata_k, strata_v and strata_bias
_DIFFERENTIABLE = (0, 1, 2, 6, 7, 8)


@torch.library.custom_op(
    'stratified3d::attend', mutates_args=(), schema=f'({_ROWS}, float scale) -> (Tensor, Tensor)'
)
def attend(*arguments: Any) -> Any:
    """Output [N, H, D] and log-sum-exp [N, H] of rows over their windows and strata."""
    from stratified3d.ops.stratified_attention.kernels import launch

    return launch.attend(*arguments)


@attend.register_fake
def _(q, *_):
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.custom_op(
    'stratified3d::attend_backward',
    mutates_args=(),
    schema=f'(Tensor grad, {_ROWS}, Tensor out, Tensor lse, float scale) '
    '-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)',
)
def attend_backward(grad: Tensor, q: Tensor, *arguments: Any) -> Any:
    """Gradients of the differentiable inputs of `attend`."""
    from stratified3d.ops.stratified_attention.kernels import launch_backward

    grads = launch_backward.attend_backward(grad, q, *arguments)
    return tuple(q.new_empty(0) if x is None else x for x in grads)


@attend_backward.register_fake
def _(grad, q, *arguments):
    inputs = (q, *arguments)
    differentiable = [inputs[place] for place in _DIFFERENTIABLE]
    return tuple(q.new_empty(0) if x is None else x.new_empty(x.shape) for x in differentiable)


def _differentiate_attend(ctx, grad, _):
    tensors = ctx.saved_tensors
    grads = dict(zip(_DIFFERENTIABLE, attend_backward(grad, *tensors, ctx.scale)))
    for place in _DIFFERENTIABLE:
        if tensors[place] is None:
            grads[place] = None  # instead of the empty tensor
    return *(grads.get(place) for place in range(9)), None


def _save_inputs(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


attend.register_autograd(_differentiate_attend, setup_context=_save_inputs)


@torch.library.custom_op(
    'stratified3d::collect', mutates_args=(), schema=f'({_TOKENS}, float scale) -> (Tensor, Tensor)'
)
def collect(*arguments: Any) -> Any:
    """Output [B, M, H, D] and log-sum-exp [B, M, H] of tokens over the rows of their sample."""
    from stratified3d.ops.stratified_attention.kernels import launch

    return launch.collect(*arguments)


@collect.register_fake
def _(q, *_):
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op(
    'stratified3d::collect_backward',
    mutates_args=(),
    schema=f'(Tensor grad, {_TOKENS}, Tensor out, Tensor lse, float scale) '
    '-> (Tensor, Tensor, Tensor)',
)
def collect_backward(*arguments: Any) -> Any:
    """Gradients of q, k and v of `collect`."""
    from stratified3d.ops.stratified_attention.kernels import launch_backward

    return launch_backward.collect_backward(*arguments)


@collect_backward.register_fake
def _(grad, q, k, v, *_):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _differentiate_collect(ctx, grad, _):
    return *collect_backward(grad, *ctx.saved_tensors, ctx.scale), None, None


collect.register_autograd(_differentiate_collect, setup_context=_save_inputs)


@torch.library.custom_op(
    'stratified3d::rotate',
    mutates_args=(),
    schema='(Tensor x, Tensor cos, Tensor sin, bool back) -> Tensor',
)
def rotate(*arguments: Any) -> Any:
    """Channel pairs rotated by the angles of the tables, or rotated back."""
    from stratified3d.ops.stratified_attention.kernels import launch

    return launch.rotate(*arguments)


@rotate.register_fake
def _(x, *_):
    return x.new_empty(x.shape)


def _save_tables(ctx, inputs, output):
    _, *tables, ctx.back = inputs
    ctx.save_for_backward(*tables)


def _differentiate_rotate(ctx, grad):
    return rotate(grad, *ctx.saved_tensors, not ctx.back), None, None, None


rotate.register_autograd(_differentiate_rotate, setup_context=_save_tables)
