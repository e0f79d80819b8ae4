"""One proxy per window; proxies exchange what the voxels then read: PT-DiT."""

from __future__ import annotations

from torch import Tensor

from projects.attention_zoo.cells import Cells, average, group_samples, window_cells
from projects.attention_zoo.groups import Groups, attend_groups
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.attention import WindowGrid
from stratified3d.ops import stratified_attention


class ProxyAttention(Baseline):
    """Attention inside the window, plus what the voxels read from the proxies of their sample.

    The proxy of a window is its mean: queries, keys and values are means. Proxies attend to all
    proxies of the sample first, and the voxels attend to what comes out. local=False leaves out the
    attention inside the window.

    PT-DiT (Wang et al. 2024, Qihoo-T2X, section 3.2), where the two follow one another in a block.
    """

    defaults = dict(local=True)
    variants = (dict(local=False),)
    takes_rotated = False
    local: bool

    def prepare(self, grid: WindowGrid) -> tuple[Groups, Groups, Cells]:
        """Return the proxies of every voxel, the proxies of every proxy, and the windows."""
        cells = window_cells(grid, self.head_dim if self.use_rotary else None)
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
