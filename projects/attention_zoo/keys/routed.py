"""Windows choose the windows that they attend to: BiFormer."""

from __future__ import annotations

import torch
from torch import Tensor

from projects.attention_zoo.cells import Cells, average, rows_of, window_cells
from projects.attention_zoo.groups import Ragged, attend_groups, offsets_of, pad_groups
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.attention import WindowGrid

_LENGTHS = (16, 32, 64, 128, 256, 512, 1024)


class RoutedAttention(Baseline):
    """The voxels of a window attend to the `topk` windows of the sample that suit it best.

    Windows compare the mean query of one with the mean key of the other, over all heads and before
    the rotation. The choice has no gradient. Windows need not choose themselves.

    BiFormer (Zhu et al. 2023, section 3.2). Its convolution of the values is left to the block's
    own convolution. All pairs of windows are compared, so the cost has a small quadratic part.
    """

    defaults = dict(topk=4)  # of the second stage; 1 before and 16 after it
    variants = (dict(topk=1), dict(topk=16))
    takes_rotated = False
    topk: int

    def build(self) -> None:
        if self.topk < 1:
            raise ValueError(f'topk is at least 1 window, not {self.topk}')

    def prepare(self, grid: WindowGrid) -> Cells:
        return window_cells(grid)

    @torch.no_grad()
    def choose(self, q: Tensor, k: Tensor, cells: Cells, batch: int) -> Ragged:
        """Return the cells that every cell chooses, sample by sample, from q and k [N, H, D]."""
        queries = average(q, cells).flatten(1)
        keys = average(k, cells).flatten(1)
        sample = torch.arange(batch + 1, device=q.device)
        ends = torch.searchsorted(cells.sample, sample).tolist()

        chosen, counts = [cells.order[:0]], [cells.order[:0]]
        for start, end in zip(ends, ends[1:]):
            count = min(self.topk, end - start)
            best = (queries[start:end] @ keys[start:end].T).topk(count).indices
            chosen.append((start + best).flatten())
            counts.append(torch.full((end - start,), count, device=q.device))
        return Ragged(torch.cat(chosen), offsets_of(torch.cat(counts)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        cells = self.prepared(grid)
        chosen = self.choose(q, k, cells, len(grid.plan.batch_offsets) - 1)
        groups = pad_groups(cells.rows, rows_of(cells, chosen), cells.sample, _LENGTHS)
        queries, keys = (self.rotate(x, grid.rotary) for x in (q, k))
        return attend_groups(queries, keys, v, groups)
