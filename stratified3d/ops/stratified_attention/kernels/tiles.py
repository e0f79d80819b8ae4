"""Device functions that the kernels share: tiles of rows, dot products, the online softmax."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_rows(table, rows, stride, head, valid, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows [rows, BLOCK_D] of one head of a [N, H, D] table; zeros where not valid and beyond D."""
    d = tl.arange(0, BLOCK_D)
    offsets = rows.to(tl.int64)[:, None] * stride + (head * WIDTH + d)[None, :]
    mask = valid[:, None] & (d < WIDTH)[None, :]
    return tl.load(table + offsets, mask=mask, other=0.0)


@triton.jit
def store_rows(table, rows, heads, head, valid, values, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write values [rows, BLOCK_D] to one head of a contiguous [N, H, D] table."""
    d = tl.arange(0, BLOCK_D)
    offsets = rows.to(tl.int64)[:, None] * (heads * WIDTH) + (head * WIDTH + d)[None, :]
    mask = valid[:, None] & (d < WIDTH)[None, :]
    tl.store(table + offsets, values.to(table.dtype.element_ty), mask=mask)


@triton.jit
def load_scalars(table, rows, heads, head, valid, other):
    """One number per row of one head of a contiguous [N, H] table."""
    return tl.load(table + rows.to(tl.int64) * heads + head, mask=valid, other=other)


@triton.jit
def store_scalars(table, rows, heads, head, valid, values):
    """Write one number per row to one head of a contiguous [N, H] table."""
    tl.store(table + rows.to(tl.int64) * heads + head, values, mask=valid)


@triton.jit
def dot(a, b):
    """Matrix product of a and b in fp32, with a rounded to b's dtype."""
    # the interpreter's 16-bit products do not round as tensor cores do
    if INTERPRETED:
        return tl.dot(a.to(b.dtype).to(tl.float32), b.to(tl.float32))
    else:
        # three TF32 products for fp32; a single one would keep 10 bits of the mantissa
        return tl.dot(a.to(b.dtype), b, input_precision='tf32x3')


@triton.jit
def dot_of_small(a, b):
    """Matrix product of a and b where rows of a may be too small for fp16.

    Weights over very many rows are that small, so each row of a is scaled to a maximum of 1 first.
    """
    if b.dtype == tl.float16:
        size = tl.max(tl.abs(a), 1)
        size = tl.where(size > 0, size, 1.0)
        return dot(a / size[:, None], b) * size[:, None]
    else:
        return dot(a, b)


@triton.jit
def empty_softmax(BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """State of an online softmax before its first key: (acc [M, D], row_max [M], row_sum [M])."""
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    row_max = tl.full([BLOCK_M], -float('inf'), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    return acc, row_max, row_sum


@triton.jit
def softmax_step(acc, row_max, row_sum, logits, values):
    """State of an online softmax (base 2) after more keys, with logits [M, keys].

    acc [M, D] is the weighted sum of values; row_max [M] the largest logit; row_sum [M] the sum of
    weights, relative to the largest logit.
    """
    new_max = tl.maximum(row_max, tl.max(logits, 1))
    # a row without a key so far: -inf minus -inf would be NaN
    shift = tl.where(new_max == -float('inf'), 0.0, new_max)
    weights = tl.exp2(logits - shift[:, None])
    decay = tl.exp2(row_max - shift)
    row_sum = row_sum * decay + tl.sum(weights, 1)
    return acc * decay[:, None] + dot(weights, values), new_max, row_sum


@triton.jit
def normalize(acc, row_sum):
    """Output of a softmax: acc over row_sum, and zeros in rows without a key."""
    return acc / tl.where(row_sum == 0, 1.0, row_sum)[:, None]


@triton.jit
def log_sum(row_max, row_sum):
    """Base-2 log-sum-exp; +inf for a row without a key, which gives it zero weights in backward."""
    return tl.where(row_sum == 0, float('inf'), row_max + tl.log2(row_sum))


@triton.jit
def has_nan(values):
    """Whether any number of a tile is NaN."""
    return tl.max(tl.max((values != values).to(tl.int32), 1), 0) > 0


@triton.jit
def finite_only(values):
    """The values with zeros in place of NaN and infinity."""
    return tl.where(values - values == 0, values, 0.0).to(values.dtype)


@triton.jit
def nan_where_not_finite(values):
    """One number per row [rows]: 0, or NaN where a value of the row is not finite."""
    return tl.sum((values - values).to(tl.float32), 1)


@triton.jit
def row_tile(n, heads, BLOCK_M: tl.constexpr):
    """(head, row numbers [M], which of them exist, first row, last row) of this program."""
    head = tl.program_id(0) % heads
    first_row = tl.program_id(0) // heads * BLOCK_M
    last_row = tl.minimum(first_row + BLOCK_M, n) - 1
    row = first_row + tl.arange(0, BLOCK_M)
    return head, row, row < n, first_row, last_row


@triton.jit
def token_tile(heads, num_strata, BLOCK_S: tl.constexpr):
    """(sample, head, token rows [S] of a [B M] table, which of them exist) of this program."""
    blocks = tl.cdiv(num_strata, BLOCK_S)
    pid = tl.program_id(0)
    sample = pid // (blocks * heads)
    token = pid // heads % blocks * BLOCK_S + tl.arange(0, BLOCK_S)
    return sample, pid % heads, sample * num_strata + token, token < num_strata


@triton.jit
def load_windows(window_start, window_end, row, valid, first_row, last_row):
    """(start [M], end [M]) of each row's window, and (lo, hi) of all windows of the tile."""
    start = tl.load(window_start + row, mask=valid, other=0)
    end = tl.load(window_end + row, mask=valid, other=0)
    lo = tl.load(window_start + first_row)
    hi = tl.load(window_end + last_row)
    return start, end, lo, hi


@triton.jit
def sample_of(batch_offsets, row, batch, BLOCK_B: tl.constexpr):
    """Number of the sample that owns a row; `batch` for a row after the last sample."""
    b = tl.arange(0, BLOCK_B)
    ends = tl.load(batch_offsets + 1 + b, mask=b < batch, other=2147483647)
    return tl.sum((ends <= row).to(tl.int32), 0)


@triton.jit
def sample_range(batch_offsets, first_row, last_row, batch, BLOCK_B: tl.constexpr):
    """Half-open range of the samples that the rows first_row to last_row lie in."""
    first = sample_of(batch_offsets, first_row, batch, BLOCK_B)
    last = tl.minimum(sample_of(batch_offsets, last_row, batch, BLOCK_B), batch - 1)
    return first, last + 1


@triton.jit
def is_in_sample(row, batch_offsets, b):
    """Which rows belong to sample b."""
    return (row >= tl.load(batch_offsets + b)) & (row < tl.load(batch_offsets + b + 1))


@triton.jit
def split_range(batch_offsets, sample, split, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Half-open range of rows of one of the equal splits of a sample, in whole tiles."""
    start, end = tl.load(batch_offsets + sample), tl.load(batch_offsets + sample + 1)
    size = tl.cdiv(tl.cdiv(end - start, SPLITS), BLOCK_N) * BLOCK_N
    lo = tl.minimum(start + split * size, end)
    return lo, tl.minimum(lo + size, end)
