"""Regions choose the regions that they attend to: BiFormer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from projects.attention_zoo.cells import average, rows_of
from projects.attention_zoo.groups import (
    Ragged,
    attend_groups,
    list_ranges,
    offsets_of,
    pad_groups,
    split_samples,
)
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.window_grid import WindowGrid


class Regions(NamedTuple):
    """rows: of every region; sample: [W] of each."""

    rows: Ragged
    sample: Tensor


class RoutedAttention(Baseline):
    """The voxels of a region attend to the `topk` regions of the sample that suit it best.

    A region is `region` successive rows in window order; windows hold few voxels or many, and could
    not be compared by their means. Regions compare the mean query of one with the mean key of the
    other, over all heads and before the rotation. The choice has no gradient, and need not include
    the region itself.

    BiFormer (Zhu et al. 2023, section 3.2). Its convolution of the values is left to the block's
    own convolution. All pairs of regions are compared, so the cost has a small quadratic part.
    """

    defaults = dict(region=64, topk=4)  # of the second stage; 1 before and 16 after it
    variants = (dict(topk=1), dict(region=16, topk=16))
    takes_rotated = False
    region: int
    topk: int

    def build(self) -> None:
        self.check_at_least(1, 'region', 'topk')

    def prepare(self, grid: WindowGrid) -> Regions:
        start, end, sample = split_samples(grid.plan.batch_offsets, self.region)
        return Regions(list_ranges(start, end), sample)

    @torch.no_grad()
    def choose(self, q: Tensor, k: Tensor, regions: Regions, batch: int) -> Ragged:
        """Return the regions that every region chooses, from q and k [N, H, D]."""
        wide = torch.promote_types(q.dtype, torch.float32)
        queries, keys = (average(x.to(wide), regions.rows).flatten(1) for x in (q, k))
        sample = torch.arange(batch + 1, device=q.device)
        ends = torch.searchsorted(regions.sample, sample).tolist()

        none = regions.sample[:0]
        chosen, counts = [none], [none]
        for start, end in zip(ends, ends[1:]):
            count = min(self.topk, end - start)
            best = (queries[start:end] @ keys[start:end].T).topk(count).indices
            chosen.append((start + best).flatten())
            counts.append(torch.full((end - start,), count, device=q.device))
        return Ragged(torch.cat(chosen), offsets_of(torch.cat(counts)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        regions = self.prepared(grid)
        chosen = self.choose(q, k, regions, len(grid.plan.batch_offsets) - 1)
        wanted = rows_of(regions.rows, chosen)
        groups = pad_groups(regions.rows, wanted, regions.sample)  # most are full
        queries, keys = (self.rotate(x, grid.rotary) for x in (q, k))
        return attend_groups(queries, keys, v, groups)
