"""The sparse 3D backbone: stem, stratified stages with downsampling in between, BEV feature map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from stratified3d.layers.attention import MixerContext, StratifiedAttention
from stratified3d.layers.block import StratifiedStage
from stratified3d.layers.sparse_conv import SparseConv, SparseConvTensor, dense_bev
from stratified3d.layers.strata import Strata, StrataSelection, VoxelScores
from stratified3d.layers.strata_memory import PastTokens
from stratified3d.ops import grid_shape, voxel_centers

MODELS.register_module(module=StratifiedAttention)

Shape = tuple[int, int, int]


@MODELS.register_module()
class StratifiedEncoder(nn.Module):
    """Mix every voxel with its window and with the strata of its sample, then flatten to a map.

    Args:
        voxel_size: (x, y, z) meters.
        point_cloud_range: (x_min, y_min, z_min, x_max, y_max, z_max) meters.
        in_channels: of the voxel features.
        channels: C, the width of all stages.
        stem_depth: submanifold convolutions before the first stage.
        stages: one dict per stage: depth (blocks), window_shape (z, y, x) in voxels, stride
            (z, y, x) of the downsampling that follows it; (1, 1, 1) is none.
        num_heads: H, divides C.
        mixer: what mixes the voxels of a block, and its settings, see `build_mixer`; default
            dict(type='StratifiedAttention').
        shifted: every second block shifts its windows.
        use_rotary: rotary position embedding of queries and keys in meters.
        use_conv: submanifold convolution at the start of each block.
        ffn_ratio: hidden width of the feed-forward over C.
        precision: of sparse convolutions on CUDA, 'fp32' or 'fp16'.
        with_cp: activation checkpointing of the blocks.
    Raises:
        ValueError: a stride that does not divide the grid, an unknown mixer, or what parts refuse.
    """

    def __init__(
        self,
        voxel_size: Sequence[float],
        point_cloud_range: Sequence[float],
        in_channels: int = 64,
        channels: int = 128,
        stem_depth: int = 2,
        stages: Sequence[dict] = (),
        num_heads: int = 4,
        mixer: dict | None = None,
        shifted: bool = True,
        use_rotary: bool = True,
        use_conv: bool = True,
        ffn_ratio: float = 2.0,
        precision: str = 'fp32',
        with_cp: bool = False,
    ):
        super().__init__()
        if not stages:
            raise ValueError(
                'stages is empty: give at least one dict(depth=..., window_shape=..., stride=...)'
            )
        self.voxel_size = tuple(voxel_size)
        self.point_cloud_range = tuple(point_cloud_range)
        self.spatial_shape = grid_shape(voxel_size, point_cloud_range)
        context = MixerContext(channels, num_heads, use_rotary)
        context.check()

        self.input_proj = nn.Linear(in_channels, channels)
        self.stem = nn.ModuleList(
            _ConvNorm(channels, key='stage0.subm', precision=precision) for _ in range(stem_depth)
        )

        self.stages = nn.ModuleList()
        self.downsamples = nn.ModuleList()
        shape = self.spatial_shape
        strides = _strides_of(stages, shape, voxel_size, point_cloud_range)
        for i, (settings, stride) in enumerate(zip(stages, strides)):
            stage = StratifiedStage(
                channels,
                settings['depth'],
                _mixer_factory(mixer, context, settings['window_shape']),
                settings['window_shape'],
                shifted=shifted,
                head_dim=context.head_dim if use_rotary else None,
                use_conv=use_conv,
                ffn_ratio=ffn_ratio,
                name=f'stage{i}',
                precision=precision,
                with_cp=with_cp,
            )
            self.stages.append(stage)
            self.downsamples.append(_make_downsample(channels, stride, precision))
            z, y, x = (size // step for size, step in zip(shape, stride))
            shape = (z, y, x)

        self.out_shape = shape
        self.out_channels = channels * shape[0]
        self.norm = nn.LayerNorm(channels)

    @property
    def scores_voxels(self) -> bool:
        """Whether tokens are chosen by an objectness that has to be taught, see `forward`."""
        parts = self.modules()
        return any(isinstance(x, StrataSelection) and x.selection == 'topk' for x in parts)

    def forward(
        self,
        feats: Tensor,
        coords: Tensor,
        batch_size: int,
        scores: list[tuple[VoxelScores, tuple[float, ...]]] | None = None,
    ) -> Tensor:
        """Return the BEV feature map [B, out_channels, Y, X] of a batch of voxels.

        Args:
            feats: [N, in_channels].
            coords: [N, 4] int32 (batch, z, y, x).
            batch_size: B.
            scores: receives every objectness that tokens were chosen by, with the size (x, y, z) in
                meters of its voxels.
        """
        return self.encode(feats, coords, batch_size, scores=scores)[0]

    @property
    def memory_frames(self) -> int:
        """K, the earlier frames whose tokens the mixers attend to; 0 without memory."""
        memories = [getattr(mixer, 'memory', None) for mixer in self.mixers]
        return max((memory.frames for memory in memories if memory is not None), default=0)

    @property
    def mixers(self) -> list[Any]:
        """The mixer of every block of all stages."""
        stages: list[Any] = list(self.stages)
        return [block.mixer for stage in stages for block in stage.blocks]

    def encode(
        self,
        feats: Tensor,
        coords: Tensor,
        batch_size: int,
        past: Sequence[PastTokens | None] | None = None,
        scores: list[tuple[VoxelScores, tuple[float, ...]]] | None = None,
    ) -> tuple[Tensor, list[Strata | None]]:
        """Return the BEV feature map, as `forward` does, and the tokens that every block left.

        Args:
            feats, coords, batch_size, scores: see `forward`.
            past: tokens of earlier frames for every block of all stages.
        Raises:
            ValueError: past for a mixer without memory.
        """
        shape = list(self.spatial_shape)
        x = SparseConvTensor(self.input_proj(feats), coords, shape, int(batch_size))
        tokens: list[Strata | None] = []
        for i, (stage, downsample) in enumerate(zip(self.stages, self.downsamples)):
            assert isinstance(stage, StratifiedStage)
            if i:
                x = _sort_voxels(x)
            size = self._size_of_voxels(x)
            x, grids = stage.order_voxels(x, self._positions(x, size))
            if i == 0:
                for conv in self.stem:
                    x = conv(x)
            done = len(tokens)
            own_past = past[done : done + len(stage.blocks)] if past else None
            x, refined = stage.run(x, grids, own_past)
            tokens += refined
            last = refined[-1] if refined else None
            if scores is not None and last is not None:
                scores.extend((score, size) for score in last.scores)
            x = downsample(x)
        return dense_bev(x.replace_feature(self.norm(x.features))), tokens

    def _size_of_voxels(self, x: SparseConvTensor) -> tuple[float, ...]:
        """Return the size (x, y, z) of a voxel in meters, at x's resolution."""
        full, now = self.spatial_shape[::-1], x.spatial_shape[::-1]
        return tuple(v * f / n for v, f, n in zip(self.voxel_size, full, now))

    def _positions(self, x: SparseConvTensor, size: tuple[float, ...]) -> Tensor:
        """Return the voxels' centers [N, 3] in meters; they have this size (x, y, z)."""
        with torch.no_grad():
            return voxel_centers(x.indices, size, self.point_cloud_range)


def build_mixer(mixer: dict | None, context: MixerContext) -> nn.Module:
    """Build what mixes the voxels of a block; it owns all its settings.

    Args:
        mixer: its type (default 'StratifiedAttention'), in mmdet3d's MODELS or importable under
            that name, and its settings. The type is called as kind(context, **settings), the module
            as mixer(x [N, C], grid, strata) -> ([N, C], strata).
        context: what the encoder decides for all mixers.
    Raises:
        ValueError: an unknown type, a setting that it does not have, or one of the encoder's.
    """
    settings = dict(mixer or {})
    name = settings.pop('type', 'StratifiedAttention')
    kind = MODELS.get(name) if isinstance(name, str) else name
    if kind is None:
        raise ValueError(f'mixer: {name!r} is neither registered nor importable under that name')

    shared = settings.keys() & MixerContext._fields
    if shared:
        raise ValueError(
            f'mixer: {", ".join(sorted(shared))} belong to the encoder: set them there'
        )
    try:
        return kind(context, **settings)
    except TypeError as error:
        raise ValueError(f'mixer {kind.__name__}: {error}') from error


def _mixer_factory(
    mixer: dict | None, context: MixerContext, window_shape: Sequence[int]
) -> Callable[[int], nn.Module]:
    """Return a function from the index of a block to its mixer."""

    z, y, x = window_shape

    def make(block: int) -> nn.Module:
        return build_mixer(mixer, context._replace(window_shape=(z, y, x), block=block))

    return make


def _strides_of(
    stages: Sequence[dict],
    shape: Shape,
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
) -> list[Shape]:
    """Return the stride (z, y, x) of each stage; together they must divide the grid.

    Raises:
        ValueError: they do not, with the nearest larger range for which they would.
    """
    strides = []
    total = [1, 1, 1]
    for i, settings in enumerate(stages):
        z, y, x = settings.get('stride', (1, 1, 1))
        if min(z, y, x) < 1:
            raise ValueError(f'stage {i}: stride {(z, y, x)} (z, y, x) must be positive')
        strides.append((z, y, x))
        total = [total[0] * z, total[1] * y, total[2] * x]

    missing = [-size % steps for size, steps in zip(shape, total)]  # voxels along z, y, x
    if any(missing):
        fitting = list(point_cloud_range)
        for axis, voxels in enumerate(reversed(missing)):
            fitting[3 + axis] = round(fitting[3 + axis] + voxels * voxel_size[axis], 6)
        raise ValueError(
            f'the strides of all stages, together {tuple(total)} (z, y, x), do not divide the grid '
            f'{shape} (z, y, x), whose last slices would be lost; use '
            f'point_cloud_range={fitting}, other strides or another voxel_size'
        )
    return strides


def _make_downsample(channels: int, stride: Shape, precision: str) -> nn.Module:
    if stride == (1, 1, 1):
        return nn.Identity()
    return _ConvNorm(channels, stride, stride=stride, kind='strided', precision=precision)


def _sort_voxels(x: SparseConvTensor) -> SparseConvTensor:
    """Sort voxels by (batch, z, y, x), whatever order a strided convolution left them in.

    That order differs by device and by run, and the strata are chunks of rows.
    """
    z, y, x_size = x.spatial_shape
    batch, iz, iy, ix = x.indices.long().unbind(1)
    cell = ((batch * z + iz) * y + iy) * x_size + ix
    order = cell.argsort()
    feats = x.features.index_select(0, order)
    return SparseConvTensor(feats, x.indices[order], x.spatial_shape, x.batch_size)


class _ConvNorm(nn.Module):
    """Sparse convolution, layer norm (a batch may contain one voxel or none), GELU."""

    def __init__(self, channels: int, kernel_size: int | Sequence[int] = 3, **settings):
        super().__init__()
        self.conv = SparseConv(channels, channels, kernel_size, **settings)
        self.norm = nn.LayerNorm(channels)
        self.act = nn.GELU()

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        x = self.conv(x)
        return x.replace_feature(self.act(self.norm(x.features)))
