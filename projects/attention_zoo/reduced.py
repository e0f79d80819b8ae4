"""Fewer keys than voxels: PVT reduces them in space, Linformer projects them along the rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from projects.attention_zoo.groups import Groups, Ragged, attend_groups, pad_groups
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.attention import WindowGrid
from stratified3d.ops import apply_rotary, chunk_offsets, rotary_angles, segment_reduce


class Cells(NamedTuple):
    """order [N]: rows, cell after cell; offsets [K + 1] of the cells; rotary of their mean
    positions; groups."""

    order: Tensor
    offsets: Tensor
    rotary: tuple[Tensor, Tensor] | None
    groups: Groups

    @property
    def padding(self) -> float:
        return self.groups.padding


class SpatialReductionAttention(Baseline):
    """Every voxel attends to the occupied cells of R x R x R voxels of its sample; a cell's key and
    value are the means of its voxels', through a linear map and a layer norm.

    PVT (Wang et al. 2021, section 3.3; the mean is that of PVT v2). Linear maps commute with the
    mean, so keys and values are reduced after their projection; keys are turned to the cell's mean
    position.
    """

    defaults = dict(reduction=8)  # of the first stage; 4, 2 and 1 later
    variants = (dict(reduction=4), dict(reduction=16))
    takes_rotated = False

    def build(self) -> None:
        if self.reduction < 1:
            raise ValueError(f'reduction is at least 1 voxel, not {self.reduction}')
        channels = self.num_heads * self.head_dim
        self.reduce_k, self.reduce_v = (
            nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels)) for _ in range(2)
        )

    def prepare(self, grid: WindowGrid) -> Cells:
        cell = torch.cat([grid.coords[:, :1], grid.coords[:, 1:] // self.reduction], 1).long()
        high = cell.amax(0) + 1 if len(cell) else cell.new_ones(4)
        key = ((cell[:, 0] * high[1] + cell[:, 1]) * high[2] + cell[:, 2]) * high[3] + cell[:, 3]
        key, order = key.sort(stable=True)
        rows = torch.arange(len(key), device=key.device)
        first = torch.cat([rows[:1], (key.diff() != 0).nonzero().squeeze(1) + 1])
        offsets = torch.cat([first, first.new_tensor([len(key)])])
        rotary = None
        if self.use_rotary:
            rotary = rotary_angles(
                segment_reduce(grid.positions[order].float(), offsets, 'mean'), self.head_dim
            )
        ends = torch.searchsorted(first, grid.plan.batch_offsets.long())
        samples = torch.arange(len(ends) - 1, device=key.device)
        lengths = sorted({int(n) for n in (*ends.diff(), *grid.plan.batch_offsets.diff()) if n})
        groups = pad_groups(
            Ragged(rows, grid.plan.batch_offsets.long()),
            Ragged(rows[: len(first)], ends),
            samples,
            lengths,
        )
        return Cells(order, offsets, rotary, groups)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        cells = self.prepared(grid)
        k, v = (
            reduce(
                segment_reduce(x.flatten(1).index_select(0, cells.order), cells.offsets, 'mean')
            ).view(-1, *x.shape[1:])
            for reduce, x in ((self.reduce_k, k), (self.reduce_v, v))
        )
        if cells.rotary is not None:
            q, k = apply_rotary(q, *grid.rotary), apply_rotary(k, *cells.rotary)
        return attend_groups(q, k, v, cells.groups)


class LinformerAttention(Baseline):
    """Every voxel attends to `rank` learned mixtures of all keys and values of its sample.

    Linformer (Wang et al. 2020, section 4), one projection E shared by heads, keys and values. A
    sample of n voxels has no fixed length: row i takes column floor(i length / n) of E, and rows of
    one column count by their mean, so that E is the paper's where n equals `length`.
    """

    defaults = dict(rank=256, length=4096)
    variants = (dict(rank=128), dict(rank=64))

    def build(self) -> None:
        self.projection = nn.Parameter(torch.randn(self.rank, self.length) * self.length**-0.5)

    def prepare(self, grid: WindowGrid) -> tuple[Tensor, Groups]:
        offsets = grid.plan.batch_offsets
        batch = len(offsets) - 1
        rows = torch.arange(len(grid.coords), device=offsets.device)
        keys = torch.arange(batch * self.rank, device=offsets.device)
        samples = torch.arange(batch, device=offsets.device)
        lengths = sorted({int(n) for n in (*offsets.diff(), self.rank) if n})
        return chunk_offsets(offsets, self.length), pad_groups(
            Ragged(rows, offsets.long()),
            Ragged(keys, torch.arange(batch + 1, device=keys.device) * self.rank),
            samples,
            lengths,
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        columns, groups = self.prepared(grid)
        batch = len(grid.plan.batch_offsets) - 1
        k, v = (
            (
                self.projection.to(x.dtype)
                @ segment_reduce(x.flatten(1), columns, 'mean').view(batch, self.length, -1)
            ).view(-1, *x.shape[1:])
            for x in (k, v)
        )
        return attend_groups(q, k, v, groups)
