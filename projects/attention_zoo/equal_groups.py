"""Voxels in window order cut into groups of one size, whatever window they lie in: FlatFormer."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.attention_zoo.groups import gather
from projects.attention_zoo.mixer import Baseline
from projects.attention_zoo.sets import sort_in_windows
from stratified3d.layers.attention import WindowGrid


class EqualGroups(NamedTuple):
    """rows [G, T]; place [N]: where a row's output stands among the flattened places; real [G, T]
    bool, or None where every sample fills a group."""

    rows: Tensor
    place: Tensor
    real: Tensor | None

    @property
    def padding(self) -> float:
        """Part of the logits that belong to a padded key or to a query that is computed twice."""
        size = self.rows.shape[1]
        owned = (self.place // size).bincount(minlength=len(self.rows)).double()
        keys = size if self.real is None else self.real.sum(1)
        return 1 - float((owned * keys).sum()) / max(1, self.rows.numel() * size)


class EqualGroupAttention(Baseline):
    """Voxels are sorted by window and then along one axis, and every T of them in a row form a
    group that attends inside itself. What remains of a sample forms a group with the rows before
    it; a sample of fewer than T voxels is one group, padded.

    FlatFormer (Liu et al. 2023, section 3.1). Even blocks sort along x, odd ones along y.
    """

    defaults = dict(group_size=144)
    variants = (dict(group_size=72), dict(group_size=288))

    def build(self) -> None:
        if self.group_size < 1:
            raise ValueError(f'group_size is at least 1, not {self.group_size}')
        self.phase = self.block % 2

    def prepare(self, grid: WindowGrid) -> EqualGroups:
        order, size = sort_in_windows(grid, axis=self.phase), self.group_size
        offsets = grid.plan.batch_offsets.long()
        count = offsets.diff()
        groups = -(-count // size)
        sample = torch.arange(len(count), device=order.device).repeat_interleave(groups)
        before = torch.cat([groups.new_zeros(1), groups.cumsum(0)])[:-1]
        number = torch.arange(len(sample), device=order.device) - before[sample]
        # the last group reaches back so that it is full
        start = torch.minimum(number * size, (count[sample] - size).clamp(min=0))
        place = torch.arange(size, device=order.device)
        within = torch.minimum(start[:, None] + place, count[sample, None] - 1)  # [G, T]
        rows = order[offsets[sample, None] + within]
        real = place < count[sample, None]
        rank = torch.arange(len(order), device=order.device)
        owner = grid.plan.sample.long()
        rank = rank - offsets[owner]  # of the sorted rows in their sample
        group = before[owner] + rank // size
        where = torch.empty_like(order)
        where[order] = group * size + rank - start[group]
        return EqualGroups(rows, where, None if bool(real.all()) else real)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        groups = self.prepared(grid)
        mask = None if groups.real is None else groups.real[:, None, None]
        out = F.scaled_dot_product_attention(
            *(gather(x, groups.rows) for x in (q, k, v)), attn_mask=mask
        )
        return out.transpose(1, 2).flatten(0, 1).index_select(0, groups.place)
