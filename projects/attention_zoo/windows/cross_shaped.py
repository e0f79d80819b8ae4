"""Strips along x and along y: CSWin Transformer."""

from __future__ import annotations

from torch import Tensor

from projects.attention_zoo.partitions import PartitionAttention, check_heads
from stratified3d.layers.window_grid import WindowGrid


class CrossShapedAttention(PartitionAttention):
    """Half of the heads attends inside strips along x, the other half inside strips along y.

    A strip is `width` voxels wide, as long as the sample and as high: the two form a cross.

    CSWin Transformer (Dong et al. 2022, section 3.2). Its convolution of the values is left to the
    block's own convolution.
    """

    defaults = dict(width=1)  # of the first stage; 2 and 7 later
    variants = (dict(width=2), dict(width=7))
    width: int

    def build(self) -> None:
        check_heads(self, 2)
        self.check_at_least(1, 'width')

    def partitions(self, grid: WindowGrid) -> list[tuple[Tensor]]:
        _, y, x = grid.coords[:, 1:].unbind(1)
        return [(y // self.width,), (x // self.width,)]
