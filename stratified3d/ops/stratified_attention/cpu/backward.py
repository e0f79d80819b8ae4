"""Backward pass: the weights are computed again from the log-sum-exp (FlashAttention, Dao et al.
2022, appendix B.4), in columns as in the forward pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stratified3d.jit import compiled
from stratified3d.ops.stratified_attention.cpu.forward import (
    LANES,
    LINE,
    load_columns,
    load_rows,
)
from stratified3d.ops.stratified_attention.cpu.products import product
from stratified3d.ops.stratified_attention.cpu.vectors import softmax_gradient_columns

_gradients_16 = softmax_gradient_columns(16, LANES)
_gradients_8 = softmax_gradient_columns(8, LANES)


class Gradients(NamedTuple):
    """q, k, v: [N, H, D]; strata_k, strata_v: [M, H, D] and strata_bias: [H, M] of some rows."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    strata_k: np.ndarray
    strata_v: np.ndarray
    strata_bias: np.ndarray


@compiled
def differentiate(
    q, k, v, window_end, strata, scale, first, last, longest, out, lse, grad, gradients
):
    """Write the gradients of rows first to last, and add up those of the strata.

    Args:
        q ... lse: as in `attend`.
        grad: [N, H, D] of the output.
        gradients: Gradients; those of the strata are of these rows alone, that of the bias is 0.
    """
    heads, width = q.shape[1:]
    tokens = len(strata.k)
    longest += tokens
    queries = np.zeros((width, LANES), np.float32)
    grads = np.zeros((width, LANES), np.float32)
    grad_queries = np.zeros((width, LANES), np.float32)
    row_lse = np.zeros(LANES, np.float32)
    delta = np.zeros(LANES, np.float32)
    bias = np.zeros(longest, np.float32)  # 0 for the keys of the window
    keys = np.zeros((longest, width), np.float32)
    values = np.zeros((longest, width), np.float32)
    grad_keys = np.zeros((longest, width), np.float32)
    grad_values = np.zeros((longest, width), np.float32)
    weights = np.zeros((longest, LANES), np.float32)
    slopes = np.zeros((longest, LANES), np.float32)  # gradients of weights, then of logits
    inputs = (_address(queries), _address(grads), _address(keys), _address(values))
    results = (_address(grad_queries), _address(grad_keys), _address(grad_values))
    tables = (_address(weights), _address(slopes))
    columns = (_address(bias), _address(row_lse), _address(delta))
    at_q, at_grad = _address(q), _address(grad)
    for h in range(heads):
        bias[:tokens] = strata.bias[h]
        load_rows(strata.k, 0, tokens, h, keys, 0)
        load_rows(strata.v, 0, tokens, h, values, 0)
        grad_keys[:tokens] = 0
        grad_values[:tokens] = 0
        start = first
        while start < last:
            end = window_end[start]
            count = tokens + end - start
            load_rows(k, start, end, h, keys, tokens)
            load_rows(v, start, end, h, values, tokens)
            grad_keys[tokens:count] = 0
            grad_values[tokens:count] = 0
            for row in range(start, end, LANES):
                used = min(LANES, end - row)
                load_columns(q, row, used, h, scale, queries)
                load_columns(grad, row, used, h, np.float32(1), grads)
                _load_sums(out, lse, grads, row, used, h, row_lse, delta)
                at = 4 * (row * heads + h) * width
                rows = (at_q + at, at_grad + at, 4 * heads * width)
                _differentiate_queries(count, width, used, inputs, columns, tables, rows, results)
                _store_columns(grad_queries, row, used, h, scale, gradients.q)
                _add_bias_gradient(slopes, used, h, gradients.strata_bias)
            _store_rows(grad_keys, tokens, start, end, h, scale, gradients.k)
            _store_rows(grad_values, tokens, start, end, h, np.float32(1), gradients.v)
            start = end
        _store_rows(grad_keys, 0, 0, tokens, h, scale, gradients.strata_k)
        _store_rows(grad_values, 0, 0, tokens, h, np.float32(1), gradients.strata_v)


@compiled
def _address(table):
    return table.ctypes.data


@compiled
def _differentiate_queries(count, width, used, inputs, columns, tables, rows, results):
    """Gradients that come from up to 16 queries.

    Args:
        count: keys; width: D; used: queries.
        inputs: addresses of queries and grads [D, LANES], keys and values [count, D].
        columns: addresses of bias [count], row_lse and delta [LANES].
        tables: addresses of weights and slopes [count, LANES], written.
        rows: addresses of the queries' rows in q and in grad, and bytes from one to the next.
        results: addresses of grad_queries [D, LANES], written, and of grad_keys and grad_values
            [count, D], added to.
    """
    queries, grads, keys, values = inputs
    weights, slopes = tables
    at_q, at_grad, row_bytes = rows
    grad_queries, grad_keys, grad_values = results
    lanes = 16 if used > 8 else 8
    line = 4 * width

    key_rows = (keys, line, 4)
    query_columns = (queries, LINE)
    value_rows = (values, line, 4)
    grad_columns = (grads, LINE)
    shape = (count, width, lanes)
    product(shape, key_rows, query_columns, (weights, LINE), True)
    product(shape, value_rows, grad_columns, (slopes, LINE), True)
    bias, row_lse, delta = columns
    if lanes == 16:
        _gradients_16(weights, slopes, bias, row_lse, delta, count)
    else:
        _gradients_8(weights, slopes, bias, row_lse, delta, count)

    key_columns = (keys, 4, line)
    shape = (width, count, lanes)
    product(shape, key_columns, (slopes, LINE), (grad_queries, LINE), True)

    slope_rows = (slopes, LINE, 4)
    weight_rows = (weights, LINE, 4)
    shape = (count, used, width)
    product(shape, slope_rows, (at_q, row_bytes), (grad_keys, line), False)
    product(shape, weight_rows, (at_grad, row_bytes), (grad_values, line), False)


@compiled
def _load_sums(out, lse, grads, row, count, h, row_lse, delta):
    """Load what belongs to each query: its log-sum-exp, and the product of output and gradient.

    Args:
        grads: [D, LANES], see `load_columns`.
        row_lse, delta: [LANES], written; a column without a query gets weights of 0.
    """
    row_lse[:] = np.inf
    delta[:] = 0
    for i in range(count):
        row_lse[i] = lse[row + i, h]
        total = np.float32(0)
        for d in range(out.shape[2]):
            total += grads[d, i] * out[row + i, h, d]
        delta[i] = total


@compiled
def _store_columns(columns, row, count, head, scale, table):
    """Copy columns [D, LANES] to rows of a head [N, H, D], scaled."""
    for i in range(count):
        for d in range(table.shape[2]):
            table[row + i, head, d] = scale * columns[d, i]


@compiled
def _store_rows(rows, offset, start, end, head, scale, table):
    """Copy rows [n, D] from an offset on to rows start to end of a head [N, H, D], scaled."""
    for i in range(end - start):
        for d in range(table.shape[2]):
            table[start + i, head, d] = scale * rows[offset + i, d]


@compiled
def _add_bias_gradient(slopes, count, head, gradient):
    """Add the gradients of the logits [n, LANES] of some queries to that of the bias [H, M]."""
    for m in range(gradient.shape[1]):
        total = np.float32(0)
        for i in range(count):
            total += slopes[m, i]
        gradient[head, m] += total
