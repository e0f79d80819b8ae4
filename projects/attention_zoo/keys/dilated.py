"""Neighbors, next to each other in one block and at a distance in the next: DiNAT."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from projects.attention_zoo.cells import cells_around, group_cells, rows_of
from projects.attention_zoo.groups import Groups, attend_groups, pad_groups
from projects.attention_zoo.mixer import Baseline
from projects.attention_zoo.partitions import fold_columns
from stratified3d.layers.window_grid import WindowGrid

_LENGTHS = (2, 4, 8, 16, 32, 64, 128, 256)


class DilatedAttention(Baseline):
    """Every voxel attends to a `kernel`³ neighborhood around it; odd blocks dilate it.

    Even blocks take the nearest places. Odd blocks take places `dilation` (z, y, x) voxels apart.
    Only occupied places are keys.

    DiNAT (Hassani and Shi 2022, section 3.2). In an image the neighborhood is moved inside at the
    border, to keep its size; here most places are empty anyway, and it stays around its voxel.
    """

    # of the first stage; heights are few, and are not skipped
    defaults = dict(kernel=7, dilation=(1, 8, 8))
    variants = (dict(kernel=5), dict(dilation=(1, 4, 4)))
    own_block = 1
    kernel: int
    dilation: Sequence[int]

    def build(self) -> None:
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(f'kernel is an odd number of places, 3 or more, not {self.kernel}')
        steps = list(self.dilation) if isinstance(self.dilation, Sequence) else []
        if len(steps) != 3 or min(steps) < 1:
            raise ValueError(f'dilation is (z, y, x), each at least 1 voxel, not {self.dilation}')
        self.phase = self.block % 2

    def prepare(self, grid: WindowGrid) -> tuple[Tensor, Groups]:
        """Return how far keys are away at most, [3] voxels, and groups of neighboring cells."""
        steps = grid.coords.new_tensor(self.dilation if self.phase else (1, 1, 1))
        radius = self.kernel // 2

        # voxels at multiples of the step from each other, in cells as long as the radius
        place = grid.coords[:, 1:]
        label = fold_columns(grid.plan.sample, *(place % steps).unbind(1))
        cells = group_cells(grid, place // steps // radius, label)
        keys = rows_of(cells.rows, cells_around(cells, cells.places, (1, 1, 1)))
        return steps * radius, pad_groups(cells.rows, keys, cells.sample, _LENGTHS)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        reach, groups = self.prepared(grid)
        place = grid.coords[:, 1:]

        def is_near(queries: Tensor, keys: Tensor) -> Tensor:
            return ((place[queries] - place[keys]).abs() <= reach).all(-1)

        return attend_groups(q, k, v, groups, sees=is_near)
