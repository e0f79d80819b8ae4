"""Places of a window averaged over all windows, and means of large cells: FaViT."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from projects.attention_zoo.cells import Cells, average, group_cells, group_samples, region_cells
from projects.attention_zoo.groups import Groups, attend_groups
from projects.attention_zoo.mixer import Baseline
from projects.attention_zoo.partitions import check_heads
from stratified3d.layers.window_grid import WindowGrid


class Share(NamedTuple):
    """Means that some of the heads read, and the groups in which they do."""

    cells: Cells
    groups: Groups


class FactorizedAttention(Baseline):
    """The heads share three ways to summarize the sample, each as the keys of all its voxels.

    One share reads the means of regions of whole windows, at most `regions` x `regions` of them.
    Each of the others divides the sample into windows of `window`³ places and averages every place
    over all windows. A place is one voxel in the first of them, and `dilation` voxels long and wide
    in the other.

    FaViT (Qin et al. 2023, section 3.2). In an image a dilated place is one pixel and those between
    are skipped; here it is the mean of its voxels, most of which are empty. Its convolutions of
    keys and values are left out. The paper calls its cost linear: at its images of 224 pixels all
    stages have 7 x 7 regions. Its code fixes their size instead, so that their number grows.
    """

    defaults = dict(
        window=7, dilation=8, regions=16
    )  # dilation of the first stage; 4, 2 and 1 later
    variants = (dict(dilation=4), dict(window=5), dict(regions=7))
    takes_rotated = False
    window: int
    dilation: int
    regions: int

    def build(self) -> None:
        check_heads(self, 3)
        self.check_at_least(2, 'window', 'dilation')
        self.check_at_least(1, 'regions')

    def prepare(self, grid: WindowGrid) -> list[Share]:
        place = grid.coords[:, 1:]
        head_dim = self.head_dim if self.use_rotary else None
        cells = [region_cells(grid, self.regions, head_dim)]
        for length in (1, self.dilation):
            size = place.new_tensor((1, length, length))
            cells.append(group_cells(grid, place // size % self.window))

        sample = grid.plan.sample
        batch = len(grid.plan.batch_offsets) - 1
        return [Share(one, group_samples(sample, one.sample, batch)) for one in cells]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        shares = self.prepared(grid)
        parts = [x.tensor_split(3, 1) for x in (q, k, v)]
        outs = []
        for query, key, value, share in zip(*parts, shares):
            outs.append(self._read(query, key, value, share, grid))
        return torch.cat(outs, 1)

    def _read(self, q: Tensor, k: Tensor, v: Tensor, share: Share, grid: WindowGrid) -> Tensor:
        """Attend to the means of a share; only regions, which have a position, are rotated."""
        keys = average(k, share.cells.rows)
        if share.cells.rotary is not None:
            q, keys = self.rotate(q, grid.rotary), self.rotate(keys, share.cells.rotary)
        return attend_groups(q, keys, average(v, share.cells.rows), share.groups)
