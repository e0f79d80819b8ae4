"""The kernel of the rotary embedding: one pass over the rows, all heads with the same angles."""

from __future__ import annotations

import triton
import triton.language as tl

from stratified3d.ops.stratified_attention.kernels.tiles import load_rows, store_rows


@triton.jit(do_not_specialize=['n'])
def rotate_kernel(
    x,
    cos,
    sin,
    out,
    n,
    heads,
    x_stride,
    BACK: tl.constexpr,
    PAIRS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Turn the channel pairs of BLOCK_M rows; pairs without an angle stay."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = row < n
    pair = tl.arange(0, BLOCK_P)
    places = row.to(tl.int64)[:, None] * PAIRS + pair[None, :]
    turning = valid[:, None] & (pair < PAIRS)[None, :]
    c = tl.load(cos + places, mask=turning, other=1.0)
    s = tl.load(sin + places, mask=turning, other=0.0)
    if BACK:
        s = -s
    for head in range(heads):
        values = load_rows(x, row, x_stride, head, valid, WIDTH, 2 * BLOCK_P).to(tl.float32)
        even, odd = tl.split(tl.reshape(values, [BLOCK_M, BLOCK_P, 2]))
        turned = tl.join(even * c - odd * s, even * s + odd * c)
        store_rows(
            out,
            row,
            heads,
            head,
            valid,
            tl.reshape(turned, [BLOCK_M, 2 * BLOCK_P]),
            WIDTH,
            2 * BLOCK_P,
        )
