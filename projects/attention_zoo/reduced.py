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
    """K occupied cells.

    Attributes:
        order: [N], rows sorted by cell.
        offsets: [K + 1], where the rows of every cell start and end in that order.
        rotary: (cos, sin) at the mean position of every cell; None without rotary embedding.
        groups: one per sample, its rows as queries and its cells as keys.
    """

    order: Tensor
    offsets: Tensor
    rotary: tuple[Tensor, Tensor] | None
    groups: Groups

    @property
    def padding(self) -> float:
        return self.groups.padding


class SpatialReductionAttention(Baseline):
    """Every voxel attends to the occupied cells of R x R x R voxels of its sample.

    Key and value of a cell are the means over its voxels, after a linear layer and a layer norm.

    PVT (Wang et al. 2021, section 3.3; the mean is that of PVT v2). Linear layers commute with the
    mean, so keys and values are reduced after their projection; keys are rotated to the mean
    position of the cell.
    """

    defaults = dict(reduction=8)  # of the first stage; 4, 2 and 1 later
    variants = (dict(reduction=4), dict(reduction=16))
    takes_rotated = False
    reduction: int

    def build(self) -> None:
        if self.reduction < 1:
            raise ValueError(f'reduction is at least 1 voxel, not {self.reduction}')
        channels = self.num_heads * self.head_dim
        self.reduce_k, self.reduce_v = (
            nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels)) for _ in range(2)
        )

    def prepare(self, grid: WindowGrid) -> Cells:
        batch_offsets = grid.plan.batch_offsets.long()
        order, first = self._sort_by_cell(grid.coords)
        rows = torch.arange(len(order), device=order.device)
        offsets = torch.cat([first, first.new_tensor([len(order)])])

        rotary = None
        if self.use_rotary:
            places = segment_reduce(grid.positions[order].float(), offsets, 'mean')
            rotary = rotary_angles(places, self.head_dim)

        queries = Ragged(rows, batch_offsets)
        keys = Ragged(rows[: len(first)], torch.searchsorted(first, batch_offsets))
        groups = _group_samples(queries, keys)
        return Cells(order, offsets, rotary, groups)

    def _sort_by_cell(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows [N] sorted by cell, and where every cell starts among them [K]."""
        sample = coords[:, :1]
        cell = torch.cat([sample, coords[:, 1:] // self.reduction], 1).long()
        batch, z, y, x = cell.unbind(1)
        _, depth, height, width = cell.amax(0) + 1 if len(cell) else cell.new_ones(4)

        key = ((batch * depth + z) * height + y) * width + x
        key, order = key.sort(stable=True)
        starts = (key.diff() != 0).nonzero().squeeze(1) + 1
        zero = torch.arange(len(key), device=key.device)[:1]  # empty without rows
        return order, torch.cat([zero, starts])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        cells = self.prepared(grid)
        keys = self._reduce(self.reduce_k, k, cells)
        values = self._reduce(self.reduce_v, v, cells)
        if cells.rotary is not None:
            assert grid.rotary is not None  # the stage tabulates it where use_rotary is set
            q = apply_rotary(q, *grid.rotary)
            keys = apply_rotary(keys, *cells.rotary)
        return attend_groups(q, keys, values, cells.groups)

    @staticmethod
    def _reduce(layer: nn.Module, x: Tensor, cells: Cells) -> Tensor:
        """Average x [N, H, D] over every cell and apply a layer: [K, H, D]."""
        rows = x.flatten(1).index_select(0, cells.order)
        mean = segment_reduce(rows, cells.offsets, 'mean')
        return layer(mean).view(-1, *x.shape[1:])


class LinformerAttention(Baseline):
    """Every voxel attends to `rank` learned mixtures of all keys and values of its sample.

    Linformer (Wang et al. 2020, section 4), with one projection E for all heads, keys and values. A
    sample of n voxels has no fixed length: row i uses column floor(i length / n) of E, and rows of
    one column count by their mean, so that E is the paper's where n equals `length`.
    """

    defaults = dict(rank=256, length=4096)
    variants = (dict(rank=128), dict(rank=64))
    rank: int
    length: int

    def build(self) -> None:
        projection = torch.randn(self.rank, self.length) * self.length**-0.5
        self.projection = nn.Parameter(projection)

    def prepare(self, grid: WindowGrid) -> tuple[Tensor, Groups]:
        """Return the offsets of the columns, and one group per sample."""
        offsets = grid.plan.batch_offsets
        batch = len(offsets) - 1
        rows = torch.arange(len(grid.coords), device=offsets.device)
        mixtures = torch.arange(batch * self.rank, device=offsets.device)

        queries = Ragged(rows, offsets.long())
        keys = Ragged(mixtures, torch.arange(batch + 1, device=offsets.device) * self.rank)
        groups = _group_samples(queries, keys)
        return chunk_offsets(offsets, self.length), groups

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        columns, groups = self.prepared(grid)
        return attend_groups(q, self._project(k, columns), self._project(v, columns), groups)

    def _project(self, x: Tensor, columns: Tensor) -> Tensor:
        """Mix x [N, H, D] to [B rank, H, D]."""
        batch = (len(columns) - 1) // self.length
        means = segment_reduce(x.flatten(1), columns, 'mean')
        mixed = self.projection.to(x.dtype) @ means.view(batch, self.length, -1)
        return mixed.view(-1, *x.shape[1:])


def _group_samples(queries: Ragged, keys: Ragged) -> Groups:
    """Group by sample, with one bucket per length that occurs, so that nothing is padded."""
    sizes = (*keys.offsets.diff(), *queries.offsets.diff())
    lengths = sorted({int(n) for n in sizes if n})
    samples = torch.arange(len(queries.offsets) - 1, device=queries.offsets.device)
    return pad_groups(queries, keys, samples, lengths)
