"""Windows divided into planes along every axis: ConDaFormer."""

from __future__ import annotations

from torch import Tensor

from projects.attention_zoo.orders import window_index
from projects.attention_zoo.partitions import PartitionAttention, check_heads
from stratified3d.layers.window_grid import WindowGrid


class PlaneAttention(PartitionAttention):
    """A third of the heads each attends inside slabs of the window along z, y and x.

    A slab is `thickness` voxels thick.

    ConDaFormer (Duan et al. 2023, section 3.2). Its convolutions before and after the attention are
    left to the block's own convolution.
    """

    defaults = dict(thickness=1)
    variants = (dict(thickness=2), dict(thickness=4))
    thickness: int

    def build(self) -> None:
        check_heads(self, 3)
        self.check_at_least(1, 'thickness')

    def partitions(self, grid: WindowGrid) -> list[tuple[Tensor, ...]]:
        parts = []
        for axis in range(3):
            place = grid.coords[:, 1 + axis] + grid.shift[axis]
            slab = place % grid.window_shape[axis] // self.thickness
            parts.append((*window_index(grid), slab))
        return parts
