"""Forward pass: attention of rows to their windows and strata.

Logits are computed for up to 16 queries at a time, one column each: the softmax of all columns is
one vector operation after another, keys and values are needed in rows as they are, and only queries
and outputs are transposed. Strata and the rows of a window lie below each other in one table, where
a head's numbers fill whole cache lines.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stratified3d.jit import compiled
from stratified3d.ops.stratified_attention.cpu.products import product
from stratified3d.ops.stratified_attention.cpu.vectors import softmax_columns

LANES = 16  # columns of a table; for few queries only the first half is used
LINE = 4 * LANES  # bytes of its rows
_softmax_16 = softmax_columns(16, LANES)
_softmax_8 = softmax_columns(8, LANES)


class Strata(NamedTuple):
    """Of one sample: k, v [M, H, D] and bias [H, M] of the logits, fp32."""

    k: np.ndarray
    v: np.ndarray
    bias: np.ndarray


@compiled
def attend(q, k, v, window_end, strata, scale, first, last, longest, out, lse):
    """Write the output and the log-sum-exp of rows first to last, whole windows of one sample.

    Args:
        q, k, v: [N, H, D] fp32, D a multiple of 8.
        window_end: [N] end of each row's window.
        strata: Strata of the sample.
        scale: of the products.
        first, last: rows.
        longest: rows of the longest of these windows.
        out: [N, H, D]; lse: [N, H].
    """
    heads, width = q.shape[1:]
    tokens = len(strata.k)
    queries = np.zeros((width, LANES), np.float32)
    keys = np.zeros((tokens + longest, width), np.float32)
    values = np.zeros((tokens + longest, width), np.float32)
    bias = np.zeros(tokens + longest, np.float32)  # 0 for the keys of the window
    logits = np.zeros((tokens + longest, LANES), np.float32)
    sums = np.zeros((width, LANES), np.float32)
    highest = np.zeros(LANES, np.float32)
    total = np.zeros(LANES, np.float32)

    # addresses, because passing arrays counts references
    softmax_tables = (logits.ctypes.data, bias.ctypes.data, highest.ctypes.data, total.ctypes.data)
    query_columns = (queries.ctypes.data, LINE)
    key_rows = (keys.ctypes.data, 4 * width, 4)
    value_columns = (values.ctypes.data, 4, 4 * width)
    logit_rows = (logits.ctypes.data, LINE)
    outputs = (sums.ctypes.data, LINE)
    for h in range(heads):
        bias[:tokens] = strata.bias[h]
        load_rows(strata.k, 0, tokens, h, keys, 0)
        load_rows(strata.v, 0, tokens, h, values, 0)
        start = first
        while start < last:
            end = window_end[start]
            count = tokens + end - start
            load_rows(k, start, end, h, keys, tokens)
            load_rows(v, start, end, h, values, tokens)
            for row in range(start, end, LANES):
                used = min(LANES, end - row)
                lanes = 16 if used > 8 else 8
                load_columns(q, row, used, h, scale, queries)
                product((count, width, lanes), key_rows, query_columns, logit_rows, True)
                _softmax(softmax_tables, count, lanes)
                product((width, count, lanes), value_columns, logit_rows, outputs, True)
                _store_outputs(sums, highest, total, row, used, h, out, lse)
            start = end


@compiled
def load_rows(table, start, end, head, rows, offset):
    """Copy rows start to end of a head [N, H, D] to rows [n, D] from an offset on."""
    for i in range(end - start):
        for d in range(table.shape[2]):
            rows[offset + i, d] = table[start + i, head, d]


@compiled
def load_columns(table, row, count, head, scale, columns):
    """Copy rows of a head [N, H, D] into the first columns [D, LANES], scaled; others become 0."""
    width = table.shape[2]
    for i in range(count):
        for d in range(width):
            columns[d, i] = scale * table[row + i, head, d]
    if count < LANES:
        columns[:, count:] = 0


@compiled
def _store_outputs(sums, highest, total, row, count, head, out, lse):
    """Write the outputs and log-sum-exps of some queries from columns of weighted sums."""
    for i in range(count):
        lse[row + i, head] = highest[i] + np.log(total[i])
        for d in range(out.shape[2]):
            out[row + i, head, d] = sums[d, i] / total[i]


@compiled
def _softmax(tables, keys, lanes):
    """Turn logits of some keys into weights, see `softmax_columns`.

    Args:
        tables: addresses of logits, bias, highest and total.
    """
    logits, bias, highest, total = tables
    if lanes == 16:
        _softmax_16(logits, bias, keys, highest, total)
    else:
        _softmax_8(logits, bias, keys, highest, total)
