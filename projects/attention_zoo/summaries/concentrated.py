"""Linear attention over the sample, concentrated by a convolution, and windows in turn: L2ViT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from projects.attention_zoo.cells import cells_around, group_cells
from projects.attention_zoo.groups import Ragged, number_members
from projects.attention_zoo.mixer import Baseline
from projects.attention_zoo.summaries.linear import attend_features
from stratified3d.layers.window_grid import WindowGrid
from stratified3d.ops import segment_reduce, stratified_attention


class ConcentratedLinearAttention(Baseline):
    """Even blocks attend inside windows; odd ones linearly to the whole sample, then concentrate.

    The linear attention has the ReLU as its feature: o_i = f(q_i) S / (f(q_i) z) with sums over the
    sample. To concentrate it, a depth-wise convolution over `kernel`² places of the same height is
    added: o_i + sum_j w_(j - i) o_j, where w starts at zero.

    L2ViT (Zheng 2025, section 3), whose module of concentration has two such convolutions with a
    nonlinearity between them.
    """

    defaults = dict(kernel=7)
    variants = (dict(kernel=3), dict(kernel=5))
    takes_rotated = False
    own_block = 1
    kernel: int

    def build(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f'kernel is an odd number of places, 1 or more, not {self.kernel}')
        self.phase = self.block % 2
        if self.phase:
            places = self.kernel**2
            self.weights = nn.Parameter(torch.zeros(places, self.num_heads, self.head_dim))

    def prepare(self, grid: WindowGrid) -> tuple[Ragged, Tensor, Tensor]:
        """Return the near rows of every cell, the place of each in the kernel, and the cell of
        every row."""
        cells = group_cells(grid, grid.coords[:, 1:])
        radius = self.kernel // 2
        around = cells_around(cells, cells.places, (0, radius, radius))

        owner, _ = number_members(around.offsets.diff())
        step = cells.places[around.rows] - cells.places[owner] + radius
        near = Ragged(cells.order[around.rows], around.offsets)  # one voxel per cell
        return near, step[:, 2] * self.kernel + step[:, 3], cells.members

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        if not self.phase:
            queries, keys = (self.rotate(x, grid.rotary) for x in (q, k))
            return stratified_attention(queries, keys, v, grid.plan)

        near, place, cell = self.prepared(grid)
        ends = grid.plan.batch_offsets.tolist()
        outs = [q[:0]]
        for start, end in zip(ends, ends[1:]):
            queries, keys, values = (x[start:end].transpose(0, 1) for x in (q.relu(), k.relu(), v))
            outs.append(attend_features(queries, keys, values).transpose(0, 1))
        out = torch.cat(outs)
        terms = (self.weights[place] * out[near.rows]).flatten(1)
        around = segment_reduce(terms, near.offsets, 'sum')[cell]
        return out + around.view_as(out).to(out.dtype)
