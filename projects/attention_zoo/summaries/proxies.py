"""Proxies of windows; they exchange what the voxels then read: PT-DiT."""

from __future__ import annotations

import torch
from torch import Tensor

from projects.attention_zoo.cells import Cells, average, group_cells, group_samples
from projects.attention_zoo.groups import Groups, attend_groups
from projects.attention_zoo.mixer import Baseline
from projects.attention_zoo.orders import window_index
from stratified3d.layers.attention import WindowGrid
from stratified3d.ops import stratified_attention


class ProxyAttention(Baseline):
    """Attention inside the window, plus what the voxels read from the proxies of their sample.

    The proxy of a window is its mean: queries, keys and values are means. With split > 1 windows
    have split x split proxies, for as many parts along y and x. Proxies attend to all proxies of
    the sample first, and the voxels attend to what comes out. local=False leaves out the attention
    inside the window.

    PT-DiT (Wang et al. 2024, Qihoo-T2X, section 3.2), where the two follow one another in a block.
    """

    defaults = dict(split=1, local=True)
    variants = (dict(split=2), dict(local=False))
    takes_rotated = False
    split: int
    local: bool

    def build(self) -> None:
        self.check_at_least(1, 'split')

    def prepare(self, grid: WindowGrid) -> tuple[Groups, Groups, Cells]:
        """Return the proxies of every voxel, those of every proxy, and the cells of proxies."""
        places = [window_index(grid)[0]]
        for axis in (1, 2):
            place = grid.coords[:, 1 + axis] + grid.shift[axis]
            places.append(place * self.split // grid.window_shape[axis])
        head_dim = self.head_dim if self.use_rotary else None
        cells = group_cells(grid, torch.stack(places, 1), head_dim=head_dim)
        batch = len(grid.plan.batch_offsets) - 1
        read = group_samples(grid.plan.sample, cells.sample, batch)
        return read, group_samples(cells.sample, cells.sample, batch), cells

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        read, exchange, cells = self.prepared(grid)
        queries, keys = (self.rotate(average(x, cells.rows), cells.rotary) for x in (q, k))
        values = attend_groups(queries, keys, average(v, cells.rows), exchange)

        q, k = (self.rotate(x, grid.rotary) for x in (q, k))
        far = attend_groups(q, keys, values, read)
        return far + stratified_attention(q, k, v, grid.plan) if self.local else far
