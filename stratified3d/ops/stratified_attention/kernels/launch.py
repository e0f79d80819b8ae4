"""Host side of the kernels: allocate, choose tiles and splits from shapes, launch; nothing waits
for the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from stratified3d.ops.stratified_attention.kernels import rotary, rows
from stratified3d.ops.stratified_attention.kernels import tokens as strata

# programs that keep a large GPU busy; a constant, so that sums do not depend on the device
_PROGRAMS = 256
_MOST_SPLITS = 64


class _Tiles(NamedTuple):
    """Sizes of the pieces that a program works on.

    rows of its own, rows and tokens that these read at a time; tokens of its own (kernels over
    tokens); D and B padded; warps of a program.
    """

    rows: int
    row_step: int
    token_step: int
    tokens: int
    width: int
    batch: int
    warps: int


def attend(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    window_start: Tensor | None,
    window_end: Tensor | None,
    batch_offsets: Tensor,
    strata_k: Tensor | None,
    strata_v: Tensor | None,
    strata_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """out [N, H, D] and its log-sum-exp [N, H] fp32; without k no windows, without strata_k no
    strata."""
    n, heads, width = q.shape
    out, lse = q.new_empty(q.shape), q.new_empty((n, heads), dtype=torch.float32)
    if not n:
        return out, lse
    q, k, v, strata_k, strata_v = (_packed(x) for x in (q, k, v, strata_k, strata_v))
    window_start, window_end, batch_offsets = map(
        _contiguous, (window_start, window_end, batch_offsets)
    )
    num_strata, batch = _strata_shape(strata_k, batch_offsets)
    tiles = _tiles(q, num_strata, batch)
    _run(
        rows.attend_kernel,
        (triton.cdiv(n, tiles.rows) * heads,),
        q,
        k,
        v,
        window_start,
        window_end,
        batch_offsets,
        strata_k,
        strata_v,
        _contiguous(strata_bias),
        out,
        lse,
        n,
        heads,
        batch,
        num_strata,
        *_strides(q, k, v, strata_k, strata_v),
        scale,
        HAS_WINDOW=k is not None,
        HAS_STRATA=strata_k is not None,
        HAS_BIAS=strata_bias is not None,
        WIDTH=width,
        BLOCK_D=tiles.width,
        BLOCK_M=tiles.rows,
        BLOCK_N=tiles.row_step,
        BLOCK_S=tiles.token_step,
        BLOCK_B=tiles.batch,
        num_warps=tiles.warps,
    )
    return out, lse


def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    window_start: Tensor | None,
    window_end: Tensor | None,
    batch_offsets: Tensor,
    strata_k: Tensor | None,
    strata_v: Tensor | None,
    strata_bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> list[Tensor | None]:
    """Gradients of q, k, v, strata_k, strata_v, strata_bias; None for what is not there."""
    n, heads, width = q.shape
    grad, q, k, v, strata_k, strata_v = (_packed(x) for x in (grad, q, k, v, strata_k, strata_v))
    window_start, window_end, batch_offsets, strata_bias = map(
        _contiguous, (window_start, window_end, batch_offsets, strata_bias)
    )
    num_strata, batch = _strata_shape(strata_k, batch_offsets)
    tiles = _tiles(q, num_strata, batch)
    grad_q, delta = q.new_empty(out.shape), torch.empty_like(lse)
    grad_k, grad_v = (None, None) if k is None else (q.new_empty(out.shape), q.new_empty(out.shape))
    sizes = dict(WIDTH=width, BLOCK_D=tiles.width, BLOCK_N=tiles.row_step, num_warps=tiles.warps)
    grid = (triton.cdiv(n, tiles.rows) * heads,)
    if n:
        _run(
            rows.attend_backward_rows_kernel,
            grid,
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
            grad,
            grad_q,
            delta,
            n,
            heads,
            batch,
            num_strata,
            *_strides(q, k, v, strata_k, strata_v, grad),
            scale,
            HAS_WINDOW=k is not None,
            HAS_STRATA=strata_k is not None,
            HAS_BIAS=strata_bias is not None,
            BLOCK_M=tiles.rows,
            BLOCK_S=tiles.token_step,
            BLOCK_B=tiles.batch,
            **sizes,
        )
    if n and k is not None:
        _run(
            rows.attend_backward_keys_kernel,
            grid,
            q,
            k,
            v,
            window_start,
            window_end,
            lse,
            delta,
            grad,
            grad_k,
            grad_v,
            n,
            heads,
            *_strides(q, k, v, grad),
            scale,
            BLOCK_M=tiles.rows,
            **sizes,
        )
    if strata_k is None:
        return [grad_q, grad_k, grad_v, None, None, None]
    grid, splits = _token_grid(batch, heads, num_strata, n, tiles)
    shape = (splits, batch, num_strata, heads, width)
    partial_k, partial_v = (q.new_empty(shape, dtype=torch.float32) for _ in range(2))
    partial_bias = None if strata_bias is None else q.new_empty(shape[:-1], dtype=torch.float32)
    _run(
        strata.strata_gradient_kernel,
        grid,
        q,
        batch_offsets,
        strata_k,
        strata_v,
        strata_bias,
        lse,
        delta,
        grad,
        partial_k,
        partial_v,
        partial_bias,
        heads,
        batch,
        num_strata,
        *_strides(q, strata_k, strata_v, grad),
        scale,
        HAS_BIAS=strata_bias is not None,
        SPLITS=splits,
        BLOCK_S=tiles.tokens,
        **sizes,
    )
    return [
        grad_q,
        grad_k,
        grad_v,
        _sum_splits(partial_k, q.dtype),
        _sum_splits(partial_v, q.dtype),
        None if partial_bias is None else _sum_splits(partial_bias, torch.float32),
    ]


def collect(
    q: Tensor, k: Tensor, v: Tensor, batch_offsets: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """out [B, M, H, D] and its log-sum-exp [B, M, H] fp32."""
    batch, num_strata, heads, width = q.shape
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)
    if not num_strata:
        return out, lse
    q, k, v, batch_offsets = *map(_packed, (q, k, v)), _contiguous(batch_offsets)
    tiles = _tiles(q, num_strata, batch)
    grid, splits = _token_grid(batch, heads, num_strata, len(k), tiles)
    partial_out = q.new_empty((splits, *out.shape), dtype=torch.float32)
    partial_lse = q.new_empty((splits, *lse.shape), dtype=torch.float32)
    sizes = dict(SPLITS=splits, WIDTH=width, BLOCK_D=tiles.width)
    _run(
        strata.collect_kernel,
        grid,
        q,
        k,
        v,
        batch_offsets,
        partial_out,
        partial_lse,
        heads,
        batch,
        num_strata,
        *_strides(q, k, v),
        scale,
        BLOCK_N=tiles.row_step,
        BLOCK_S=tiles.tokens,
        num_warps=tiles.warps,
        **sizes,
    )
    _run(
        strata.combine_kernel,
        (lse.numel(),),
        partial_out,
        partial_lse,
        out,
        lse,
        lse.numel(),
        **sizes,
    )
    return out, lse


def collect_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch_offsets: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v."""
    n, heads, width = k.shape
    batch, num_strata = out.shape[:2]
    if not num_strata:
        return q.new_empty(out.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    grad, q, k, v, batch_offsets = *map(_packed, (grad, q, k, v)), _contiguous(batch_offsets)
    tiles = _tiles(q, num_strata, batch)
    grid, splits = _token_grid(batch, heads, num_strata, n, tiles)
    partial = q.new_empty((splits, *out.shape), dtype=torch.float32)
    grad_k, grad_v = q.new_empty((n, heads, width)), q.new_empty((n, heads, width))
    sizes = dict(WIDTH=width, BLOCK_D=tiles.width, num_warps=tiles.warps)
    strides = _strides(q, k, v, grad)
    _run(
        strata.collect_backward_tokens_kernel,
        grid,
        q,
        k,
        v,
        batch_offsets,
        out,
        lse,
        grad,
        partial,
        heads,
        batch,
        num_strata,
        *strides,
        scale,
        SPLITS=splits,
        BLOCK_N=tiles.row_step,
        BLOCK_S=tiles.tokens,
        **sizes,
    )
    if n:
        _run(
            strata.collect_backward_rows_kernel,
            (triton.cdiv(n, tiles.rows) * heads,),
            q,
            k,
            v,
            batch_offsets,
            out,
            lse,
            grad,
            grad_k,
            grad_v,
            n,
            heads,
            batch,
            num_strata,
            *strides,
            scale,
            BLOCK_M=tiles.rows,
            BLOCK_S=tiles.token_step,
            BLOCK_B=tiles.batch,
            **sizes,
        )
    return _sum_splits(partial, q.dtype), grad_k, grad_v


def rotate(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """x [..., H, D] turned by the angles of tables [..., R], or turned back."""
    out = x.new_empty(x.shape)
    heads, width = x.shape[-2:]
    x, tables = (
        _packed(x.reshape(-1, heads, width)),
        [table.float().contiguous() for table in (cos, sin)],
    )
    if out.numel():
        pairs = max(8, triton.next_power_of_2(triton.cdiv(width, 2)))
        block = max(16, 1024 // pairs)
        _run(
            rotary.rotate_kernel,
            (triton.cdiv(len(x), block),),
            x,
            *tables,
            out,
            len(x),
            heads,
            *_strides(x),
            BACK=back,
            PAIRS=cos.shape[-1],
            WIDTH=width,
            BLOCK_P=pairs,
            BLOCK_M=block,
        )
    return out


def _run(
    kernel, grid: tuple[int, ...], *arguments, num_warps: int = 4, num_stages: int = 2, **constants
) -> None:
    """Launch on the device of the tensors; compile.py puts its own function here."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants)


def _packed(x: Tensor | None) -> Tensor | None:
    """[..., H, D] -> [rows, H, D] with heads side by side in a row and any distance between rows; a
    copy if need be."""
    if x is None:
        return None
    heads, width = x.shape[-2:]
    if x.dim() == 4:
        x = x.flatten(0, 1)
    dense = (width == 1 or x.stride(2) == 1) and (heads == 1 or x.stride(1) == width)
    return x if dense and x.stride(0) >= 0 else x.contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _strides(*tables: Tensor | None) -> list[int]:
    return [0 if x is None else x.stride(0) for x in tables]


def _strata_shape(strata_k: Tensor | None, batch_offsets: Tensor) -> tuple[int, int]:
    """(M, B); strata_k is [B M, H, D] here."""
    batch = len(batch_offsets) - 1
    return (0 if strata_k is None else len(strata_k) // batch), batch


def _tiles(q: Tensor, num_strata: int, batch: int) -> _Tiles:
    """Chosen so that hardly anything is spilled: `compile.py` prints what each kernel uses."""
    width = max(16, triton.next_power_of_2(q.shape[-1]))
    # an fp32 product takes three operands' room on the tensor cores
    numbers = width * (3 if q.dtype == torch.float32 else 1)
    rows, step, warps = (
        (64, 32, 4) if numbers <= 96 else (64, 32, 8) if numbers == 128 else (32, 16, 4)
    )
    tokens = max(16, triton.next_power_of_2(num_strata))
    return _Tiles(
        rows,
        step,
        min(step, tokens),
        min(rows, tokens),
        width,
        triton.next_power_of_2(batch),
        warps,
    )


def _token_grid(
    batch: int, heads: int, num_strata: int, n: int, tiles: _Tiles
) -> tuple[tuple[int, int], int]:
    """Grid of the kernels over tokens, and the number of splits of each sample's rows: a power of
    two."""
    programs = batch * triton.cdiv(num_strata, tiles.tokens) * heads
    room = min(_MOST_SPLITS, max(1, _PROGRAMS // programs), max(1, triton.cdiv(n, tiles.rows)))
    splits = 1 << room.bit_length() - 1
    return (programs, splits), splits


def _sum_splits(partial: Tensor, dtype: torch.dtype) -> Tensor:
    out = partial.new_empty(partial.shape[1:], dtype=dtype)
    _run(
        strata.sum_splits_kernel,
        (triton.cdiv(out.numel(), 256),),
        partial,
        out,
        out.numel(),
        SPLITS=len(partial),
        BLOCK=256,
    )
    return out
