"""Kernels for the gradients of a tile of rows: of its queries, and of its keys and values.

Both repeat the forward pass's logits; the weights follow from the stored log-sum-exp. A key's
window is its query's window, so keys find their queries in the same range of rows. NaN is kept in
its window as in the forward pass (rows.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

from stratified3d.ops.stratified_attention.kernels.tiles import (
    LOG2_E,
    dot,
    finite_only,
    has_nan,
    is_in_sample,
    load_rows,
    load_scalars,
    load_windows,
    nan_where_not_finite,
    row_tile,
    sample_range,
    store_rows,
    store_scalars,
)


@triton.jit(do_not_specialize=['n'])
def attend_backward_rows_kernel(
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
    grad_out,
    grad_q,
    delta,
    n,
    heads,
    batch,
    num_strata,
    q_stride,
    k_stride,
    v_stride,
    sk_stride,
    sv_stride,
    grad_stride,
    scale,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """grad_q and delta = grad_out . out of BLOCK_M rows of one head."""
    head, row, valid, first_row, last_row = row_tile(n, heads, BLOCK_M)
    queries = load_rows(q, row, q_stride, head, valid, WIDTH, BLOCK_D)
    grad = load_rows(grad_out, row, grad_stride, head, valid, WIDTH, BLOCK_D)
    outputs = load_rows(out, row, heads * WIDTH, head, valid, WIDTH, BLOCK_D)
    row_lse = load_scalars(lse, row, heads, head, valid, float('inf'))
    row_delta = tl.sum(grad.to(tl.float32) * outputs.to(tl.float32), 1)
    store_scalars(delta, row, heads, head, valid, row_delta)

    tile = (queries, grad, row_lse, row_delta, head, scale * LOG2_E)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if k is not None:
        window = load_windows(window_start, window_end, row, valid, first_row, last_row)
        acc = _query_gradient(tile, window, k, v, k_stride, v_stride, False, WIDTH, BLOCK_N)
        if has_nan(acc):
            acc = _query_gradient(tile, window, k, v, k_stride, v_stride, True, WIDTH, BLOCK_N)
    if strata_k is not None:
        samples = sample_range(batch_offsets, first_row, last_row, batch, BLOCK_B)
        strata = (strata_k, strata_v, strata_bias, sk_stride, sv_stride, num_strata, heads)
        acc = _add_strata(acc, tile, row, samples, batch_offsets, strata, WIDTH, BLOCK_S)
    store_rows(grad_q, row, heads, head, valid, acc * scale, WIDTH, BLOCK_D)


@triton.jit
def _query_gradient(
    tile,
    window,
    k,
    v,
    k_stride,
    v_stride,
    CAREFUL: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Gradient of a tile of queries [M, D] from the keys of their windows, before the scale."""
    queries, grad, lse, delta, head, scale = tile
    start, end, lo, hi = window
    BLOCK_M: tl.constexpr = queries.shape[0]
    BLOCK_D: tl.constexpr = queries.shape[1]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(lo, hi, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        valid = j < hi
        keys = load_rows(k, j, k_stride, head, valid, WIDTH, BLOCK_D)  # [N, D]
        values = load_rows(v, j, v_stride, head, valid, WIDTH, BLOCK_D)
        logits = dot(queries, tl.trans(keys)) * scale  # [M, N]
        weights = tl.exp2(logits - lse[:, None])
        ds = weights * (dot(grad, tl.trans(values)) - delta[:, None])

        in_window = (j[None, :] >= start[:, None]) & (j[None, :] < end[:, None])
        if CAREFUL:
            ds += nan_where_not_finite(keys)[None, :]
            keys = finite_only(keys)
        acc += dot(tl.where(in_window, ds, 0.0), keys)
    return acc


@triton.jit
def _add_strata(
    acc,
    tile,
    row,
    samples,
    batch_offsets,
    strata,
    WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """acc [M, D] plus the gradient of a tile of queries from the strata of their samples."""
    queries, grad, lse, delta, head, scale = tile
    strata_k, strata_v, strata_bias, sk_stride, sv_stride, num_strata, heads = strata
    first_sample, end_sample = samples
    BLOCK_D: tl.constexpr = queries.shape[1]
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

            weights = tl.exp2(logits - lse[:, None])
            ds = weights * (dot(grad, tl.trans(values)) - delta[:, None])
            ds = tl.where(valid[None, :], ds, 0.0)
            acc = tl.where(in_sample[:, None], acc + dot(ds, keys), acc)
    return acc


@triton.jit(do_not_specialize=['n'])
def attend_backward_keys_kernel(
    q,
    k,
    v,
    window_start,
    window_end,
    lse,
    delta,
    grad_out,
    grad_k,
    grad_v,
    n,
    heads,
    q_stride,
    k_stride,
    v_stride,
    grad_stride,
    scale,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """grad_k and grad_v of BLOCK_M rows of one head."""
    head, row, valid, first_row, last_row = row_tile(n, heads, BLOCK_M)
    window = load_windows(window_start, window_end, row, valid, first_row, last_row)
    keys = load_rows(k, row, k_stride, head, valid, WIDTH, BLOCK_D)
    values = load_rows(v, row, v_stride, head, valid, WIDTH, BLOCK_D)

    tile = (keys, values, heads, head, scale * LOG2_E)
    tables = (q, grad_out, lse, delta, q_stride, grad_stride)
    acc_k, acc_v = _key_gradients(tile, window, tables, False, WIDTH, BLOCK_N)
    if has_nan(acc_k) | has_nan(acc_v):
        acc_k, acc_v = _key_gradients(tile, window, tables, True, WIDTH, BLOCK_N)

    store_rows(grad_k, row, heads, head, valid, acc_k * scale, WIDTH, BLOCK_D)
    store_rows(grad_v, row, heads, head, valid, acc_v, WIDTH, BLOCK_D)


@triton.jit
def _key_gradients(
    tile, window, tables, CAREFUL: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Gradients of a tile of keys [M, D] (before the scale) and of its values."""
    keys, values, heads, head, scale = tile
    q, grad_out, lse, delta, q_stride, grad_stride = tables
    start, end, lo, hi = window
    BLOCK_M: tl.constexpr = keys.shape[0]
    BLOCK_D: tl.constexpr = keys.shape[1]
    acc_k = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(lo, hi, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        valid = i < hi
        queries = load_rows(q, i, q_stride, head, valid, WIDTH, BLOCK_D)  # [N, D]
        grad = load_rows(grad_out, i, grad_stride, head, valid, WIDTH, BLOCK_D)
        row_lse = load_scalars(lse, i, heads, head, valid, float('inf'))
        row_delta = load_scalars(delta, i, heads, head, valid, 0.0)
        if CAREFUL:
            # NaN where the incoming gradient or the query is not finite
            row_lse += row_delta - row_delta + nan_where_not_finite(queries)
        logits = dot(keys, tl.trans(queries)) * scale  # [M, N]
        weights = tl.exp2(logits - row_lse[None, :])
        ds = weights * (dot(values, tl.trans(grad)) - row_delta[None, :])
        if CAREFUL:
            queries = finite_only(queries)
            grad = finite_only(grad)

        in_window = (i[None, :] >= start[:, None]) & (i[None, :] < end[:, None])
        acc_v += dot(tl.where(in_window, weights, 0.0), grad)
        acc_k += dot(tl.where(in_window, ds, 0.0), queries)
    return acc_k, acc_v
