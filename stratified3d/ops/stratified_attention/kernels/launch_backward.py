"""Host side of the backward kernels: allocate gradients and partial results, launch."""

from __future__ import annotations

import torch
from torch import Tensor

from stratified3d.ops.stratified_attention.kernels import rows_backward, tokens
from stratified3d.ops.stratified_attention.kernels.launch import (
    AttendInputs,
    Run,
    Tiles,
    choose_tiles,
    pack,
    row_grid,
    row_strides,
    run_kernel,
    sum_splits,
    token_grid,
)


def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    window_start: Tensor | None,
    window_end: Tensor | None,
    batch_offsets: Tensor,
    strata_k: Tensor | None,
    strata_v: Tensor | None,
    strata_bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    *,
    run: Run = run_kernel,
) -> list[Tensor | None]:
    """Gradients of q, k, v, strata_k, strata_v, strata_bias; None for what is absent."""
    inputs = AttendInputs(
        q, k, v, window_start, window_end, batch_offsets, strata_k, strata_v, strata_bias
    ).packed()
    grad = pack(grad)
    tiles = choose_tiles(q, inputs.num_strata, inputs.batch)

    # the kernel of the queries also writes delta [N, H] = grad . out, which the others read
    grad_q, delta = _query_gradient(inputs, out, lse, grad, scale, tiles, run)
    grad_k = grad_v = None
    if k is not None:
        grad_k, grad_v = _key_gradients(inputs, lse, delta, grad, scale, tiles, run)
    if strata_k is None:
        return [grad_q, grad_k, grad_v, None, None, None]
    strata_gradients = _strata_gradients(inputs, lse, delta, grad, scale, tiles, run)
    return [grad_q, grad_k, grad_v, *strata_gradients]


def collect_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch_offsets: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    *,
    run: Run = run_kernel,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v."""
    n, heads, width = k.shape
    batch, num_strata = out.shape[:2]
    if not num_strata:
        return q.new_empty(out.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)

    grad, q, k, v = pack(grad), pack(q), pack(k), pack(v)
    tiles = choose_tiles(q, num_strata, batch)
    grid, splits = token_grid(batch, heads, num_strata, n, tiles)
    partial = q.new_empty((splits, *out.shape), dtype=torch.float32)
    grad_k = q.new_empty((n, heads, width))
    grad_v = q.new_empty((n, heads, width))

    # in the order of both kernels' arguments, before and after what each writes
    tables = (q, k, v, batch_offsets.contiguous(), out, lse, grad)
    numbers = (heads, batch, num_strata, *row_strides(q, k, v, grad), scale)
    sizes = dict(WIDTH=width, BLOCK_D=tiles.width, num_warps=tiles.warps)
    run(
        tokens.collect_backward_tokens_kernel,
        grid,
        *tables,
        partial,
        *numbers,
        SPLITS=splits,
        BLOCK_N=tiles.row_step,
        BLOCK_S=tiles.tokens,
        **sizes,
    )
    if n:
        run(
            tokens.collect_backward_rows_kernel,
            row_grid(n, heads, tiles),
            *tables,
            grad_k,
            grad_v,
            n,
            *numbers,
            BLOCK_M=tiles.rows,
            BLOCK_S=tiles.token_step,
            BLOCK_B=tiles.batch,
            **sizes,
        )
    return sum_splits(partial, q.dtype, run), grad_k, grad_v


def _query_gradient(
    inputs: AttendInputs,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    scale: float,
    tiles: Tiles,
    run: Run,
) -> tuple[Tensor, Tensor]:
    """Gradient of q [N, H, D], and delta [N, H] fp32."""
    n, heads, width = out.shape
    tables = (inputs.q, inputs.k, inputs.v, inputs.strata_k, inputs.strata_v, grad)
    grad_q = inputs.q.new_empty(out.shape)
    delta = torch.empty_like(lse)
    if n:
        run(
            rows_backward.attend_backward_rows_kernel,
            row_grid(n, heads, tiles),
            *inputs,
            out,
            lse,
            grad,
            grad_q,
            delta,
            n,
            heads,
            inputs.batch,
            inputs.num_strata,
            *row_strides(*tables),
            scale,
            WIDTH=width,
            BLOCK_D=tiles.width,
            BLOCK_M=tiles.rows,
            BLOCK_N=tiles.row_step,
            BLOCK_S=tiles.token_step,
            BLOCK_B=tiles.batch,
            num_warps=tiles.warps,
        )
    return grad_q, delta


def _key_gradients(
    inputs: AttendInputs,
    lse: Tensor,
    delta: Tensor,
    grad: Tensor,
    scale: float,
    tiles: Tiles,
    run: Run,
) -> tuple[Tensor, Tensor]:
    """Gradients of k and v [N, H, D] from the windows."""
    n, heads, width = inputs.q.shape
    grad_k = inputs.q.new_empty((n, heads, width))
    grad_v = inputs.q.new_empty((n, heads, width))
    if n:
        run(
            rows_backward.attend_backward_keys_kernel,
            row_grid(n, heads, tiles),
            inputs.q,
            inputs.k,
            inputs.v,
            inputs.window_start,
            inputs.window_end,
            lse,
            delta,
            grad,
            grad_k,
            grad_v,
            n,
            heads,
            *row_strides(inputs.q, inputs.k, inputs.v, grad),
            scale,
            WIDTH=width,
            BLOCK_D=tiles.width,
            BLOCK_M=tiles.rows,
            BLOCK_N=tiles.row_step,
            num_warps=tiles.warps,
        )
    return grad_k, grad_v


def _strata_gradients(
    inputs: AttendInputs,
    lse: Tensor,
    delta: Tensor,
    grad: Tensor,
    scale: float,
    tiles: Tiles,
    run: Run,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of strata_k, strata_v [B, M, H, D] and strata_bias [B, M, H]."""
    n, heads, width = inputs.q.shape
    batch, num_strata = inputs.batch, inputs.num_strata
    grid, splits = token_grid(batch, heads, num_strata, n, tiles)
    # every split of a sample's rows writes gradients of all its tokens
    shape = (splits, batch, num_strata, heads, width)
    partial_k = inputs.q.new_empty(shape, dtype=torch.float32)
    partial_v = inputs.q.new_empty(shape, dtype=torch.float32)
    partial_bias = None
    if inputs.strata_bias is not None:
        partial_bias = inputs.q.new_empty(shape[:-1], dtype=torch.float32)
    run(
        tokens.strata_gradient_kernel,
        grid,
        inputs.q,
        inputs.batch_offsets,
        inputs.strata_k,
        inputs.strata_v,
        inputs.strata_bias,
        lse,
        delta,
        grad,
        partial_k,
        partial_v,
        partial_bias,
        heads,
        batch,
        num_strata,
        *row_strides(inputs.q, inputs.strata_k, inputs.strata_v, grad),
        scale,
        SPLITS=splits,
        WIDTH=width,
        BLOCK_D=tiles.width,
        BLOCK_N=tiles.row_step,
        BLOCK_S=tiles.tokens,
        num_warps=tiles.warps,
    )
    grad_k = sum_splits(partial_k, inputs.q.dtype, run)
    grad_v = sum_splits(partial_v, inputs.q.dtype, run)
    grad_bias = None
    if partial_bias is not None:
        grad_bias = sum_splits(partial_bias, torch.float32, run)
    return grad_k, grad_v, grad_bias
