"""Larger and larger windows, whose keys are means of more and more voxels: VWFormer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from projects.attention_zoo.cells import Cells, average, group_cells, window_cells
from projects.attention_zoo.groups import Groups, Ragged, attend_groups, list_ranges, pad_groups
from projects.attention_zoo.mixer import Baseline
from projects.attention_zoo.orders import window_index
from projects.attention_zoo.partitions import check_heads, fold_columns
from stratified3d.layers.window_grid import WindowGrid

_LENGTHS = (16, 32, 64, 128, 256, 512, 1024)


class Scale(NamedTuple):
    """The keys of one ratio, and the windows that read them."""

    cells: Cells
    groups: Groups


class VaryingWindowAttention(Baseline):
    """The ratios share the heads; at ratio R a window attends to a region R times as long and wide.

    The region has the window in its middle. Its keys are the means of R x R voxels of one height,
    of those whose middle lies in the region, so that all ratios have as many places.

    Varying window attention (Yan et al. 2024, section 3.2, VWFormer), whose learned reduction of
    the region is a mean here.
    """

    defaults = dict(ratios=(2, 4, 8))
    variants = (dict(ratios=(1, 4)), dict(ratios=(4,)))
    takes_rotated = False
    ratios: Sequence[int]

    def build(self) -> None:
        self.check_ascending('ratios')
        check_heads(self, len(self.ratios), hint=', or name fewer ratios')

    def prepare(self, grid: WindowGrid) -> list[Scale]:
        windows = window_cells(grid)
        return [self._scale(grid, windows, ratio) for ratio in self.ratios]

    def _scale(self, grid: WindowGrid, windows: Cells, ratio: int) -> Scale:
        layer = fold_columns(grid.plan.sample, window_index(grid)[0])
        z, y, x = grid.coords[:, 1:].unbind(1)
        place = torch.stack([y // ratio, x // ratio, z], 1)
        cells = group_cells(grid, place, layer, self.head_dim if self.use_rotary else None)

        # the cells of one line along x are a run; lines beyond the region are empty
        label = layer[windows.order[windows.offsets[:-1]]].unsqueeze(1)  # [W, 1]
        start, end = self._region(grid, windows, ratio)
        lines = start[:, :1] + torch.arange(grid.window_shape[1] + 1, device=start.device)
        first = _search(cells, label, lines, start[:, 1:])  # [W, w + 1]
        last = _search(cells, label, lines, end[:, 1:])
        runs = list_ranges(first.flatten(), torch.where(lines < end[:, :1], last, first).flatten())
        keys = Ragged(runs.rows, runs.offsets[:: lines.shape[1]])
        return Scale(cells, pad_groups(windows.rows, keys, windows.sample, _LENGTHS))

    def _region(self, grid: WindowGrid, windows: Cells, ratio: int) -> tuple[Tensor, Tensor]:
        """Return the cells (y, x) where every window's region starts and ends, [W, 2] each."""
        shape = windows.places.new_tensor(grid.window_shape[1:])
        corner = windows.places[:, 2:] * shape - windows.places.new_tensor(grid.shift[1:])
        corner = corner - (ratio - 1) * shape // 2
        # the middle of cell c is voxel c R + R // 2
        start = -((ratio // 2 - corner) // ratio)
        end = -((ratio // 2 - corner - ratio * shape) // ratio)
        return start, end

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        scales = self.prepared(grid)
        q = self.rotate(q, grid.rotary)
        shares = [x.tensor_split(len(scales), 1) for x in (q, k, v)]
        outs = []
        for query, key, value, (cells, groups) in zip(*shares, scales):
            keys = self.rotate(average(key, cells.rows), cells.rotary)
            outs.append(attend_groups(query, keys, average(value, cells.rows), groups))
        return torch.cat(outs, 1)


def _search(cells: Cells, *wanted: Tensor) -> Tensor:
    """Return how many cells come before the label, y and x of every place, which broadcast."""
    places = torch.stack(torch.broadcast_tensors(*wanted), -1)  # [..., 3]
    both = torch.cat([cells.places[:, :3], places.view(-1, 3)])
    own, key = fold_columns(*both.unbind(1)).tensor_split([len(cells.places)])
    return torch.searchsorted(own, key).view(places.shape[:-1])
