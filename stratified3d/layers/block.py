"""Blocks (submanifold convolution, mixer, feed-forward) and stages of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stratified3d.layers.sparse_conv import SparseConv, SparseConvTensor
from stratified3d.layers.strata import Strata, VoxelScores
from stratified3d.layers.strata_memory import PastTokens
from stratified3d.layers.window_grid import WindowGrid, build_window_grid


class StratifiedBlock(nn.Module):
    """x += norm(conv(x)); x += mixer(norm(x)); x += feed-forward(norm(x)).

    Args:
        channels: C.
        mixer: module called as mixer(x [N, C], grid, strata) -> ([N, C], strata), and with the
            tokens of earlier frames as a fourth argument where they are given.
        ffn_ratio: hidden width of the feed-forward over C.
        conv_key: rulebook key of the position convolution; None leaves the convolution out.
        precision: of the convolution on CUDA.
    """

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        ffn_ratio: float = 2.0,
        conv_key: str | None = None,
        precision: str = 'fp32',
    ):
        super().__init__()
        self.conv = None
        if conv_key is not None:
            self.conv = SparseConv(channels, channels, 3, key=conv_key, precision=precision)
            self.conv_norm = nn.LayerNorm(channels)

        self.mixer_norm = nn.LayerNorm(channels)
        self.mixer = mixer

        hidden = int(channels * ffn_ratio)
        self.ffn = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, hidden),
            nn.GELU(),
            nn.Linear(hidden, channels),
        )

    def forward(
        self,
        x: SparseConvTensor,
        grid: WindowGrid,
        strata: Strata | None = None,
        past: PastTokens | None = None,
    ) -> tuple[SparseConvTensor, Strata | None]:
        """Return the N voxels with new features, and the tokens for the next block."""
        feats = x.features
        if self.conv is not None:
            x = self.conv(x)
            feats = feats + self.conv_norm(x.features)

        feats, strata = self.mix(feats, grid, strata, past)
        return x.replace_feature(feats), strata

    def mix(
        self,
        feats: Tensor,
        grid: WindowGrid,
        strata: Strata | None = None,
        past: PastTokens | None = None,
    ) -> tuple[Tensor, Strata | None]:
        """Apply mixer and feed-forward, [N, C] -> [N, C]; traced in one graph by torch.compile."""
        memory = () if past is None else (past,)
        mixed, strata = self.mixer(self.mixer_norm(feats), grid, strata, *memory)
        feats = feats + mixed
        return feats + self.ffn(feats), strata


class StratifiedStage(nn.Module):
    """Blocks at one resolution; regular and shifted windows alternate, each planned once.

    Args:
        channels: C.
        depth: number of blocks.
        make_mixer: called with the block's index, returns its mixer.
        window_shape: (z, y, x) in voxels.
        shifted: whether every second block shifts its windows by half a window, along all axes
            that a window does not span.
        head_dim: D of the rotary tables; None for no rotary embedding.
        use_conv: whether blocks start with the position convolution.
        ffn_ratio: see `StratifiedBlock`.
        name: unique prefix of the stage's rulebook keys.
        precision: of the convolutions on CUDA.
        with_cp: activation checkpointing: recompute each block in the backward pass.
    """

    def __init__(
        self,
        channels: int,
        depth: int,
        make_mixer: Callable[[int], nn.Module],
        window_shape: Sequence[int],
        *,
        shifted: bool = True,
        head_dim: int | None = None,
        use_conv: bool = True,
        ffn_ratio: float = 2.0,
        name: str = 'stage',
        precision: str = 'fp32',
        with_cp: bool = False,
    ):
        super().__init__()
        z, y, x = window_shape
        self.window_shape = (z, y, x)
        self.shifted = shifted
        self.head_dim = head_dim
        self.with_cp = with_cp

        conv_key = f'{name}.subm' if use_conv else None
        self.blocks = nn.ModuleList(
            StratifiedBlock(channels, make_mixer(i), ffn_ratio, conv_key, precision)
            for i in range(depth)
        )

    def order_voxels(
        self, x: SparseConvTensor, positions: Tensor
    ) -> tuple[SparseConvTensor, list[WindowGrid]]:
        """Sort voxels by their regular window, so that unshifted blocks need no permutation.

        Args:
            x: N voxels.
            positions: [N, 3] meters of their centers.
        Returns:
            the voxels, without rulebooks, and the window grids of this stage for them.
        """
        z, y, x_size = x.spatial_shape
        grids = [
            build_window_grid(
                x.indices,
                positions,
                self.window_shape,
                shift,
                batch_size=x.batch_size,
                spatial_shape=(z, y, x_size),
                head_dim=self.head_dim,
            )
            for shift in self._shifts((z, y, x_size))
        ]
        regular = grids[0]
        feats = regular.into_windows(x.features)
        ordered = SparseConvTensor(feats, regular.coords, [z, y, x_size], x.batch_size)
        return ordered, [grid.after(regular) for grid in grids]

    def _shifts(self, spatial_shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
        """Return the shifts (z, y, x) of the window grids: none, and half a window if used."""
        regular = (0, 0, 0)
        if not self.shifted or len(self.blocks) < 2:
            return [regular]

        pairs = zip(self.window_shape, spatial_shape)
        z, y, x = (0 if window >= size else window // 2 for window, size in pairs)
        return [regular] if (z, y, x) == regular else [regular, (z, y, x)]

    def forward(
        self,
        x: SparseConvTensor,
        grids: Sequence[WindowGrid],
        scores: list[VoxelScores] | None = None,
    ) -> SparseConvTensor:
        """Run the blocks on N voxels, whose order and grids come from `order_voxels`.

        Args:
            x: N voxels.
            grids: of this stage.
            scores: receives the objectness that tokens were chosen by, if they were.
        """
        x, tokens = self.run(x, grids)
        last = tokens[-1] if tokens else None
        if scores is not None and last is not None:
            scores.extend(last.scores)
        return x

    def run(
        self,
        x: SparseConvTensor,
        grids: Sequence[WindowGrid],
        past: Sequence[PastTokens | None] | None = None,
    ) -> tuple[SparseConvTensor, list[Strata | None]]:
        """Run the blocks as `forward` does; also return the tokens that each of them left.

        Args:
            x, grids: see `forward`.
            past: tokens of earlier frames for each block.
        """
        strata: Strata | None = None
        tokens: list[Strata | None] = []
        for i, block in enumerate(self.blocks):
            run = _checkpointed(block) if self.with_cp else block
            x, strata = run(x, grids[i % len(grids)], strata, past[i] if past else None)
            tokens.append(strata)
        return x, tokens


def _checkpointed(block: nn.Module) -> Callable:
    def run(
        x: SparseConvTensor, grid: WindowGrid, strata: Strata | None, past: PastTokens | None
    ) -> tuple[SparseConvTensor, Strata | None]:
        def recompute(feats: Tensor, strata: Strata | None) -> tuple[Tensor, Strata | None]:
            out, refined = block(x.replace_feature(feats), grid, strata, past)
            return out.features, refined

        feats, refined = checkpoint(recompute, x.features, strata, use_reentrant=False)
        return x.replace_feature(feats), refined

    return run
