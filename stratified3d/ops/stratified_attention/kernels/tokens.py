"""Kernels in which the tokens of a sample meet all its rows, forward and backward.

Each sample's rows are cut into a fixed number of splits, so that the device is busy at batch 1.
Every split writes a partial result, and one more kernel adds the partial results in order. There
are no atomics, so results repeat bit by bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stratified3d.ops.stratified_attention.kernels.tiles import (
    LOG2_E,
    dot,
    dot_of_small,
    empty_softmax,
    is_in_sample,
    load_rows,
    load_scalars,
    log_sum,
    normalize,
    row_tile,
    sample_range,
    softmax_step,
    split_range,
    store_rows,
    store_scalars,
    token_tile,
)


@triton.jit
def collect_kernel(
    q,
    k,
    v,
    batch_offsets,
    partial_out,
    partial_lse,
    heads,
    batch,
    num_strata,
    q_stride,
    k_stride,
    v_stride,
    scale,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Output and log-sum-exp of BLOCK_S tokens over one split of their sample's rows."""
    sample, head, token, valid = token_tile(heads, num_strata, BLOCK_S)
    split = tl.program_id(1)
    lo, hi = split_range(batch_offsets, sample, split, SPLITS, BLOCK_N)
    queries = load_rows(q, token, q_stride, head, valid, WIDTH, BLOCK_D)  # [S, D]

    acc, row_max, row_sum = empty_softmax(BLOCK_S, BLOCK_D)
    for first in range(lo, hi, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        keys = load_rows(k, i, k_stride, head, i < hi, WIDTH, BLOCK_D)  # [N, D]
        values = load_rows(v, i, v_stride, head, i < hi, WIDTH, BLOCK_D)
        logits = dot(queries, tl.trans(keys)) * (scale * LOG2_E)  # [S, N]
        logits = tl.where((i < hi)[None, :], logits, -float('inf'))
        acc, row_max, row_sum = softmax_step(acc, row_max, row_sum, logits, values)

    partial_row = split * batch * num_strata + token
    out = normalize(acc, row_sum)
    store_rows(partial_out, partial_row, heads, head, valid, out, WIDTH, BLOCK_D)
    # an empty split weighs nothing where the splits are combined
    lse = tl.where(row_sum == 0, -float('inf'), row_max + tl.log2(row_sum))
    store_scalars(partial_lse, partial_row, heads, head, valid, lse)


@triton.jit
def combine_kernel(
    partial_out,
    partial_lse,
    out,
    lse,
    tokens,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Mean of the outputs of one token and head over the splits, weighted by exp2 of their lse."""
    row = tl.program_id(0)
    split = tl.arange(0, SPLITS)
    d = tl.arange(0, BLOCK_D)
    in_width = d < WIDTH

    split_lse = tl.load(partial_lse + split * tokens + row)  # [SPLITS]
    row_max = tl.max(split_lse, 0)
    shift = tl.where(row_max == -float('inf'), 0.0, row_max)
    weights = tl.exp2(split_lse - shift)
    row_sum = tl.sum(weights, 0)

    partial_rows = (split * tokens + row).to(tl.int64)[:, None] * WIDTH + d[None, :]
    outs = tl.load(partial_out + partial_rows, mask=in_width[None, :], other=0.0)  # [SPLITS, D]
    merged = tl.sum(outs * weights[:, None], 0) / tl.where(row_sum == 0, 1.0, row_sum)
    merged = merged.to(out.dtype.element_ty)
    tl.store(out + row.to(tl.int64) * WIDTH + d, merged, mask=in_width)
    tl.store(lse + row, log_sum(row_max, row_sum))


@triton.jit
def collect_backward_tokens_kernel(
    q,
    k,
    v,
    batch_offsets,
    out,
    lse,
    grad_out,
    partial,
    heads,
    batch,
    num_strata,
    q_stride,
    k_stride,
    v_stride,
    grad_stride,
    scale,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """What one split of the rows adds to the gradient of BLOCK_S token queries."""
    sample, head, token, valid = token_tile(heads, num_strata, BLOCK_S)
    split = tl.program_id(1)
    lo, hi = split_range(batch_offsets, sample, split, SPLITS, BLOCK_N)
    queries = load_rows(q, token, q_stride, head, valid, WIDTH, BLOCK_D)  # [S, D]
    grad = load_rows(grad_out, token, grad_stride, head, valid, WIDTH, BLOCK_D)
    outputs = load_rows(out, token, heads * WIDTH, head, valid, WIDTH, BLOCK_D)
    token_lse = load_scalars(lse, token, heads, head, valid, float('inf'))
    delta = tl.sum(grad.to(tl.float32) * outputs.to(tl.float32), 1)

    acc = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    for first in range(lo, hi, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        keys = load_rows(k, i, k_stride, head, i < hi, WIDTH, BLOCK_D)  # [N, D]
        values = load_rows(v, i, v_stride, head, i < hi, WIDTH, BLOCK_D)
        logits = dot(queries, tl.trans(keys)) * (scale * LOG2_E)  # [S, N]
        weights = tl.exp2(logits - token_lse[:, None])
        ds = weights * (dot(grad, tl.trans(values)) - delta[:, None])
        acc += dot_of_small(tl.where((i < hi)[None, :], ds, 0.0), keys)

    partial_row = split * batch * num_strata + token
    store_rows(partial, partial_row, heads, head, valid, acc * scale, WIDTH, BLOCK_D)


@triton.jit(do_not_specialize=['n'])
def collect_backward_rows_kernel(
    q,
    k,
    v,
    batch_offsets,
    out,
    lse,
    grad_out,
    grad_k,
    grad_v,
    n,
    heads,
    batch,
    num_strata,
    q_stride,
    k_stride,
    v_stride,
    grad_stride,
    scale,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """grad_k and grad_v of BLOCK_M rows of one head from the tokens of the samples they lie in."""
    head, row, valid, first_row, last_row = row_tile(n, heads, BLOCK_M)
    keys = load_rows(k, row, k_stride, head, valid, WIDTH, BLOCK_D)  # [M, D]
    values = load_rows(v, row, v_stride, head, valid, WIDTH, BLOCK_D)
    acc_k = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    first_sample, end_sample = sample_range(batch_offsets, first_row, last_row, batch, BLOCK_B)
    for b in range(first_sample, end_sample):
        in_sample = is_in_sample(row, batch_offsets, b)
        for m in range(0, num_strata, BLOCK_S):
            token = m + tl.arange(0, BLOCK_S)
            exists = token < num_strata
            token += b * num_strata
            queries = load_rows(q, token, q_stride, head, exists, WIDTH, BLOCK_D)  # [S, D]
            grad = load_rows(grad_out, token, grad_stride, head, exists, WIDTH, BLOCK_D)
            outputs = load_rows(out, token, heads * WIDTH, head, exists, WIDTH, BLOCK_D)
            delta = tl.sum(grad.to(tl.float32) * outputs.to(tl.float32), 1)
            token_lse = load_scalars(lse, token, heads, head, exists, float('inf'))

            logits = dot(keys, tl.trans(queries)) * (scale * LOG2_E)  # [M, S]
            weights = tl.exp2(logits - token_lse[None, :])
            ds = weights * (dot(values, tl.trans(grad)) - delta[None, :])
            # whole rows are chosen, which keeps this sample's NaN out of the rows of the others
            acc_v = tl.where(in_sample[:, None], acc_v + dot_of_small(weights, grad), acc_v)
            acc_k = tl.where(in_sample[:, None], acc_k + dot_of_small(ds, queries), acc_k)
    store_rows(grad_k, row, heads, head, valid, acc_k * scale, WIDTH, BLOCK_D)
    store_rows(grad_v, row, heads, head, valid, acc_v, WIDTH, BLOCK_D)


@triton.jit
def strata_gradient_kernel(
    q,
    batch_offsets,
    strata_k,
    strata_v,
    strata_bias,
    lse,
    delta,
    grad_out,
    partial_k,
    partial_v,
    partial_bias,
    heads,
    batch,
    num_strata,
    q_stride,
    sk_stride,
    sv_stride,
    grad_stride,
    scale,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Gradients of BLOCK_S strata keys, values and biases from one split of the rows."""
    sample, head, token, valid = token_tile(heads, num_strata, BLOCK_S)
    split = tl.program_id(1)
    lo, hi = split_range(batch_offsets, sample, split, SPLITS, BLOCK_N)
    keys = load_rows(strata_k, token, sk_stride, head, valid, WIDTH, BLOCK_D)  # [S, D]
    values = load_rows(strata_v, token, sv_stride, head, valid, WIDTH, BLOCK_D)
    bias = tl.zeros([BLOCK_S], tl.float32)
    if strata_bias is not None:
        bias = load_scalars(strata_bias, token, heads, head, valid, 0.0) * LOG2_E

    acc_k = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    acc_bias = tl.zeros([BLOCK_S], tl.float32)
    for first in range(lo, hi, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        queries = load_rows(q, i, q_stride, head, i < hi, WIDTH, BLOCK_D)  # [N, D]
        grad = load_rows(grad_out, i, grad_stride, head, i < hi, WIDTH, BLOCK_D)
        # weights past the end are zeros
        row_lse = load_scalars(lse, i, heads, head, i < hi, float('inf'))
        row_delta = load_scalars(delta, i, heads, head, i < hi, 0.0)
        logits = dot(keys, tl.trans(queries)) * (scale * LOG2_E) + bias[:, None]  # [S, N]
        weights = tl.exp2(logits - row_lse[None, :])
        ds = weights * (dot(values, tl.trans(grad)) - row_delta[None, :])
        acc_v += dot_of_small(weights, grad)
        acc_k += dot_of_small(ds, queries)
        acc_bias += tl.sum(ds, 1)

    partial_row = split * batch * num_strata + token
    store_rows(partial_k, partial_row, heads, head, valid, acc_k * scale, WIDTH, BLOCK_D)
    store_rows(partial_v, partial_row, heads, head, valid, acc_v, WIDTH, BLOCK_D)
    if strata_bias is not None:
        store_scalars(partial_bias, partial_row, heads, head, valid, acc_bias)


@triton.jit
def sum_splits_kernel(partial, out, size, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """out[i] = sum over the splits of partial[split, i], in order."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.float32)
    pointers = partial + i
    for _ in range(SPLITS):
        acc += tl.load(pointers, mask=i < size, other=0.0)
        pointers += size
    tl.store(out + i, acc.to(out.dtype.element_ty), mask=i < size)
