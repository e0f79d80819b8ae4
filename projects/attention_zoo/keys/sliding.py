"""Neighbors along an order of the rows, and a few rows that see and are seen by all: Longformer."""

from __future__ import annotations

import torch
from torch import Tensor

from projects.attention_zoo.groups import (
    Groups,
    Ragged,
    append,
    attend_groups,
    join,
    keep,
    list_ranges,
    number_members,
    offsets_of,
    pad_groups,
    split_samples,
    take,
)
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.window_grid import WindowGrid


class SlidingAttention(Baseline):
    """Every row attends to the `reach` rows before and after it, and to global rows.

    The order is that of the windows.

    `num_global` rows of a sample, evenly spaced in that order, attend to all rows of the sample,
    and all rows attend to them.

    Longformer (Beltagy et al. 2020, section 3.1). Its global rows are words that the task names,
    and have projections of their own; here they are the same for all.
    """

    defaults = dict(reach=256, num_global=64)
    variants = (dict(reach=64), dict(reach=32, num_global=16))
    reach: int
    num_global: int

    def build(self) -> None:
        self.check_at_least(1, 'reach')
        self.check_at_least(0, 'num_global')

    def prepare(self, grid: WindowGrid) -> tuple[Tensor, Groups]:
        """Return which rows are global, bool [N], and the groups: chunks, then global rows."""
        ends = grid.plan.batch_offsets.long()
        rows = torch.arange(len(grid.coords), device=ends.device)
        hubs = self._hubs(ends)
        is_hub = torch.zeros_like(rows, dtype=torch.bool).index_fill_(0, hubs.rows, True)

        chunks, around, sample = self._chunks(ends)
        queries = append(keep(chunks, ~is_hub), hubs)
        near = join(keep(around, ~is_hub), take(hubs, sample))
        keys = append(near, Ragged(rows, ends))
        samples = torch.arange(len(ends) - 1, device=ends.device)
        lengths = {self.reach, max(1, self.num_global), 3 * self.reach + self.num_global}
        groups = pad_groups(queries, keys, torch.cat([sample, samples]), sorted(lengths))
        return is_hub, groups

    def _chunks(self, ends: Tensor) -> tuple[Ragged, Ragged, Tensor]:
        """Return chunks of `reach` rows, the rows that each may see, and the sample of each."""
        start, end, sample = split_samples(ends, self.reach)
        before = torch.maximum(start - self.reach, ends[sample])
        after = torch.minimum(end + self.reach, ends[sample + 1])
        return list_ranges(start, end), list_ranges(before, after), sample

    def _hubs(self, ends: Tensor) -> Ragged:
        """Return the global rows of every sample: row floor(i n / m) of n, for i below m."""
        size = ends.diff()
        count = size.clamp(max=self.num_global)
        sample, number = number_members(count)
        rows = ends[sample] + number * size[sample] // count[sample].clamp(min=1)
        return Ragged(rows, offsets_of(count))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        is_hub, groups = self.prepared(grid)

        def is_seen(queries: Tensor, keys: Tensor) -> Tensor:
            is_near = (queries - keys).abs() <= self.reach
            return is_near | is_hub[queries] | is_hub[keys]

        return attend_groups(q, k, v, groups, sees=is_seen)
