"""One stratified block: submanifold convolution, attention (or another mixer), feed-forward; and a
stage of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stratified3d.layers.attention import WindowGrid, build_window_grid
from stratified3d.layers.sparse_conv import SparseConv, SparseConvTensor
from stratified3d.layers.strata import Strata


class StratifiedBlock(nn.Module):
    """x += norm(conv(x)); x += mixer(norm(x)); x += feed-forward(norm(x)).

    Args:
        channels: C.
        mixer: module called as mixer(x [N, C], grid, strata) -> ([N, C], strata).
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
        self, x: SparseConvTensor, grid: WindowGrid, strata: Strata | None = None
    ) -> tuple[SparseConvTensor, Strata | None]:
        feats = x.features
        if self.conv is not None:
            encoded = self.conv(x)
            feats, x = feats + self.conv_norm(encoded.features), encoded
        feats, strata = self.mix(feats, grid, strata)
        return x.replace_feature(feats), strata

    def mix(
        self, feats: Tensor, grid: WindowGrid, strata: Strata | None = None
    ) -> tuple[Tensor, Strata | None]:
        """What follows the convolution: [N, C] -> [N, C]; torch.compile and torch.export trace it
        in one graph."""
        mixed, strata = self.mixer(self.mixer_norm(feats), grid, strata)
        feats = feats + mixed
        return feats + self.ffn(feats), strata


class StratifiedStage(nn.Module):
    """Blocks at one resolution; regular and shifted windows take turns, each planned once.

    Args:
        channels: C.
        depth: number of blocks.
        make_mixer: called with the block's index, returns its mixer.
        window_shape: (z, y, x) in voxels.
        shifted: whether every second block shifts its windows by half a window in all axes that
        they do not span.
        carry_tokens: whether the strata tokens of a block go on to the next one.
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
        carry_tokens: bool = True,
        head_dim: int | None = None,
        use_conv: bool = True,
        ffn_ratio: float = 2.0,
        name: str = 'stage',
        precision: str = 'fp32',
        with_cp: bool = False,
    ):
        super().__init__()
        self.window_shape, self.shifted = tuple(window_shape), shifted
        self.carry_tokens, self.head_dim, self.with_cp = carry_tokens, head_dim, with_cp
        self.blocks = nn.ModuleList(
            StratifiedBlock(
                channels, make_mixer(i), ffn_ratio, f'{name}.subm' if use_conv else None, precision
            )
            for i in range(depth)
        )

    def order_voxels(
        self, x: SparseConvTensor, positions: Tensor
    ) -> tuple[SparseConvTensor, list[WindowGrid]]:
        """Move voxels into the order of the regular windows, where every other block finds them at
        its hand.

        Args:
            x: N voxels. positions: [N, 3] meters of their centers.
        Returns:
            the voxels, without rulebooks, and the grids of this stage for them.
        """
        shape, batch = tuple(x.spatial_shape), x.batch_size
        shifts = [
            (0, 0, 0),
            tuple(0 if w >= s else w // 2 for w, s in zip(self.window_shape, shape)),
        ]
        grids = [
            build_window_grid(
                x.indices,
                positions,
                self.window_shape,
                shift,
                batch_size=batch,
                spatial_shape=shape,
                head_dim=self.head_dim,
            )
            for shift in dict.fromkeys(shifts[: 1 + (self.shifted and len(self.blocks) > 1)])
        ]
        regular = grids[0]
        x = SparseConvTensor(regular.into_windows(x.features), regular.coords, list(shape), batch)
        return x, [grid.after(regular) for grid in grids]

    def forward(self, x: SparseConvTensor, grids: Sequence[WindowGrid]) -> SparseConvTensor:
        """x: N voxels; grids: of these voxels in this order, see `order_voxels`."""
        strata = None
        for i, block in enumerate(self.blocks):
            run = block if not self.with_cp else _checkpointed(block)
            x, strata = run(x, grids[i % len(grids)], strata if self.carry_tokens else None)
        return x


def _checkpointed(block: StratifiedBlock) -> Callable:
    def run(
        x: SparseConvTensor, grid: WindowGrid, strata: Strata | None
    ) -> tuple[SparseConvTensor, Strata | None]:
        def inner(feats: Tensor, strata: Strata | None) -> tuple[Tensor, Strata | None]:
            out, new = block(x.replace_feature(feats), grid, strata)
            return out.features, new

        feats, new = checkpoint(inner, x.features, strata, use_reentrant=False)
        return x.replace_feature(feats), new

    return run
