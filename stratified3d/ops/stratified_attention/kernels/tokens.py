"""Kernels in which the tokens of a sample meet all its rows: collection, its gradients, gradients
of strata.

A sample's rows are cut into a fixed number of splits, so that the device is full at batch 1; every
split writes a partial result, and one more kernel adds the partial results in order. No atomics:
results repeat bit by bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stratified3d.ops.stratified_attention.kernels.tiles import (
    LOG2_E,
    load_rows,
    load_scalars,
    log_sum,
    product,
    product_of_small,
    sample_of,
    softmax_step,
    split_range,
    store_rows,
    store_scalars,
)


@triton.jit
def _place(heads, num_strata, BLOCK_S: tl.constexpr):
    """(sample, head, token rows [BLOCK_S] of [B M], which of them exist) of this program."""
    blocks = tl.cdiv(num_strata, BLOCK_S)
    pid = tl.program_id(0)
    sample = pid // (blocks * heads)
    token = pid // heads % blocks * BLOCK_S + tl.arange(0, BLOCK_S)
    return sample, pid % heads, sample * num_strata + token, token < num_strata


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
    sample, head, token, there = _place(heads, num_strata, BLOCK_S)
    split = tl.program_id(1)
    low, high = split_range(batch_offsets, sample, split, SPLITS, BLOCK_N)
    queries = load_rows(q, token, q_stride, head, there, WIDTH, BLOCK_D)
    acc = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_S], -float('inf'), tl.float32)
    total = tl.zeros([BLOCK_S], tl.float32)
    for first in range(low, high, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        keys = load_rows(k, i, k_stride, head, i < high, WIDTH, BLOCK_D)
        values = load_rows(v, i, v_stride, head, i < high, WIDTH, BLOCK_D)
        logits = product(queries, tl.trans(keys)) * (scale * LOG2_E)
        acc, peak, total = softmax_step(
            acc, peak, total, tl.where((i < high)[None, :], logits, -float('inf')), values
        )
    place = split * batch * num_strata + token
    store_rows(
        partial_out,
        place,
        heads,
        head,
        there,
        acc / tl.where(total == 0, 1.0, total)[:, None],
        WIDTH,
        BLOCK_D,
    )
    store_scalars(
        partial_lse,
        place,
        heads,
        head,
        there,
        tl.where(total == 0, -float('inf'), peak + tl.log2(total)),
    )


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
    """Merge the splits of one token and head: the mean of their outputs, weighted by exp2 of their
    log-sum-exp."""
    place = tl.program_id(0)
    split = tl.arange(0, SPLITS)
    d = tl.arange(0, BLOCK_D)
    part = tl.load(partial_lse + split * tokens + place)  # [S]
    peak = tl.max(part, 0)
    shift = tl.where(peak == -float('inf'), 0.0, peak)
    weights = tl.exp2(part - shift)
    total = tl.sum(weights, 0)
    outs = tl.load(
        partial_out + (split * tokens + place).to(tl.int64)[:, None] * WIDTH + d[None, :],
        mask=(d < WIDTH)[None, :],
        other=0.0,
    )
    merged = tl.sum(outs * weights[:, None], 0) / tl.where(total == 0, 1.0, total)
    tl.store(out + place.to(tl.int64) * WIDTH + d, merged.to(out.dtype.element_ty), mask=d < WIDTH)
    tl.store(lse + place, log_sum(peak, total))


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
    sample, head, token, there = _place(heads, num_strata, BLOCK_S)
    split = tl.program_id(1)
    low, high = split_range(batch_offsets, sample, split, SPLITS, BLOCK_N)
    queries = load_rows(q, token, q_stride, head, there, WIDTH, BLOCK_D)
    grad = load_rows(grad_out, token, grad_stride, head, there, WIDTH, BLOCK_D)
    outputs = load_rows(out, token, heads * WIDTH, head, there, WIDTH, BLOCK_D)
    token_lse = load_scalars(lse, token, heads, head, there, float('inf'))
    delta = tl.sum(grad.to(tl.float32) * outputs.to(tl.float32), 1)
    acc = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    for first in range(low, high, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        keys = load_rows(k, i, k_stride, head, i < high, WIDTH, BLOCK_D)
        values = load_rows(v, i, v_stride, head, i < high, WIDTH, BLOCK_D)
        weights = tl.exp2(product(queries, tl.trans(keys)) * (scale * LOG2_E) - token_lse[:, None])
        slopes = weights * (product(grad, tl.trans(values)) - delta[:, None])
        acc += product_of_small(tl.where((i < high)[None, :], slopes, 0.0), keys)
    store_rows(
        partial, split * batch * num_strata + token, heads, head, there, acc * scale, WIDTH, BLOCK_D
    )


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
    head = tl.program_id(0) % heads
    first_row = tl.program_id(0) // heads * BLOCK_M
    last_row = tl.minimum(first_row + BLOCK_M, n) - 1
    row = first_row + tl.arange(0, BLOCK_M)
    valid = row < n
    keys = load_rows(k, row, k_stride, head, valid, WIDTH, BLOCK_D)
    values = load_rows(v, row, v_stride, head, valid, WIDTH, BLOCK_D)
    acc_k = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    first = sample_of(batch_offsets, first_row, batch, BLOCK_B)
    last = tl.minimum(sample_of(batch_offsets, last_row, batch, BLOCK_B), batch - 1)
    for b in range(first, last + 1):
        mine = (row >= tl.load(batch_offsets + b)) & (row < tl.load(batch_offsets + b + 1))
        for m in range(0, num_strata, BLOCK_S):
            token = m + tl.arange(0, BLOCK_S)
            there = token < num_strata
            token += b * num_strata
            queries = load_rows(q, token, q_stride, head, there, WIDTH, BLOCK_D)
            grad = load_rows(grad_out, token, grad_stride, head, there, WIDTH, BLOCK_D)
            outputs = load_rows(out, token, heads * WIDTH, head, there, WIDTH, BLOCK_D)
            delta = tl.sum(grad.to(tl.float32) * outputs.to(tl.float32), 1)
            token_lse = load_scalars(lse, token, heads, head, there, float('inf'))
            weights = tl.exp2(
                product(keys, tl.trans(queries)) * (scale * LOG2_E) - token_lse[None, :]
            )
            slopes = weights * (product(values, tl.trans(grad)) - delta[None, :])
            # a row belongs to one sample: choosing whole rows keeps the others free of this
            # sample's NaN
            acc_v = tl.where(mine[:, None], acc_v + product_of_small(weights, grad), acc_v)
            acc_k = tl.where(mine[:, None], acc_k + product_of_small(slopes, queries), acc_k)
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
    HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """What one split of the rows adds to the gradients of BLOCK_S strata keys, values and
    biases."""
    sample, head, token, there = _place(heads, num_strata, BLOCK_S)
    split = tl.program_id(1)
    low, high = split_range(batch_offsets, sample, split, SPLITS, BLOCK_N)
    keys = load_rows(strata_k, token, sk_stride, head, there, WIDTH, BLOCK_D)
    values = load_rows(strata_v, token, sv_stride, head, there, WIDTH, BLOCK_D)
    bias = tl.zeros([BLOCK_S], tl.float32)
    if HAS_BIAS:
        bias = load_scalars(strata_bias, token, heads, head, there, 0.0) * LOG2_E
    acc_k = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    acc_bias = tl.zeros([BLOCK_S], tl.float32)
    for first in range(low, high, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        queries = load_rows(q, i, q_stride, head, i < high, WIDTH, BLOCK_D)
        grad = load_rows(grad_out, i, grad_stride, head, i < high, WIDTH, BLOCK_D)
        row_lse = load_scalars(
            lse, i, heads, head, i < high, float('inf')
        )  # weights past the end are zeros
        row_delta = load_scalars(delta, i, heads, head, i < high, 0.0)
        logits = product(keys, tl.trans(queries)) * (scale * LOG2_E) + bias[:, None]
        weights = tl.exp2(logits - row_lse[None, :])
        slopes = weights * (product(values, tl.trans(grad)) - row_delta[None, :])
        acc_v += product_of_small(weights, grad)
        acc_k += product_of_small(slopes, queries)
        acc_bias += tl.sum(slopes, 1)
    place = split * batch * num_strata + token
    store_rows(partial_k, place, heads, head, there, acc_k * scale, WIDTH, BLOCK_D)
    store_rows(partial_v, place, heads, head, there, acc_v, WIDTH, BLOCK_D)
    if HAS_BIAS:
        store_scalars(partial_bias, place, heads, head, there, acc_bias)


@triton.jit
def sum_splits_kernel(partial, out, size, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """out[i] = sum over the splits of partial[split, i], in order."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    place = partial + i
    for _ in range(SPLITS):
        total += tl.load(place, mask=i < size, other=0.0)
        place += size
    tl.store(out + i, total.to(out.dtype.element_ty), mask=i < size)
