"""Lines along every axis: axial attention."""

from __future__ import annotations

from torch import Tensor

from projects.attention_zoo.partitions import PartitionAttention, check_heads
from stratified3d.layers.window_grid import WindowGrid


class AxialAttention(PartitionAttention):
    """Voxels attend along lines of the sample: the axes share the heads evenly.

    The paper alternates the axes from layer to layer. Here heads do, so that one block moves
    information along all of them.

    Axial attention (Ho et al. 2019, section 3).
    """

    defaults = dict(axes='zyx')
    variants = (dict(axes='yx'), dict(axes='x'))
    axes: str

    def build(self) -> None:
        is_known = self.axes and set(self.axes) <= set('zyx')
        if not is_known or len(set(self.axes)) < len(self.axes):
            raise ValueError(f"axes are some of 'zyx', each once, not {self.axes!r}")
        check_heads(self, len(self.axes), hint=f', or name fewer axes than {self.axes!r}')

    def partitions(self, grid: WindowGrid) -> list[list[Tensor]]:
        place = dict(zip('zyx', grid.coords[:, 1:].unbind(1)))
        return [[place[other] for other in 'zyx' if other != axis] for axis in self.axes]
