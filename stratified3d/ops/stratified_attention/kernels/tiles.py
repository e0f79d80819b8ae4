"""What the kernels share: tiles of rows, products in fp32, one step of the online softmax."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_rows(table, rows, stride, head, valid, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of one head of a [N, H, D] table: [rows, BLOCK_D], zeros where not valid and beyond
    D."""
    d = tl.arange(0, BLOCK_D)
    places = rows.to(tl.int64)[:, None] * stride + (head * WIDTH + d)[None, :]
    return tl.load(table + places, mask=valid[:, None] & (d < WIDTH)[None, :], other=0.0)


@triton.jit
def store_rows(table, rows, heads, head, valid, values, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write [rows, BLOCK_D] to one head of a contiguous [N, H, D] table."""
    d = tl.arange(0, BLOCK_D)
    places = rows.to(tl.int64)[:, None] * (heads * WIDTH) + (head * WIDTH + d)[None, :]
    tl.store(
        table + places,
        values.to(table.dtype.element_ty),
        mask=valid[:, None] & (d < WIDTH)[None, :],
    )


@triton.jit
def load_scalars(table, rows, heads, head, valid, other):
    """One number a row of one head of a contiguous [N, H] table."""
    return tl.load(table + rows.to(tl.int64) * heads + head, mask=valid, other=other)


@triton.jit
def store_scalars(table, rows, heads, head, valid, values):
    tl.store(table + rows.to(tl.int64) * heads + head, values, mask=valid)


@triton.jit
def product(a, b):
    """a b in fp32, a in b's precision first."""
    # the interpreter's product of 16-bit numbers is no tensor core's
    if INTERPRETED:
        return tl.dot(a.to(b.dtype).to(tl.float32), b.to(tl.float32))
    else:
        # fp32 in three TF32 products: without it the tensor cores would keep 10 bits of the
        # mantissa
        return tl.dot(a.to(b.dtype), b, input_precision='tf32x3')


@triton.jit
def product_of_small(a, b):
    """a b where rows of a may be too small for fp16, as weights of very many rows are: each is
    brought to 1 first."""
    if b.dtype == tl.float16:
        size = tl.max(tl.abs(a), 1)
        size = tl.where(size > 0, size, 1.0)
        return product(a / size[:, None], b) * size[:, None]
    else:
        return product(a, b)


@triton.jit
def softmax_step(acc, peak, total, logits, values):
    """Go on with an online softmax (base 2): acc [rows, D], its largest logit and its sum of
    weights [rows]."""
    new_peak = tl.maximum(peak, tl.max(logits, 1))
    # a row without a key so far: -inf minus -inf would be NaN
    shift = tl.where(new_peak == -float('inf'), 0.0, new_peak)
    weights = tl.exp2(logits - shift[:, None])
    decay = tl.exp2(peak - shift)
    total = total * decay + tl.sum(weights, 1)
    return acc * decay[:, None] + product(weights, values), new_peak, total


@triton.jit
def log_sum(peak, total):
    """Base-2 log-sum-exp; +inf for a row without a key, so that its weights come out as zeros in
    the backward pass."""
    return tl.where(total == 0, float('inf'), peak + tl.log2(total))


@triton.jit
def has_nan(values):
    return tl.max(tl.max((values != values).to(tl.int32), 1), 0) > 0


@triton.jit
def finite_only(values):
    return tl.where(values - values == 0, values, 0.0).to(values.dtype)


@triton.jit
def sample_of(batch_offsets, row, batch, BLOCK_B: tl.constexpr):
    """Number of the sample that owns a row; `batch` for a row after the last sample."""
    b = tl.arange(0, BLOCK_B)
    ends = tl.load(batch_offsets + 1 + b, mask=b < batch, other=2147483647)
    return tl.sum((ends <= row).to(tl.int32), 0)


@triton.jit
def split_range(batch_offsets, sample, split, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows of one of the equal splits of a sample, in whole tiles."""
    start, end = tl.load(batch_offsets + sample), tl.load(batch_offsets + sample + 1)
    size = tl.cdiv(tl.cdiv(end - start, SPLITS), BLOCK_N) * BLOCK_N
    low = tl.minimum(start + split * size, end)
    return low, tl.minimum(low + size, end)
