"""Windows cut into sets of one size: DSVT."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.attention_zoo.groups import gather, number_members, window_rows
from projects.attention_zoo.mixer import Baseline
from projects.attention_zoo.orders import AXIS_OF_BLOCK, sort_in_windows
from stratified3d.layers.window_grid import WindowGrid


class Sets(NamedTuple):
    """S sets of T places.

    Attributes:
        rows: [S, T], the row at every place.
        repeated: [S, T] bool, whether a place repeats the row of the place before it.
        place: [N], the first place of every row among the S T flattened places.
    """

    rows: Tensor
    repeated: Tensor
    place: Tensor

    @property
    def padding(self) -> float:
        """Return the share of the logits that belong to a repeated voxel."""
        distinct = (~self.repeated).sum(1).double()  # [S]
        logits = self.rows.numel() * self.rows.shape[1]
        return 1 - float((distinct**2).sum()) / max(1, logits)


class SetAttention(Baseline):
    """Attention inside sets of `set_size` places, which are cut from sorted windows.

    A window of n voxels is sorted along one axis and cut into s = ceil(n / T) sets of T places.
    Place k of set j holds voxel floor((j T + k) n / (s T)); a repeated voxel counts once. Blocks
    sort along x and y in turn.

    DSVT (Wang et al. 2023, section 3.2, equations 1 to 4).
    """

    # voxels on Waymo; 36 for pillars there, 90 on nuScenes, in windows of 30 x 30
    defaults = dict(set_size=48)
    variants = (dict(set_size=36), dict(set_size=90))
    set_size: int

    def build(self) -> None:
        self.check_at_least(1, 'set_size')
        self.phase = AXIS_OF_BLOCK[self.block % 4]

    def prepare(self, grid: WindowGrid) -> Sets:
        order = sort_in_windows(grid, axis=self.phase)  # [N]
        windows, _ = window_rows(grid.plan)
        index = self._fill_sets(windows.offsets)  # [S, T] places in order

        repeated = torch.zeros_like(index, dtype=torch.bool)
        repeated[:, 1:] = index[:, 1:] == index[:, :-1]

        place = torch.empty_like(order)
        distinct = order[index[~repeated]]
        place[distinct] = (~repeated).flatten().nonzero().squeeze(1)
        return Sets(order[index], repeated, place)

    def _fill_sets(self, window_offsets: Tensor) -> Tensor:
        """Return which of the sorted rows fills every place [S, T]."""
        size = self.set_size
        count = window_offsets.diff()  # [W], n
        sets = -(-count // size)  # [W], s
        window, number = number_members(sets)  # [S], j

        place = number[:, None] * size + torch.arange(size, device=number.device)  # j T + k
        places = (sets * size)[window, None]  # s T
        return window_offsets[window, None] + place * count[window, None] // places

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        sets = self.prepared(grid)
        queries = gather(q, sets.rows)  # [S, H, T, D]
        keys = gather(k, sets.rows)
        values = gather(v, sets.rows)
        mask = ~sets.repeated[:, None, None]  # [S, 1, 1, T]
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return out.transpose(1, 2).flatten(0, 1).index_select(0, sets.place)
