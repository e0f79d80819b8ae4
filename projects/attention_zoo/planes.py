"""Windows taken apart into planes: ConDaFormer."""

from __future__ import annotations

import torch
from torch import Tensor

from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.attention import WindowGrid
from stratified3d.ops import WindowPlan, permute_rows, plan_windows, stratified_attention


class PlaneAttention(Baseline):
    """A third of the heads each attends to what shares the query's window and its slab along z, y
    or x, `thickness` voxels thick.

    ConDaFormer (Duan et al. 2023, section 3.2). Its convolutions before and after the attention are
    left to the block's own. The slabs run through the kernels of this package.
    """

    defaults = dict(thickness=1)
    variants = (dict(thickness=2), dict(thickness=4))

    def build(self) -> None:
        if self.num_heads < 3:
            raise ValueError(
                f'planes take a third of the heads each: num_heads is 3 or more, not {self.num_heads}'
            )
        if self.thickness < 1:
            raise ValueError(f'thickness is at least 1 voxel, not {self.thickness}')

    def prepare(self, grid: WindowGrid) -> list[WindowPlan]:
        plans, batch_size = [], len(grid.plan.batch_offsets) - 1
        for axis in range(3):
            # slabs are counted from the window's own border: the first voxel of the axis moves to a
            # multiple of it
            shape = list(grid.window_shape)
            place = grid.coords[:, 1 + axis] + grid.shift[axis]
            slabs = -(-shape[axis] // self.thickness)
            slab = place // shape[axis] * slabs + place % shape[axis] // self.thickness
            coords, shift = grid.coords.clone(), list(grid.shift)
            coords[:, 1 + axis], shape[axis], shift[axis] = slab, 1, 0
            plans.append(plan_windows(coords, shape, shift, batch_size=batch_size))
        return plans

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        outs = []
        for plan, heads in zip(self.prepared(grid), torch.arange(self.num_heads).tensor_split(3)):
            heads = slice(int(heads[0]), int(heads[-1]) + 1)
            out = stratified_attention(
                *(permute_rows(x[:, heads], plan.order, plan.inverse) for x in (q, k, v)), plan
            )
            outs.append(permute_rows(out, plan.inverse, plan.order))
        return torch.cat(outs, 1)
