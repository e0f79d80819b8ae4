"""Kernels in which a tile of rows attends: to its windows, then to the strata of the samples it
touches.

A tile of rows in window order covers many windows. It reads the keys from its first row's
window_start to its last row's window_end, each row masks what is not its own window, and the same
softmax goes on over the strata.

A masked weight is zero, but zero times NaN is NaN: where a tile's windows end in NaN they are done
again with what is not finite taken out of the products. Rows that own the NaN keep it, because
their logits or log-sum-exp hold it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stratified3d.ops.stratified_attention.kernels.tiles import (
    LOG2_E,
    finite_only,
    has_nan,
    load_rows,
    load_scalars,
    log_sum,
    product,
    sample_of,
    softmax_step,
    store_rows,
    store_scalars,
)


@triton.jit
def _attend_windows(
    queries,
    start,
    end,
    low,
    high,
    k,
    v,
    k_stride,
    v_stride,
    head,
    scale,
    CAREFUL: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Softmax state of a tile of queries after the keys of rows low to high."""
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_M], -float('inf'), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for first in range(low, high, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        keys = load_rows(k, j, k_stride, head, j < high, WIDTH, BLOCK_D)
        values = load_rows(v, j, v_stride, head, j < high, WIDTH, BLOCK_D)
        logits = product(queries, tl.trans(keys)) * scale
        if CAREFUL:
            logits += tl.sum((values - values).to(tl.float32), 1)[
                None, :
            ]  # NaN where a value is not finite
            values = finite_only(values)
        seen = (j[None, :] >= start[:, None]) & (j[None, :] < end[:, None])
        acc, peak, total = softmax_step(
            acc, peak, total, tl.where(seen, logits, -float('inf')), values
        )
    return acc, peak, total


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
    HAS_WINDOW: tl.constexpr,
    HAS_STRATA: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """out and lse of BLOCK_M rows of one head."""
    head = tl.program_id(0) % heads
    first_row = tl.program_id(0) // heads * BLOCK_M
    last_row = tl.minimum(first_row + BLOCK_M, n) - 1
    row = first_row + tl.arange(0, BLOCK_M)
    valid = row < n
    scale = scale * LOG2_E
    queries = load_rows(q, row, q_stride, head, valid, WIDTH, BLOCK_D)
    if HAS_WINDOW:
        start = tl.load(window_start + row, mask=valid, other=0)
        end = tl.load(window_end + row, mask=valid, other=0)
        low, high = tl.load(window_start + first_row), tl.load(window_end + last_row)
        acc, peak, total = _attend_windows(
            queries,
            start,
            end,
            low,
            high,
            k,
            v,
            k_stride,
            v_stride,
            head,
            scale,
            False,
            WIDTH,
            BLOCK_D,
            BLOCK_M,
            BLOCK_N,
        )
        if has_nan(acc):
            acc, peak, total = _attend_windows(
                queries,
                start,
                end,
                low,
                high,
                k,
                v,
                k_stride,
                v_stride,
                head,
                scale,
                True,
                WIDTH,
                BLOCK_D,
                BLOCK_M,
                BLOCK_N,
            )
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        peak = tl.full([BLOCK_M], -float('inf'), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
    if HAS_STRATA:
        first = sample_of(batch_offsets, first_row, batch, BLOCK_B)
        last = tl.minimum(sample_of(batch_offsets, last_row, batch, BLOCK_B), batch - 1)
        for b in range(first, last + 1):
            mine = (row >= tl.load(batch_offsets + b)) & (row < tl.load(batch_offsets + b + 1))
            for m in range(0, num_strata, BLOCK_S):
                token = m + tl.arange(0, BLOCK_S)
                there = token < num_strata
                token += b * num_strata
                keys = load_rows(strata_k, token, sk_stride, head, there, WIDTH, BLOCK_D)
                values = load_rows(strata_v, token, sv_stride, head, there, WIDTH, BLOCK_D)
                logits = product(queries, tl.trans(keys)) * scale
                if HAS_BIAS:
                    logits += (
                        load_scalars(strata_bias, token, heads, head, there, 0.0)[None, :] * LOG2_E
                    )
                logits = tl.where(there[None, :], logits, -float('inf'))
                # a row belongs to one sample: choosing whole rows keeps the others free of this
                # sample's NaN
                acc_b, peak_b, total_b = softmax_step(acc, peak, total, logits, values)
                acc = tl.where(mine[:, None], acc_b, acc)
                peak, total = tl.where(mine, peak_b, peak), tl.where(mine, total_b, total)
    store_rows(
        out,
        row,
        heads,
        head,
        valid,
        acc / tl.where(total == 0, 1.0, total)[:, None],
        WIDTH,
        BLOCK_D,
    )
    store_scalars(lse, row, heads, head, valid, log_sum(peak, total))


@triton.jit
def _query_gradient(
    queries,
    grad,
    lse,
    delta,
    start,
    end,
    low,
    high,
    k,
    v,
    k_stride,
    v_stride,
    head,
    scale,
    CAREFUL: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """What the windows' keys add to the gradient of a tile of queries, before the scale."""
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(low, high, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        keys = load_rows(k, j, k_stride, head, j < high, WIDTH, BLOCK_D)
        values = load_rows(v, j, v_stride, head, j < high, WIDTH, BLOCK_D)
        weights = tl.exp2(product(queries, tl.trans(keys)) * scale - lse[:, None])
        slopes = weights * (product(grad, tl.trans(values)) - delta[:, None])
        seen = (j[None, :] >= start[:, None]) & (j[None, :] < end[:, None])
        if CAREFUL:
            slopes += tl.sum((keys - keys).to(tl.float32), 1)[None, :]
            keys = finite_only(keys)
        acc += product(tl.where(seen, slopes, 0.0), keys)
    return acc


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
    HAS_WINDOW: tl.constexpr,
    HAS_STRATA: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """grad_q and delta = grad_out . out of BLOCK_M rows of one head."""
    head = tl.program_id(0) % heads
    first_row = tl.program_id(0) // heads * BLOCK_M
    last_row = tl.minimum(first_row + BLOCK_M, n) - 1
    row = first_row + tl.arange(0, BLOCK_M)
    valid = row < n
    log_scale = scale * LOG2_E
    queries = load_rows(q, row, q_stride, head, valid, WIDTH, BLOCK_D)
    grad = load_rows(grad_out, row, grad_stride, head, valid, WIDTH, BLOCK_D)
    outputs = load_rows(out, row, heads * WIDTH, head, valid, WIDTH, BLOCK_D)
    row_lse = load_scalars(lse, row, heads, head, valid, float('inf'))
    row_delta = tl.sum(grad.to(tl.float32) * outputs.to(tl.float32), 1)
    store_scalars(delta, row, heads, head, valid, row_delta)
    if HAS_WINDOW:
        start = tl.load(window_start + row, mask=valid, other=0)
        end = tl.load(window_end + row, mask=valid, other=0)
        low, high = tl.load(window_start + first_row), tl.load(window_end + last_row)
        acc = _query_gradient(
            queries,
            grad,
            row_lse,
            row_delta,
            start,
            end,
            low,
            high,
            k,
            v,
            k_stride,
            v_stride,
            head,
            log_scale,
            False,
            WIDTH,
            BLOCK_D,
            BLOCK_M,
            BLOCK_N,
        )
        if has_nan(acc):
            acc = _query_gradient(
                queries,
                grad,
                row_lse,
                row_delta,
                start,
                end,
                low,
                high,
                k,
                v,
                k_stride,
                v_stride,
                head,
                log_scale,
                True,
                WIDTH,
                BLOCK_D,
                BLOCK_M,
                BLOCK_N,
            )
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if HAS_STRATA:
        first = sample_of(batch_offsets, first_row, batch, BLOCK_B)
        last = tl.minimum(sample_of(batch_offsets, last_row, batch, BLOCK_B), batch - 1)
        for b in range(first, last + 1):
            mine = (row >= tl.load(batch_offsets + b)) & (row < tl.load(batch_offsets + b + 1))
            for m in range(0, num_strata, BLOCK_S):
                token = m + tl.arange(0, BLOCK_S)
                there = token < num_strata
                token += b * num_strata
                keys = load_rows(strata_k, token, sk_stride, head, there, WIDTH, BLOCK_D)
                values = load_rows(strata_v, token, sv_stride, head, there, WIDTH, BLOCK_D)
                logits = product(queries, tl.trans(keys)) * log_scale
                if HAS_BIAS:
                    logits += (
                        load_scalars(strata_bias, token, heads, head, there, 0.0)[None, :] * LOG2_E
                    )
                weights = tl.exp2(logits - row_lse[:, None])
                slopes = weights * (product(grad, tl.trans(values)) - row_delta[:, None])
                slopes = tl.where(there[None, :], slopes, 0.0)
                acc = tl.where(mine[:, None], acc + product(slopes, keys), acc)
    store_rows(grad_q, row, heads, head, valid, acc * scale, WIDTH, BLOCK_D)


@triton.jit
def _key_gradients(
    keys,
    values,
    start,
    end,
    low,
    high,
    q,
    grad_out,
    lse,
    delta,
    q_stride,
    grad_stride,
    heads,
    head,
    scale,
    CAREFUL: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Gradients of a tile of keys (before the scale) and of its values from the queries of rows low
    to high."""
    acc_k = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(low, high, BLOCK_N):
        i = first + tl.arange(0, BLOCK_N)
        queries = load_rows(q, i, q_stride, head, i < high, WIDTH, BLOCK_D)
        grad = load_rows(grad_out, i, grad_stride, head, i < high, WIDTH, BLOCK_D)
        row_lse = load_scalars(lse, i, heads, head, i < high, float('inf'))
        row_delta = load_scalars(delta, i, heads, head, i < high, 0.0)
        if CAREFUL:
            # NaN where the incoming gradient or the query is not finite
            row_lse += row_delta - row_delta + tl.sum((queries - queries).to(tl.float32), 1)
        weights = tl.exp2(product(keys, tl.trans(queries)) * scale - row_lse[None, :])
        slopes = weights * (product(values, tl.trans(grad)) - row_delta[None, :])
        if CAREFUL:
            queries, grad = finite_only(queries), finite_only(grad)
        # a key's window is its query's window
        seen = (i[None, :] >= start[:, None]) & (i[None, :] < end[:, None])
        acc_v += product(tl.where(seen, weights, 0.0), grad)
        acc_k += product(tl.where(seen, slopes, 0.0), queries)
    return acc_k, acc_v


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
    head = tl.program_id(0) % heads
    first_row = tl.program_id(0) // heads * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    valid = row < n
    start = tl.load(window_start + row, mask=valid, other=0)
    end = tl.load(window_end + row, mask=valid, other=0)
    low = tl.load(window_start + first_row)
    high = tl.load(window_end + tl.minimum(first_row + BLOCK_M, n) - 1)
    keys = load_rows(k, row, k_stride, head, valid, WIDTH, BLOCK_D)
    values = load_rows(v, row, v_stride, head, valid, WIDTH, BLOCK_D)
    acc_k, acc_v = _key_gradients(
        keys,
        values,
        start,
        end,
        low,
        high,
        q,
        grad_out,
        lse,
        delta,
        q_stride,
        grad_stride,
        heads,
        head,
        scale * LOG2_E,
        False,
        WIDTH,
        BLOCK_D,
        BLOCK_M,
        BLOCK_N,
    )
    if has_nan(acc_k) | has_nan(acc_v):
        acc_k, acc_v = _key_gradients(
            keys,
            values,
            start,
            end,
            low,
            high,
            q,
            grad_out,
            lse,
            delta,
            q_stride,
            grad_stride,
            heads,
            head,
            scale * LOG2_E,
            True,
            WIDTH,
            BLOCK_D,
            BLOCK_M,
            BLOCK_N,
        )
    store_rows(grad_k, row, heads, head, valid, acc_k * scale, WIDTH, BLOCK_D)
    store_rows(grad_v, row, heads, head, valid, acc_v, WIDTH, BLOCK_D)
