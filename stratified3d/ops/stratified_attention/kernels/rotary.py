"""Kernel of the rotary embedding, in one pass over the rows."""

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
    """Rotate the channel pairs of BLOCK_M rows, all heads by the same angles."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = row < n
    pair = tl.arange(0, BLOCK_P)
    offsets = row.to(tl.int64)[:, None] * PAIRS + pair[None, :]
    # pairs without an angle stay as they are
    has_angle = valid[:, None] & (pair < PAIRS)[None, :]
    c = tl.load(cos + offsets, mask=has_angle, other=1.0)  # [M, P]
    s = tl.load(sin + offsets, mask=has_angle, other=0.0)
    if BACK:
        s = -s

    for head in range(heads):
        values = load_rows(x, row, x_stride, head, valid, WIDTH, 2 * BLOCK_P).to(tl.float32)
        even, odd = tl.split(tl.reshape(values, [BLOCK_M, BLOCK_P, 2]))
        rotated = tl.join(even * c - odd * s, even * s + odd * c)
        rotated = tl.reshape(rotated, [BLOCK_M, 2 * BLOCK_P])
        store_rows(out, row, heads, head, valid, rotated, WIDTH, 2 * BLOCK_P)
