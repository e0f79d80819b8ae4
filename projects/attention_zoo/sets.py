"""Windows cut into sets of one size: DSVT."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.attention_zoo.groups import gather
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.attention import WindowGrid


class Sets(NamedTuple):
    """rows [S, T] of every set; repeated [S, T] bool: this place repeats the one before it; place
    [N]: where a row stands first among the flattened places."""

    rows: Tensor
    repeated: Tensor
    place: Tensor

    @property
    def padding(self) -> float:
        """Part of the logits that belong to a repeated voxel."""
        real = (~self.repeated).sum(1).double()
        return 1 - float((real**2).sum()) / max(1, self.rows.numel() * self.rows.shape[1])


class SetAttention(Baseline):
    """A window of n voxels is sorted along one axis and cut into ceil(n / T) sets of T places, and
    voxels attend inside their set. Place k of set j of s holds voxel floor((j T + k) n / (s T)); a
    voxel that is repeated counts once.

    DSVT (Wang et al. 2023, section 3.2, equations 1 to 4). Even blocks sort along x, odd ones along
    y.
    """

    defaults = dict(set_size=36)  # pillars on Waymo; 48 for voxels there, 90 on nuScenes
    variants = (dict(set_size=48), dict(set_size=90))

    def build(self) -> None:
        if self.set_size < 1:
            raise ValueError(f'set_size is at least 1, not {self.set_size}')
        self.phase = self.block % 2

    def prepare(self, grid: WindowGrid) -> Sets:
        plan, size = grid.plan, self.set_size
        order = sort_in_windows(grid, axis=self.phase)
        rows = torch.arange(len(order), device=order.device)
        first = (plan.window_start == rows).nonzero().squeeze(1)
        count = (plan.window_end.long() - rows)[first]  # n of each window
        sets = -(-count // size)
        window = torch.arange(len(first), device=order.device).repeat_interleave(sets)
        before = torch.cat([sets.new_zeros(1), sets.cumsum(0)])[window]
        number = torch.arange(len(window), device=order.device) - before  # j
        place = torch.arange(size, device=order.device)
        within = (
            (number[:, None] * size + place) * count[window, None] // (sets[window, None] * size)
        )
        index = first[window, None] + within  # [S, T] rows of the sorted windows
        repeated = torch.zeros_like(index, dtype=torch.bool)
        repeated[:, 1:] = index[:, 1:] == index[:, :-1]
        where = torch.empty_like(order)
        where[order[index[~repeated]]] = (~repeated).flatten().nonzero().squeeze(1)
        return Sets(order[index], repeated, where)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        sets = self.prepared(grid)
        out = F.scaled_dot_product_attention(
            *(gather(x, sets.rows) for x in (q, k, v)), attn_mask=~sets.repeated[:, None, None]
        )
        return out.transpose(1, 2).flatten(0, 1).index_select(0, sets.place)


def sort_in_windows(grid: WindowGrid, axis: int) -> Tensor:
    """[N] rows, window after window, inside each by (x, y, z) for axis 0 and by (y, x, z) for axis
    1."""
    z, y, x = grid.coords[:, 1:].unbind(1)
    order = z.argsort(stable=True)
    for key in (y, x) if axis == 0 else (x, y):
        order = order[key[order].argsort(stable=True)]
    return order[grid.plan.window_start[order].argsort(stable=True)]
