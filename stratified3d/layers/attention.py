"""Stratified attention as a mixer: every voxel attends to its window and to the strata of its
sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stratified3d.layers.strata import Strata, StrataSelection
from stratified3d.ops import (
    WindowPlan,
    apply_rotary,
    collect_strata,
    permute_rows,
    plan_windows,
    read_strata,
    rotary_angles,
    stratified_attention,
)

FUSIONS = ('joint', 'gated')


class WindowGrid(NamedTuple):
    """One arrangement of a stage's voxels into windows, made once and shared by the stage's blocks.

    plan: WindowPlan; positions [N, 3] meters and coords [N, 4] int32 (batch, z, y, x), both in
    window order; rotary: (cos, sin) of the rows, or None without it; window_shape, shift (z, y, x)
    in voxels: voxel c lies in window floor((c + shift) / window_shape); derived: what mixers worked
    out from it, see `once`; is_sorted: the voxels themselves lie in window order, so that nothing
    has to be moved.
    """

    plan: WindowPlan
    positions: Tensor
    coords: Tensor
    rotary: tuple[Tensor, Tensor] | None
    window_shape: tuple[int, int, int]
    shift: tuple[int, int, int]
    derived: dict[Hashable, Any]
    is_sorted: bool = False

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """make(), called by the first block that asks under this key and kept for the others."""
        if key not in self.derived:
            self.derived[key] = make()
        return self.derived[key]

    def into_windows(self, x: Tensor) -> Tensor:
        """[N, ...] from the order of the voxels to window order."""
        return x if self.is_sorted else permute_rows(x, self.plan.order, self.plan.inverse)

    def into_voxels(self, x: Tensor) -> Tensor:
        """[N, ...] from window order to the order of the voxels."""
        return x if self.is_sorted else permute_rows(x, self.plan.inverse, self.plan.order)

    def after(self, first: WindowGrid) -> WindowGrid:
        """This grid, row for row, of voxels that have been moved into the window order of
        `first`."""
        order, inverse = first.plan.inverse[self.plan.order], self.plan.inverse[first.plan.order]
        return self._replace(
            plan=self.plan._replace(order=order, inverse=inverse), is_sorted=self is first
        )


def build_window_grid(
    coords: Tensor,
    positions: Tensor,
    window_shape: tuple[int, int, int],
    shift: tuple[int, int, int],
    *,
    batch_size: int,
    spatial_shape: tuple[int, int, int],
    head_dim: int | None,
) -> WindowGrid:
    """Plan windows and tabulate the rotary angles of every row.

    Args:
        coords: [N, 4] int32 (batch, z, y, x).
        positions: [N, 3] meters, in the order of coords.
        window_shape, shift, spatial_shape: (z, y, x) in voxels, see `plan_windows`.
        batch_size: B.
        head_dim: D of the rotary tables; None for no rotary embedding.
    """
    if window_shape[0] >= spatial_shape[0]:
        shift = (0, *shift[1:])
    plan = plan_windows(
        coords, window_shape, shift, batch_size=batch_size, spatial_shape=spatial_shape
    )
    positions = positions[plan.order]
    rotary = None if head_dim is None else rotary_angles(positions, head_dim)
    return WindowGrid(
        plan, positions, coords[plan.order], rotary, tuple(window_shape), tuple(shift), {}
    )


def project_rows(
    qkv: nn.Linear,
    x: Tensor,
    num_heads: int,
    rotary: tuple[Tensor, Tensor] | None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of rows x [N, C], each [N, H, D]; queries and keys turned together
    by their tables."""
    rows = qkv(x)
    qk, v = rows.view(len(x), 3 * num_heads, rows.shape[1] // (3 * num_heads)).split(
        (2 * num_heads, num_heads), 1
    )
    if rotary is not None:
        qk = apply_rotary(qk, *rotary, backend=backend)
    return *qk.chunk(2, 1), v


class StratifiedAttention(nn.Module):
    """Window attention with global strata tokens.

    The tokens first attend to every voxel of their sample, are refined, and then stand beside the
    window's keys (joint) or are read apart (gated). In the joint softmax their logits start at -log
    m + strata_offset, so the module starts close to plain window attention.

    Args:
        channels: C.
        num_heads: H, divides C.
        num_strata: m; 0 leaves window attention alone.
        selection: 'pool', 'random' or 'first', see `StrataSelection`.
        fusion: 'joint', one softmax over window and strata; 'gated', window + gate * strata with
        the gate from 0.
        creates_tokens: False where the tokens come from an earlier block and no selection of its
            own is needed.
        strata_offset: first value of the learned per-head offset of the strata logits (joint only);
            None for no bias at all, so that a token weighs as much as a voxel from the start.
        use_rotary: rotary position embedding of q and k in meters.
        backend: of the attention ops; None takes the fastest.
    Raises:
        ValueError: heads that do not divide the width, m < 0, unknown fusion or selection.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        num_strata: int = 64,
        selection: str = 'pool',
        fusion: str = 'joint',
        creates_tokens: bool = True,
        strata_offset: float | None = -4.0,
        use_rotary: bool = True,
        backend: str | None = None,
    ):
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f'{num_heads} heads do not divide {channels} channels')
        if use_rotary and channels // num_heads < 6:
            raise ValueError(
                f'rotary embedding needs heads of width 6 or more, not {channels // num_heads}: take '
                'fewer heads or use_rotary=False'
            )
        if num_strata < 0:
            raise ValueError(f'num_strata is 0 (off) or more, not {num_strata}')
        if fusion not in FUSIONS:
            raise ValueError(f'fusion is one of {", ".join(FUSIONS)}, not {fusion!r}')
        self.num_heads, self.head_dim = num_heads, channels // num_heads
        self.num_strata, self.fusion = num_strata, fusion
        self.use_rotary, self.backend = use_rotary, backend
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.selection = None
        if num_strata:
            if creates_tokens:
                self.selection = StrataSelection(channels, num_strata, selection)
            self.strata_query = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels))
            self.strata_out = nn.Linear(channels, channels)
            self.strata_kv = nn.Sequential(
                nn.LayerNorm(channels), nn.Linear(channels, 2 * channels)
            )
            if fusion == 'gated':
                self.gate = nn.Parameter(torch.zeros(num_heads, 1))
            elif strata_offset is not None:
                self.strata_offset = nn.Parameter(torch.full((num_heads,), float(strata_offset)))
            else:
                self.strata_offset = None

    def forward(
        self, x: Tensor, grid: WindowGrid, strata: Strata | None = None
    ) -> tuple[Tensor, Strata | None]:
        """x [N, C] in the order of the voxels -> mixed [N, C] in the same order, and the refined
        strata tokens."""
        plan = grid.plan
        x = grid.into_windows(x)
        rotary = grid.rotary if self.use_rotary else None
        q, k, v = project_rows(self.qkv, x, self.num_heads, rotary, self.backend)  # [N, H, D]
        if not self.num_strata:
            mixed = self.attend(q, k, v, grid)
            return self.out(grid.into_voxels(mixed.flatten(1))), None

        if strata is None:
            strata = self.selection(x, grid.positions, plan.batch_offsets)
        strata, strata_k, strata_v = self._refine(strata, k, v, plan.batch_offsets)
        absent = ~strata.present.unsqueeze(-1)  # [B, M, 1]
        bias = x.new_zeros(*strata_k.shape[:3], dtype=torch.float32)
        if self.fusion == 'joint':
            if self.strata_offset is not None:
                bias = bias + (self.strata_offset - math.log(self.num_strata))
            bias = bias.masked_fill(absent, -torch.inf)
            mixed = self.attend(q, k, v, grid, strata_k, strata_v, bias)
        else:
            local = self.attend(q, k, v, grid)
            far = read_strata(
                q,
                strata_k,
                strata_v,
                plan.batch_offsets,
                strata_bias=bias.masked_fill(absent, -torch.inf),
                backend=self.backend,
            )
            mixed = local + self.gate.to(far.dtype) * far
        return self.out(grid.into_voxels(mixed.flatten(1))), strata

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grid: WindowGrid,
        strata_k: Tensor | None = None,
        strata_v: Tensor | None = None,
        strata_bias: Tensor | None = None,
    ) -> Tensor:
        """`stratified_attention` over the grid's windows; what a mixer with a kernel of its own
        overrides."""
        return stratified_attention(
            q, k, v, grid.plan, strata_k, strata_v, strata_bias=strata_bias, backend=self.backend
        )

    def _refine(
        self, strata: Strata, k: Tensor, v: Tensor, batch_offsets: Tensor
    ) -> tuple[Strata, Tensor, Tensor]:
        """Let the tokens collect from all voxels; return them with their keys and values [B, M, H,
        D]."""
        batch, num, _ = strata.feats.shape
        heads = (batch, num, self.num_heads, self.head_dim)
        turn = rotary_angles(strata.positions, self.head_dim) if self.use_rotary else None
        q = self.strata_query(strata.feats).view(heads).to(k.dtype)
        q = q if turn is None else apply_rotary(q, *turn, backend=self.backend)
        collected = collect_strata(q, k, v, batch_offsets, backend=self.backend).flatten(2)
        strata = strata._replace(feats=strata.feats + self.strata_out(collected))
        strata_k, strata_v = self.strata_kv(strata.feats).to(k.dtype).chunk(2, -1)
        strata_k = strata_k.reshape(heads)
        if turn is not None:
            strata_k = apply_rotary(strata_k, *turn, backend=self.backend)
        return strata, strata_k, strata_v.reshape(heads)

    def extra_repr(self) -> str:
        return f'num_strata={self.num_strata}, fusion={self.fusion!r}'
