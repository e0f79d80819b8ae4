"""The sparse 3D backbone: stem, stratified stages with downsampling after each, bird's-eye view."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from stratified3d.layers.attention import StratifiedAttention
from stratified3d.layers.block import StratifiedStage
from stratified3d.layers.sparse_conv import SparseConv, SparseConvTensor, dense_bev
from stratified3d.ops import grid_shape, voxel_centers


@MODELS.register_module()
class StratifiedEncoder(nn.Module):
    """Mix every voxel with its window and with the strata of its sample, then flatten to a map.

    Args:
        voxel_size: (x, y, z) meters.
        point_cloud_range: (x_min, y_min, z_min, x_max, y_max, z_max) meters.
        in_channels: of the voxel features.
        channels: C, the width of all stages.
        stem_depth: submanifold convolutions before the first stage.
        stages: one dict a stage: depth (blocks), window_shape (z, y, x) in voxels, stride (z, y, x)
        of the
            downsampling that follows it; (1, 1, 1) is none.
        num_heads: H, divides C.
        num_strata, selection, fusion, strata_offset, use_rotary: see `StratifiedAttention`.
        mixer: None for `StratifiedAttention`, or a dict with the type of another one and settings
        of its own; see
            `build_mixer`.
        carry_tokens: strata tokens go on from block to block of a stage.
        shifted: every second block shifts its windows.
        use_conv: submanifold convolution at the start of each block.
        ffn_ratio: hidden width of the feed-forward over C.
        backend: of the attention ops; None takes the fastest.
        precision: of sparse convolutions on CUDA, 'fp32' or 'fp16'.
        with_cp: activation checkpointing of the blocks.
    Raises:
        ValueError: a stride that does not divide the grid, a mixer that is not there, or what the
        parts refuse.
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
        num_strata: int = 64,
        selection: str = 'pool',
        fusion: str = 'joint',
        carry_tokens: bool = True,
        strata_offset: float | None = -4.0,
        shifted: bool = True,
        use_rotary: bool = True,
        use_conv: bool = True,
        ffn_ratio: float = 2.0,
        backend: str | None = None,
        precision: str = 'fp32',
        with_cp: bool = False,
        mixer: dict | None = None,
    ):
        super().__init__()
        if not stages:
            raise ValueError(
                'stages is empty: give at least one dict(depth=..., window_shape=..., stride=...)'
            )
        self.voxel_size, self.point_cloud_range = tuple(voxel_size), tuple(point_cloud_range)
        self.spatial_shape = grid_shape(voxel_size, point_cloud_range)
        self.input_proj = nn.Linear(in_channels, channels)
        self.stem = nn.ModuleList(
            _ConvNorm(
                SparseConv(channels, channels, 3, key='stage0.subm', precision=precision), channels
            )
            for _ in range(stem_depth)
        )
        self.stages, self.downsamples = nn.ModuleList(), nn.ModuleList()
        shape = self.spatial_shape
        for i, stage in enumerate(stages):
            stride = tuple(stage.get('stride', (1, 1, 1)))
            if min(stride) < 1 or any(s % t for s, t in zip(shape, stride)):
                raise ValueError(
                    f'stage {i}: stride {stride} does not divide the grid {shape} (z, y, x); the last '
                    'slices would be lost'
                )

            def make_mixer(
                block: int, window_shape: Sequence[int] = stage['window_shape']
            ) -> nn.Module:
                return build_mixer(
                    mixer,
                    channels=channels,
                    num_heads=num_heads,
                    num_strata=num_strata,
                    selection=selection,
                    fusion=fusion,
                    creates_tokens=block == 0 or not carry_tokens,
                    strata_offset=strata_offset,
                    use_rotary=use_rotary,
                    backend=backend,
                    block=block,
                    window_shape=window_shape,
                )

            self.stages.append(
                StratifiedStage(
                    channels,
                    stage['depth'],
                    make_mixer,
                    stage['window_shape'],
                    shifted=shifted,
                    carry_tokens=carry_tokens,
                    head_dim=channels // num_heads if use_rotary else None,
                    use_conv=use_conv,
                    ffn_ratio=ffn_ratio,
                    name=f'stage{i}',
                    precision=precision,
                    with_cp=with_cp,
                )
            )
            down = nn.Identity()
            if stride != (1, 1, 1):
                down = _ConvNorm(
                    SparseConv(
                        channels,
                        channels,
                        stride,
                        stride=stride,
                        kind='strided',
                        precision=precision,
                    ),
                    channels,
                )
            self.downsamples.append(down)
            shape = tuple(s // t for s, t in zip(shape, stride))
        self.out_shape, self.out_channels = shape, channels * shape[0]
        self.norm = nn.LayerNorm(channels)

    def forward(self, feats: Tensor, coords: Tensor, batch_size: int) -> Tensor:
        """feats [N, in_channels], coords [N, 4] int32 (batch, z, y, x) -> map [B, out_channels, Y,
        X]."""
        x = SparseConvTensor(
            self.input_proj(feats), coords, list(self.spatial_shape), int(batch_size)
        )
        for i, (stage, down) in enumerate(zip(self.stages, self.downsamples)):
            if i:
                x = _sorted(x)
            x, grids = stage.order_voxels(x, self._positions(x))
            for conv in self.stem if i == 0 else ():
                x = conv(x)
            x = down(stage(x, grids))
        return dense_bev(x.replace_feature(self.norm(x.features)))

    def _positions(self, x: SparseConvTensor) -> Tensor:
        """[N, 3] meters: centers of the voxels at x's resolution."""
        size = [
            v * full / now
            for v, full, now in zip(
                self.voxel_size, self.spatial_shape[::-1], x.spatial_shape[::-1]
            )
        ]
        with torch.no_grad():
            return voxel_centers(x.indices, size, self.point_cloud_range)


def build_mixer(mixer: dict | None, **offered: Any) -> nn.Module:
    """Build what mixes the voxels of a block.

    Args:
        mixer: None for `StratifiedAttention`; else its type, in mmdet3d's MODELS or importable
        under that name, and
            settings of its own. It is called as mixer(x [N, C], grid, strata) -> ([N, C], strata).
        offered: settings of the encoder, `block`, the block's index in its stage, and the stage's
        `window_shape`; the
            type is handed those that its constructor names.
    Raises:
        ValueError: an unknown type, or settings that the whole encoder shares.
    """
    mixer = dict(mixer or dict(type=StratifiedAttention))
    kind = MODELS.get(mixer['type']) if isinstance(mixer['type'], str) else mixer['type']
    if kind is None:
        raise ValueError(
            f'mixer: there is no {mixer["type"]!r} in the registry, nor under that name to import'
        )
    fixed = {'channels', 'num_heads', 'use_rotary'} & mixer.keys()
    if fixed:  # the stage tabulates rotary angles by them
        raise ValueError(
            f'mixer: {", ".join(sorted(fixed))} belong to the whole encoder: set them there'
        )
    named = inspect.signature(kind).parameters
    return kind(
        **{name: value for name, value in offered.items() if name in named}
        | {name: value for name, value in mixer.items() if name != 'type'}
    )


def _sorted(x: SparseConvTensor) -> SparseConvTensor:
    """Voxels by (batch, z, y, x): the order that a strided convolution leaves differs by device and
    by run, and the strata are chunks of rows."""
    z, y, x_size = x.spatial_shape
    b, iz, iy, ix = x.indices.long().unbind(1)
    order = (((b * z + iz) * y + iy) * x_size + ix).argsort()
    return SparseConvTensor(
        x.features.index_select(0, order), x.indices[order], x.spatial_shape, x.batch_size
    )


class _ConvNorm(nn.Module):
    """Sparse convolution, layer norm, GELU; layer norm because a batch may hold a single voxel or
    none."""

    def __init__(self, conv: SparseConv, channels: int):
        super().__init__()
        self.conv, self.norm, self.act = conv, nn.LayerNorm(channels), nn.GELU()

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        x = self.conv(x)
        return x.replace_feature(self.act(self.norm(x.features)))
