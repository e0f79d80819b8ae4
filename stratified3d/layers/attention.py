"""Stratified attention as a mixer: every voxel attends to its window and to global tokens."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stratified3d.layers.strata import Strata, StrataSelection
from stratified3d.layers.strata_memory import PastTokens, build_memory
from stratified3d.layers.token_mixing import TokenMixing
from stratified3d.layers.window_grid import WindowGrid
from stratified3d.ops import (
    Backend,
    apply_rotary,
    collect_strata,
    read_strata,
    rotary_angles,
    stratified_attention,
)

FUSIONS = ('joint', 'gated', 'separate')
# of 'separate': two of three channels say what a token is, the rest where, from a chunk's length to
# twice the scene
_FAR_CHANNELS = 12
_FAR_WAVELENGTHS = dict(min_wavelength=16.0, max_wavelength=256.0)


def project_rows(
    qkv: nn.Linear,
    x: Tensor,
    num_heads: int,
    rotary: tuple[Tensor, Tensor] | None,
    backend: str | Backend | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Project rows x [N, C] to queries, keys and values [N, H, D]; rotate queries and keys."""
    rows = qkv(x)
    head_dim = rows.shape[1] // (3 * num_heads)
    rows = rows.view(x.shape[0], 3 * num_heads, head_dim)
    qk, v = rows.split((2 * num_heads, num_heads), 1)
    if rotary is not None:
        qk = apply_rotary(qk, *rotary, backend=backend)
    q, k = qk.chunk(2, 1)
    return q, k, v


class MixerContext(NamedTuple):
    """Where a mixer stands: what the encoder decides for all mixers of a stage.

    channels: C; num_heads: H; use_rotary: whether the stage tabulates rotary angles; window_shape
    (z, y, x) in voxels of the stage; block: index of the block in its stage.
    """

    channels: int
    num_heads: int
    use_rotary: bool = True
    window_shape: tuple[int, int, int] | None = None
    block: int = 0

    @property
    def head_dim(self) -> int:
        """D, the width of a head."""
        return self.channels // self.num_heads

    def check(self) -> None:
        """Raise ValueError for heads that do not divide the width or are too narrow to rotate."""
        if self.num_heads < 1 or self.channels % self.num_heads:
            raise ValueError(f'{self.num_heads} heads do not divide {self.channels} channels')

        if self.use_rotary and self.head_dim < 6:
            raise ValueError(
                f'rotary embedding needs heads of width 6 or more, not {self.head_dim}: use fewer '
                'heads or use_rotary=False'
            )


class StratifiedAttention(nn.Module):
    """Window attention with global strata tokens.

    The tokens first attend to every voxel of their sample and are refined. Then every voxel attends
    to its window and to the tokens of its sample: in one softmax (joint), or in two whose results
    are added (gated, separate). In the joint softmax the logits of the tokens start at -log m +
    strata_offset, so that the module starts close to plain window attention.

    Args:
        context: where the mixer stands.
        num_strata: m tokens per sample; 0 leaves plain window attention.
        selection: 'pool', 'random', 'first', 'farthest' or 'topk', see `StrataSelection`.
        max_per_window, objectness_weight: of 'topk', see `StrataSelection`.
        fusion: 'joint', one softmax over window and strata; 'gated', window + gate * strata, the
            gate starting at 0; 'separate', out(window, strata), where queries, keys and values
            between voxels and tokens have projections of their own, and rotate in few channels
            and slowly, so that tokens are found by what they are at any distance.
        carry_tokens: tokens go from block to block of a stage; else every block creates its own.
        strata_offset: first value of the learned per-head offset of the strata logits (joint only);
            None for no bias at all: a token weighs as much as a voxel from the start.
        memory: dict(frames=K): voxels also attend to tokens of K earlier frames, see `TokenMemory`.
        collect_scale: first value of a learned per-head factor s; a token that collects from n
            voxels multiplies its logits by s log n (Nakanishi 2025, "Scalable-Softmax Is Superior
            for Attention", section 2; its example takes 0.43). None for a plain softmax, whose
            weights get flatter the more voxels there are.
        token_mixing: whether tokens also attend to each other, see `TokenMixing`.
        backend: of the attention ops, a name or a `Backend`; None takes the fastest.
    Raises:
        ValueError: heads that do not divide the width, m < 0, unknown fusion or selection, a
            setting that is out of bounds or that would have no effect beside the others.
    """

    def __init__(
        self,
        context: MixerContext,
        *,
        num_strata: int = 64,
        selection: str = 'pool',
        max_per_window: int | None = None,
        objectness_weight: float | None = None,
        fusion: str = 'joint',
        carry_tokens: bool = True,
        strata_offset: float | None = -4.0,
        memory: dict | None = None,
        collect_scale: float | None = None,
        token_mixing: bool = False,
        backend: str | Backend | None = None,
    ):
        super().__init__()
        context.check()
        if num_strata < 0:
            raise ValueError(f'num_strata is 0 (off) or more, not {num_strata}')
        if fusion not in FUSIONS:
            raise ValueError(f'fusion is one of {", ".join(FUSIONS)}, not {fusion!r}')
        if collect_scale is not None and not 0 < collect_scale < math.inf:
            raise ValueError(f'collect_scale is a number above 0 or None, not {collect_scale}')
        if fusion != 'joint':
            _refuse_changed(f'fusion={fusion!r}', strata_offset=strata_offset)
        if not num_strata:
            _refuse_changed(
                'num_strata=0',
                selection=selection,
                max_per_window=max_per_window,
                objectness_weight=objectness_weight,
                fusion=fusion,
                carry_tokens=carry_tokens,
                strata_offset=strata_offset,
                collect_scale=collect_scale,
                token_mixing=token_mixing,
            )

        self.num_heads = context.num_heads
        self.head_dim = context.head_dim
        self.use_rotary = context.use_rotary
        self.num_strata = num_strata
        self.fusion = fusion
        self.backend = backend

        channels = context.channels
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels * (2 if fusion == 'separate' else 1), channels)
        self.selection = None
        if num_strata:
            creates_tokens = context.block == 0 or not carry_tokens
            if creates_tokens:
                self.selection = StrataSelection(
                    channels, num_strata, selection, max_per_window, objectness_weight
                )
            self._add_strata_layers(channels, strata_offset)
            self._add_options(channels, collect_scale, token_mixing)
        self.memory = build_memory(memory, channels, self.num_heads, num_strata)

    def _add_strata_layers(self, channels: int, strata_offset: float | None) -> None:
        self.strata_query = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels))
        self.strata_out = nn.Linear(channels, channels)
        self.strata_kv = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 2 * channels))

        if self.fusion == 'separate':
            self.far_qkv = nn.Linear(channels, 3 * channels)
        elif self.fusion == 'gated':
            self.gate = nn.Parameter(torch.zeros(self.num_heads, 1))
        elif strata_offset is None:
            self.strata_offset = None
        else:
            offset = torch.full((self.num_heads,), float(strata_offset))
            self.strata_offset = nn.Parameter(offset)

    def _add_options(self, channels: int, collect_scale: float | None, token_mixing: bool) -> None:
        self.collect_scale = None
        if collect_scale is not None:
            scale = torch.full((self.num_heads,), float(collect_scale))
            self.collect_scale = nn.Parameter(scale)
        self.token_mixing = TokenMixing(channels, self.num_heads) if token_mixing else None

    def forward(
        self,
        x: Tensor,
        grid: WindowGrid,
        strata: Strata | None = None,
        past: PastTokens | None = None,
    ) -> tuple[Tensor, Strata | None]:
        """Mix the voxels; refine the tokens.

        Args:
            x: [N, C] in the order of the voxels.
            grid: of these voxels.
            strata: tokens of the block before; None in the first block of a stage.
            past: tokens that this block left in earlier frames, for a mixer with memory.
        Returns:
            mixed [N, C] in the order of the voxels, and the refined tokens (None without strata).
        """
        x = grid.into_windows(x)
        rotary = grid.rotary if self.use_rotary else None
        q, k, v = project_rows(self.qkv, x, self.num_heads, rotary, self.backend)  # [N, H, D]
        if not self.num_strata:
            mixed = self.attend(q, k, v, grid)
            return self.out(grid.into_voxels(mixed.flatten(1))), None

        far_q, far_k, far_v = q, k, v
        if self.fusion == 'separate':
            rotary = grid.once('far rotary', lambda: self._far_rotary(grid.positions))
            far_q, far_k, far_v = project_rows(
                self.far_qkv, x, self.num_heads, rotary, self.backend
            )
        offsets = grid.plan.batch_offsets
        if self.selection is not None:
            earlier = () if strata is None else strata.scores
            strata = self.selection(x, grid.positions, grid.plan)
            strata = strata._replace(scores=(*earlier, *strata.scores))
        strata, strata_k, strata_v = self._refine(strata, far_k, far_v, offsets)
        bias = self._strata_bias(strata.present)  # [B, M, H]
        if past is not None:
            parts = zip((strata_k, strata_v, bias), self._recall(past, k.dtype))
            strata_k, strata_v, bias = (torch.cat(part, 1) for part in parts)

        if self.fusion == 'joint':
            mixed = self.attend(q, k, v, grid, strata_k, strata_v, bias)
        else:
            local = self.attend(q, k, v, grid)
            far = read_strata(
                far_q, strata_k, strata_v, offsets, strata_bias=bias, backend=self.backend
            )
            if self.fusion == 'separate':
                mixed = torch.cat([local, far], 1)
            else:
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
        """Apply `stratified_attention` to the windows; mixers with their own kernel override it.

        Args and result as in `stratified_attention`.
        """
        return stratified_attention(
            q, k, v, grid.plan, strata_k, strata_v, strata_bias=strata_bias, backend=self.backend
        )

    def _refine(
        self, strata: Strata | None, k: Tensor, v: Tensor, batch_offsets: Tensor
    ) -> tuple[Strata, Tensor, Tensor]:
        """Let the tokens collect from all voxels; return them with keys and values [B, M, H, D]."""
        if strata is None:
            raise ValueError('this block creates no strata tokens and was given none')

        batch, num, _ = strata.feats.shape
        heads = (batch, num, self.num_heads, self.head_dim)
        rotary = self._far_rotary(strata.positions)

        q = self.strata_query(strata.feats).view(heads)
        if self.collect_scale is not None:
            count = batch_offsets.diff().clamp(min=1)
            factor = count.log().view(-1, 1, 1) * self.collect_scale.unsqueeze(1)  # [B, H, 1]
            q = q * factor.unsqueeze(1)
        q = self._rotate(q.to(k.dtype), rotary)
        collected = collect_strata(q, k, v, batch_offsets, backend=self.backend).flatten(2)
        feats = strata.feats + self.strata_out(collected)
        if self.token_mixing is not None:
            feats = self.token_mixing(feats, strata.present, rotary)
        strata = strata._replace(feats=feats)

        return strata, *self._token_keys(strata.feats, rotary, k.dtype)

    def _token_keys(
        self, feats: Tensor, rotary: tuple[Tensor, Tensor] | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [B, M, H, D] of tokens [B, M, C]."""
        rows = self.strata_kv(feats).to(dtype).unflatten(-1, (2, self.num_heads, -1))
        k, v = rows.unbind(-3)
        return self._rotate(k, rotary), v

    def _recall(self, past: PastTokens, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [B, P, H, D] and bias [B, P, H] of tokens of earlier frames."""
        if self.memory is None:
            raise ValueError('this mixer has no memory: set memory=dict(frames=...)')
        rotary = self._far_rotary(past.positions)
        bias = self._strata_bias(past.present, self.memory.offset)
        return *self._token_keys(self.memory(past), rotary, dtype), bias

    def _far_rotary(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """Rotary tables between voxels and tokens; None without rotary embedding."""
        if not self.use_rotary:
            return None
        if self.fusion == 'separate':
            width = min(self.head_dim, _FAR_CHANNELS)
            return rotary_angles(positions, width, **_FAR_WAVELENGTHS)
        return rotary_angles(positions, self.head_dim)

    def _rotate(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        return x if rotary is None else apply_rotary(x, *rotary, backend=self.backend)

    def _strata_bias(self, present: Tensor, offset: Tensor | float = 0.0) -> Tensor:
        """[B, M, H] fp32: the joint softmax's offset, and another [H]; -inf for absent tokens."""
        bias = present.new_zeros(*present.shape, self.num_heads, dtype=torch.float32) + offset
        if self.fusion == 'joint' and self.strata_offset is not None:
            bias = bias + (self.strata_offset - math.log(self.num_strata))
        return bias.masked_fill(~present.unsqueeze(-1), -torch.inf)

    def extra_repr(self) -> str:
        return f'num_strata={self.num_strata}, fusion={self.fusion!r}'


def _refuse_changed(beside: str, **settings: Any) -> None:
    """Raise ValueError if one of the settings is not the default: it has no effect beside that."""
    defaults = StratifiedAttention.__init__.__kwdefaults__ or {}
    for name, value in settings.items():
        if value != defaults[name]:
            raise ValueError(
                f'{name}={value!r} has no effect with {beside}: leave out one of the two'
            )
