"""Proxies of regions; they exchange what the voxels then read: PT-DiT."""

from __future__ import annotations

from torch import Tensor

from projects.attention_zoo.cells import Cells, average, group_samples, region_cells
from projects.attention_zoo.groups import Groups, attend_groups
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.window_grid import WindowGrid
from stratified3d.ops import stratified_attention


class ProxyAttention(Baseline):
    """Attention inside the window, plus what the voxels read from the proxies of their sample.

    A proxy is the mean of a region of whole windows: queries, keys and values are means. There are
    at most `regions` x `regions` regions, so that the cost is linear. Proxies attend to all proxies
    of the sample first, and the voxels attend to what comes out. local=False leaves out the
    attention inside the window.

    PT-DiT (Wang et al. 2024, Qihoo-T2X, section 3.2), where the two follow one another in a block.
    Its regions grow with the image, too, so that the number of proxies stays; here that is the
    bound, and fewer are occupied.
    """

    defaults = dict(regions=16, local=True)
    variants = (dict(regions=8), dict(local=False))
    takes_rotated = False
    regions: int
    local: bool

    def build(self) -> None:
        self.check_at_least(1, 'regions')

    def prepare(self, grid: WindowGrid) -> tuple[Groups, Groups, Cells]:
        """Return the proxies of every voxel, those of every proxy, and the cells of proxies."""
        cells = region_cells(grid, self.regions, self.head_dim if self.use_rotary else None)
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
