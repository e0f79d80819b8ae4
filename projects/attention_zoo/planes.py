"""Windows divided into planes along every axis: ConDaFormer."""

from __future__ import annotations

import torch
from torch import Tensor

from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.attention import WindowGrid
from stratified3d.ops import WindowPlan, permute_rows, plan_windows, stratified_attention


class PlaneAttention(Baseline):
    """A third of the heads each attends inside slabs of the window along z, y and x.

    A slab is `thickness` voxels thick. The slabs run through the kernels of this package.

    ConDaFormer (Duan et al. 2023, section 3.2). Its convolutions before and after the attention are
    left to the block's own convolution.
    """

    defaults = dict(thickness=1)
    variants = (dict(thickness=2), dict(thickness=4))
    thickness: int

    def build(self) -> None:
        if self.num_heads < 3:
            raise ValueError(
                'planes take a third of the heads each: num_heads is 3 or more, not '
                f'{self.num_heads}'
            )
        if self.thickness < 1:
            raise ValueError(f'thickness is at least 1 voxel, not {self.thickness}')

    def prepare(self, grid: WindowGrid) -> list[WindowPlan]:
        return [self._plan_slabs(grid, axis) for axis in range(3)]

    def _plan_slabs(self, grid: WindowGrid, axis: int) -> WindowPlan:
        """Plan windows one slab thick along an axis (0 is z, 1 is y, 2 is x)."""
        length = grid.window_shape[axis]
        place = grid.coords[:, 1 + axis] + grid.shift[axis]

        # every window starts a new slab, whether or not the thickness divides it
        slabs = -(-length // self.thickness)
        slab = place // length * slabs + place % length // self.thickness

        coords = grid.coords.clone()
        coords[:, 1 + axis] = slab
        shape = list(grid.window_shape)
        shape[axis] = 1
        shift = list(grid.shift)
        shift[axis] = 0
        return plan_windows(coords, shape, shift, batch_size=len(grid.plan.batch_offsets) - 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        thirds = torch.arange(self.num_heads).tensor_split(3)
        outs = []
        for plan, third in zip(self.prepared(grid), thirds):
            heads = slice(int(third[0]), int(third[-1]) + 1)
            queries, keys, values = (
                permute_rows(x[:, heads], plan.order, plan.inverse) for x in (q, k, v)
            )
            out = stratified_attention(queries, keys, values, plan)
            outs.append(permute_rows(out, plan.inverse, plan.order))
        return torch.cat(outs, 1)
