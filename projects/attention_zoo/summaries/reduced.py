"""Fewer keys than voxels: PVT reduces them in space, Linformer projects them along the rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from projects.attention_zoo.cells import Cells, average, group_cells, group_samples
from projects.attention_zoo.groups import Groups, attend_groups
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.window_grid import WindowGrid
from stratified3d.ops import chunk_offsets, segment_reduce


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
        self.check_at_least(1, 'reduction')
        channels = self.num_heads * self.head_dim
        self.reduce_k, self.reduce_v = (
            nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels)) for _ in range(2)
        )

    def prepare(self, grid: WindowGrid) -> tuple[Cells, Groups]:
        head_dim = self.head_dim if self.use_rotary else None
        cells = group_cells(grid, grid.coords[:, 1:] // self.reduction, head_dim=head_dim)
        batch = len(grid.plan.batch_offsets) - 1
        return cells, group_samples(grid.plan.sample, cells.sample, batch)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        cells, groups = self.prepared(grid)
        keys = self.rotate(self._reduce(self.reduce_k, k, cells), cells.rotary)
        values = self._reduce(self.reduce_v, v, cells)
        return attend_groups(self.rotate(q, grid.rotary), keys, values, groups)

    @staticmethod
    def _reduce(layer: nn.Module, x: Tensor, cells: Cells) -> Tensor:
        """Average x [N, H, D] over every cell and apply a layer: [K, H, D]."""
        means = average(x, cells.rows)
        return layer(means.flatten(1)).view_as(means)


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
        self.check_at_least(1, 'rank', 'length')
        projection = torch.randn(self.rank, self.length) * self.length**-0.5
        self.projection = nn.Parameter(projection)

    def prepare(self, grid: WindowGrid) -> tuple[Tensor, Groups]:
        """Return the offsets of the columns, and one group per sample."""
        offsets = grid.plan.batch_offsets
        batch = len(offsets) - 1
        mixtures = torch.arange(batch, device=offsets.device).repeat_interleave(self.rank)
        groups = group_samples(grid.plan.sample, mixtures, batch)
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
