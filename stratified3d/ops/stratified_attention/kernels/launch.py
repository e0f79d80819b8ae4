"""Host side of the kernels: allocate, choose tiles and splits from shapes, launch.

Nothing here waits for the device. Every function launches its kernels through the argument `run`,
which `compile.py` replaces by a function that only records them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, overload

import torch
import triton
from torch import Tensor

from stratified3d.ops.stratified_attention.kernels import rotary, rows, tokens

# programs that keep a large GPU busy; a constant, so that sums do not depend on the device
_PROGRAMS = 256
_MAX_SPLITS = 64

Run = Callable[..., None]


class AttendInputs(NamedTuple):
    """Inputs of the kernels over rows, in the order of the kernels; None for what is absent.

    q, k, v: [N, H, D]; window_start, window_end: [N] int32; batch_offsets: [B + 1] int32;
    strata_k, strata_v: [B, M, H, D], packed [B M, H, D]; strata_bias: [B, M, H] fp32.
    """

    q: Tensor
    k: Tensor | None
    v: Tensor | None
    window_start: Tensor | None
    window_end: Tensor | None
    batch_offsets: Tensor
    strata_k: Tensor | None
    strata_v: Tensor | None
    strata_bias: Tensor | None

    def packed(self) -> AttendInputs:
        """The same inputs in the layout that the kernels read."""
        return AttendInputs(
            q=pack(self.q),
            k=pack(self.k),
            v=pack(self.v),
            window_start=contiguous(self.window_start),
            window_end=contiguous(self.window_end),
            batch_offsets=self.batch_offsets.contiguous(),
            strata_k=pack(self.strata_k),
            strata_v=pack(self.strata_v),
            strata_bias=contiguous(self.strata_bias),
        )

    @property
    def batch(self) -> int:
        """B, the number of samples."""
        return len(self.batch_offsets) - 1

    @property
    def num_strata(self) -> int:
        """M of packed inputs; 0 without strata."""
        return 0 if self.strata_k is None else len(self.strata_k) // self.batch


class Tiles(NamedTuple):
    """Sizes of the pieces that a program works on.

    rows: of its own; row_step, token_step: rows and tokens that it reads at a time; tokens: of its
    own, in kernels over tokens; width, batch: D and B padded; warps: of a program.
    """

    rows: int
    row_step: int
    token_step: int
    tokens: int
    width: int
    batch: int
    warps: int


def run_kernel(
    kernel, grid: tuple[int, ...], *arguments, num_warps: int = 4, num_stages: int = 2, **constants
) -> None:
    """Launch a kernel on the device of its first argument."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants)


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
    *,
    run: Run = run_kernel,
) -> tuple[Tensor, Tensor]:
    """out [N, H, D] and its log-sum-exp [N, H] fp32.

    Without k there are no windows, without strata_k no strata.
    """
    n, heads, width = q.shape
    out = q.new_empty(q.shape)
    lse = q.new_empty((n, heads), dtype=torch.float32)
    if not n:
        return out, lse

    inputs = AttendInputs(
        q, k, v, window_start, window_end, batch_offsets, strata_k, strata_v, strata_bias
    ).packed()
    tiles = choose_tiles(q, inputs.num_strata, inputs.batch)
    run(
        rows.attend_kernel,
        row_grid(n, heads, tiles),
        *inputs,
        out,
        lse,
        n,
        heads,
        inputs.batch,
        inputs.num_strata,
        *row_strides(inputs.q, inputs.k, inputs.v, inputs.strata_k, inputs.strata_v),
        scale,
        WIDTH=width,
        BLOCK_D=tiles.width,
        BLOCK_M=tiles.rows,
        BLOCK_N=tiles.row_step,
        BLOCK_S=tiles.token_step,
        BLOCK_B=tiles.batch,
        num_warps=tiles.warps,
    )
    return out, lse


def collect(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    batch_offsets: Tensor,
    scale: float,
    *,
    run: Run = run_kernel,
) -> tuple[Tensor, Tensor]:
    """out [B, M, H, D] and its log-sum-exp [B, M, H] fp32."""
    batch, num_strata, heads, width = q.shape
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    if not num_strata:
        return out, lse

    q, k, v = pack(q), pack(k), pack(v)
    tiles = choose_tiles(q, num_strata, batch)
    grid, splits = token_grid(batch, heads, num_strata, len(k), tiles)
    partial_out = q.new_empty((splits, *out.shape), dtype=torch.float32)
    partial_lse = q.new_empty((splits, *lse.shape), dtype=torch.float32)
    sizes = dict(SPLITS=splits, WIDTH=width, BLOCK_D=tiles.width)
    run(
        tokens.collect_kernel,
        grid,
        q,
        k,
        v,
        batch_offsets.contiguous(),
        partial_out,
        partial_lse,
        heads,
        batch,
        num_strata,
        *row_strides(q, k, v),
        scale,
        BLOCK_N=tiles.row_step,
        BLOCK_S=tiles.tokens,
        num_warps=tiles.warps,
        **sizes,
    )
    count = lse.numel()
    run(tokens.combine_kernel, (count,), partial_out, partial_lse, out, lse, count, **sizes)
    return out, lse


def rotate(x: Tensor, cos: Tensor, sin: Tensor, back: bool, *, run: Run = run_kernel) -> Tensor:
    """x [..., H, D] rotated by the angles of tables [..., R], or rotated back."""
    out = x.new_empty(x.shape)
    if not out.numel():
        return out

    heads, width = x.shape[-2:]
    x = pack(x.reshape(-1, heads, width))
    pairs = max(8, triton.next_power_of_2(triton.cdiv(width, 2)))
    block = max(16, 1024 // pairs)
    run(
        rotary.rotate_kernel,
        (triton.cdiv(len(x), block),),
        x,
        cos.float().contiguous(),
        sin.float().contiguous(),
        out,
        len(x),
        heads,
        *row_strides(x),
        BACK=back,
        PAIRS=cos.shape[-1],
        WIDTH=width,
        BLOCK_P=pairs,
        BLOCK_M=block,
    )
    return out


def sum_splits(partial: Tensor, dtype: torch.dtype, run: Run) -> Tensor:
    """partial [S, ...] added over its splits, in order: [...]."""
    out = partial.new_empty(partial.shape[1:], dtype=dtype)
    grid = (triton.cdiv(out.numel(), 256),)
    kernel = tokens.sum_splits_kernel
    run(kernel, grid, partial, out, out.numel(), SPLITS=len(partial), BLOCK=256)
    return out


@overload
def pack(x: Tensor) -> Tensor: ...
@overload
def pack(x: None) -> None: ...
def pack(x: Tensor | None) -> Tensor | None:
    """[..., H, D] -> [rows, H, D] with the heads of a row side by side; a copy only if needed.

    Rows may lie at any distance from each other.
    """
    if x is None:
        return None
    heads, width = x.shape[-2:]
    if x.dim() == 4:
        x = x.flatten(0, 1)
    is_dense = (width == 1 or x.stride(2) == 1) and (heads == 1 or x.stride(1) == width)
    return x if is_dense and x.stride(0) >= 0 else x.contiguous()


def contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def row_strides(*tables: Tensor | None) -> list[int]:
    """Distance between the rows of each table; 0 for a table that is absent."""
    return [0 if x is None else x.stride(0) for x in tables]


def choose_tiles(q: Tensor, num_strata: int, batch: int) -> Tiles:
    """Tiles for which hardly any register is spilled: `compile.py` prints what each kernel uses."""
    width = max(16, triton.next_power_of_2(q.shape[-1]))
    # an fp32 product takes three operands' room on the tensor cores
    numbers = width * (3 if q.dtype == torch.float32 else 1)
    if numbers <= 96:
        rows_per_tile, row_step, warps = 64, 32, 4
    elif numbers == 128:
        rows_per_tile, row_step, warps = 64, 32, 8
    else:
        rows_per_tile, row_step, warps = 32, 16, 4
    all_tokens = max(16, triton.next_power_of_2(num_strata))
    return Tiles(
        rows=rows_per_tile,
        row_step=row_step,
        token_step=min(row_step, all_tokens),
        tokens=min(rows_per_tile, all_tokens),
        width=width,
        batch=triton.next_power_of_2(batch),
        warps=warps,
    )


def row_grid(n: int, heads: int, tiles: Tiles) -> tuple[int]:
    """Grid of the kernels over rows."""
    return (triton.cdiv(n, tiles.rows) * heads,)


def token_grid(
    batch: int, heads: int, num_strata: int, n: int, tiles: Tiles
) -> tuple[tuple[int, int], int]:
    """Grid of the kernels over tokens, and the number of splits of each sample's rows.

    The number of splits is a power of two.
    """
    programs = batch * triton.cdiv(num_strata, tiles.tokens) * heads
    useful = max(1, _PROGRAMS // programs)
    room = min(_MAX_SPLITS, useful, max(1, triton.cdiv(n, tiles.rows)))
    splits = 1 << room.bit_length() - 1
    return (programs, splits), splits
