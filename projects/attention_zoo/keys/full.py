"""Every voxel attends to every voxel of its sample."""

from __future__ import annotations

import torch
from torch import Tensor

from projects.attention_zoo.groups import (
    Groups,
    Ragged,
    attend_groups,
    pad_groups,
    split_samples,
    take,
)
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.window_grid import WindowGrid


class FullAttention(Baseline):
    """softmax(q k^T / sqrt(D)) v over all rows of the sample.

    queries_at_once > 0 splits the queries into pieces of that many rows, which bounds the memory
    where torch has no fused kernel; 0 takes all at once.

    ViT (Dosovitskiy et al. 2021, appendix A).
    """

    defaults = dict(queries_at_once=0)
    variants = (dict(queries_at_once=1024), dict(queries_at_once=8192))
    queries_at_once: int

    def build(self) -> None:
        self.check_at_least(0, 'queries_at_once')

    def prepare(self, grid: WindowGrid) -> Groups:
        offsets = grid.plan.batch_offsets.long()
        rows = torch.arange(len(grid.coords), device=offsets.device)
        pieces, sample = self._split_queries(offsets)
        keys = take(Ragged(rows, offsets), sample)

        # one bucket per length that occurs, so that nothing is padded
        sizes = (*pieces.diff(), *offsets.diff())
        lengths = sorted({int(n) for n in sizes if n})
        return pad_groups(Ragged(rows, pieces), keys, sample, lengths)

    def _split_queries(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the offsets [P + 1] of pieces of the samples, and the sample [P] of each piece."""
        if not self.queries_at_once:
            return offsets, torch.arange(len(offsets) - 1, device=offsets.device)

        start, _, sample = split_samples(offsets, self.queries_at_once)
        return torch.cat([start, offsets[-1:]]), sample

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        return attend_groups(q, k, v, self.prepared(grid))
