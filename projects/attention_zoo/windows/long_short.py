"""Near voxels in one block, voxels at a fixed interval in the next: CrossFormer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from projects.attention_zoo.orders import window_index
from projects.attention_zoo.partitions import PartitionAttention
from stratified3d.layers.window_grid import WindowGrid


class LongShortAttention(PartitionAttention):
    """Even blocks attend inside windows, odd ones among voxels at an interval along x and y.

    A group of the latter has as many places as a window, `interval` voxels apart: it samples a
    region that is `interval` times as long and wide as a window.

    CrossFormer (Wang et al. 2022, section 3.2), whose groups of long distance share the places of
    the whole image in the same way. Its cross-scale embedding is left out.
    """

    defaults = dict(interval=8)  # of the first stage; 4, 2 and 1 later
    variants = (dict(interval=4), dict(interval=16))
    own_block = 1
    interval: int

    def build(self) -> None:
        if self.interval < 2:
            raise ValueError(
                f'interval is at least 2 voxels (1 would be a window), not {self.interval}'
            )
        self.phase = self.block % 2

    def partitions(self, grid: WindowGrid) -> list[Sequence[Tensor]]:
        layer, *near = window_index(grid)
        if not self.phase:
            return [(layer, *near)]

        labels = [layer]
        for axis in (1, 2):
            place = grid.coords[:, 1 + axis]
            region = place // (grid.window_shape[axis] * self.interval)
            labels += [region, place % self.interval]
        return [labels]
