"""Near voxels one by one, far ones as the means of their windows: focal attention."""

from __future__ import annotations

import torch
from torch import Tensor

from projects.attention_zoo.cells import Cells, average, cells_around, window_cells
from projects.attention_zoo.groups import Groups, Ragged, attend_groups, join, pad_groups
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.window_grid import WindowGrid

_LENGTHS = (16, 32, 64, 128, 256, 512, 1024)


class FocalAttention(Baseline):
    """Keys are the voxels of the window, and the means of the windows that are near.

    A window is near if it is at most `reach` windows away along z, y and x; the window itself is
    one of them. One softmax runs over both. Keys of windows are rotated to their mean position.

    Focal Transformer (Yang et al. 2021, section 3.2), with two levels. Its first level reaches a
    few voxels beyond the window, and its learned weights of a mean depend on the place.
    """

    defaults = dict(reach=3)  # 7 x 7 windows, of the first stage; 5, 3 and 1 later
    variants = (dict(reach=1), dict(reach=2))
    takes_rotated = False
    reach: int

    def build(self) -> None:
        self.check_at_least(1, 'reach')

    def prepare(self, grid: WindowGrid) -> tuple[Cells, Groups]:
        cells = window_cells(grid, self.head_dim if self.use_rotary else None)
        around = cells_around(cells, cells.places, [self.reach] * 3)
        # means stand behind the rows in the table of keys
        means = Ragged(len(grid.coords) + around.rows, around.offsets)
        keys = join(cells.rows, means)
        return cells, pad_groups(cells.rows, keys, cells.sample, _LENGTHS)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        cells, groups = self.prepared(grid)
        near = self.rotate(k, grid.rotary)
        far = self.rotate(average(k, cells.rows), cells.rotary)
        keys = torch.cat([near, far])
        values = torch.cat([v, average(v, cells.rows)])
        return attend_groups(self.rotate(q, grid.rotary), keys, values, groups)
