"""Kernel in which a tile of rows attends to its windows and to the strata of its samples.

A tile of rows in window order covers many windows. It reads the keys from its first row's
window_start to its last row's window_end, and each row masks what lies outside its own window. The
same softmax then continues over the strata.

A masked weight is zero, but zero times NaN is NaN. Where the result of a tile's windows contains
NaN, they are computed again with everything that is not finite left out of the products. Rows that
own the NaN keep it, because their logits contain it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stratified3d.ops.stratified_attention.kernels.tiles import (
    LOG2_E,
    dot,
    empty_softmax,
    finite_only,
    has_nan,
    is_in_sample,
    load_rows,
    load_scalars,
    load_windows,
    log_sum,
    nan_where_not_finite,
    normalize,
    row_tile,
    sample_range,
    softmax_step,
    store_rows,
    store_scalars,
)


@triton.jit(do_not_specialize=['n'])
def attend_kernel(
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
    n,
    heads,
    batch,
    num_strata,
    q_stride,
    k_stride,
    v_stride,
    sk_stride,
    sv_stride,
    scale,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """out and lse of BLOCK_M rows of one head; without k no windows, without strata_k no strata."""
    head, row, valid, first_row, last_row = row_tile(n, heads, BLOCK_M)
    scale = scale * LOG2_E
    queries = load_rows(q, row, q_stride, head, valid, WIDTH, BLOCK_D)

    if k is not None:
        window = load_windows(window_start, window_end, row, valid, first_row, last_row)
        acc, row_max, row_sum = _attend_windows(
            queries, window, k, v, k_stride, v_stride, head, scale, False, WIDTH, BLOCK_N
        )
        if has_nan(acc):
            acc, row_max, row_sum = _attend_windows(
                queries, window, k, v, k_stride, v_stride, head, scale, True, WIDTH, BLOCK_N
            )
    else:
        acc, row_max, row_sum = empty_softmax(BLOCK_M, BLOCK_D)

    if strata_k is not None:
        samples = sample_range(batch_offsets, first_row, last_row, batch, BLOCK_B)
        state = (acc, row_max, row_sum)
        strata = (strata_k, strata_v, strata_bias, sk_stride, sv_stride, num_strata)
        acc, row_max, row_sum = _attend_strata(
            state, queries, row, samples, batch_offsets, strata, heads, head, scale, WIDTH, BLOCK_S
        )

    store_rows(out, row, heads, head, valid, normalize(acc, row_sum), WIDTH, BLOCK_D)
    store_scalars(lse, row, heads, head, valid, log_sum(row_max, row_sum))


@triton.jit
def _attend_windows(
    queries,
    window,
    k,
    v,
    k_stride,
    v_stride,
    head,
    scale,
    CAREFUL: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Softmax state of a tile of queries [M, D] after the keys of their windows."""
    BLOCK_M: tl.constexpr = queries.shape[0]
    BLOCK_D: tl.constexpr = queries.shape[1]
    start, end, lo, hi = window
    acc, row_max, row_sum = empty_softmax(BLOCK_M, BLOCK_D)
    for first in range(lo, hi, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        valid = j < hi
        keys = load_rows(k, j, k_stride, head, valid, WIDTH, BLOCK_D)  # [N, D]
        values = load_rows(v, j, v_stride, head, valid, WIDTH, BLOCK_D)
        logits = dot(queries, tl.trans(keys)) * scale  # [M, N]
        if CAREFUL:
            logits += nan_where_not_finite(values)[None, :]
            values = finite_only(values)

        in_window = (j[None, :] >= start[:, None]) & (j[None, :] < end[:, None])
        logits = tl.where(in_window, logits, -float('inf'))
        acc, row_max, row_sum = softmax_step(acc, row_max, row_sum, logits, values)
    return acc, row_max, row_sum


@triton.jit
def _attend_strata(
    state,
    queries,
    row,
    samples,
    batch_offsets,
    strata,
    heads,
    head,
    scale,
    WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Softmax state of a tile of queries [M, D] after the strata of the samples they lie in."""
    BLOCK_D: tl.constexpr = queries.shape[1]
    acc, row_max, row_sum = state
    strata_k, strata_v, strata_bias, sk_stride, sv_stride, num_strata = strata
    first_sample, end_sample = samples
    for b in range(first_sample, end_sample):
        in_sample = is_in_sample(row, batch_offsets, b)
        for m in range(0, num_strata, BLOCK_S):
            token = m + tl.arange(0, BLOCK_S)
            valid = token < num_strata
            token += b * num_strata
            keys = load_rows(strata_k, token, sk_stride, head, valid, WIDTH, BLOCK_D)  # [S, D]
            values = load_rows(strata_v, token, sv_stride, head, valid, WIDTH, BLOCK_D)
            logits = dot(queries, tl.trans(keys)) * scale  # [M, S]
            if strata_bias is not None:
                bias = load_scalars(strata_bias, token, heads, head, valid, 0.0)
                logits += bias[None, :] * LOG2_E
            logits = tl.where(valid[None, :], logits, -float('inf'))

            # whole rows are chosen, which keeps this sample's NaN out of the rows of the others
            acc_b, max_b, sum_b = softmax_step(acc, row_max, row_sum, logits, values)
            acc = tl.where(in_sample[:, None], acc_b, acc)
            row_max = tl.where(in_sample, max_b, row_max)
            row_sum = tl.where(in_sample, sum_b, row_sum)
    return acc, row_max, row_sum
