"""Every voxel attends to every voxel of its sample."""

from __future__ import annotations

import torch
from torch import Tensor

from projects.attention_zoo.groups import Groups, Ragged, attend_groups, pad_groups
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.attention import WindowGrid


class FullAttention(Baseline):
    """softmax(q k^T / sqrt(D)) v over all rows of the sample.

    ViT (Dosovitskiy et al. 2021, appendix A). queries_at_once > 0 hands the queries over in pieces
    of that many rows, which bounds the memory where torch has no fused kernel; 0 all at once.
    """

    defaults = dict(queries_at_once=0)
    variants = (dict(queries_at_once=1024), dict(queries_at_once=8192))

    def prepare(self, grid: WindowGrid) -> Groups:
        offsets = grid.plan.batch_offsets.long()
        rows = torch.arange(len(grid.coords), device=offsets.device)
        samples = torch.arange(len(offsets) - 1, device=offsets.device)
        pieces, owner = offsets, samples
        if self.queries_at_once:
            count = -(-offsets.diff() // self.queries_at_once)
            owner = samples.repeat_interleave(count)
            first = torch.cat([count.new_zeros(1), count.cumsum(0)])[:-1]
            start = (
                offsets[owner]
                + (torch.arange(len(owner), device=rows.device) - first[owner])
                * self.queries_at_once
            )
            pieces = torch.cat([start, offsets[-1:]])
        keys = _repeat_lists(rows, offsets, owner)
        # samples differ in length: each is a bucket of its own, so that none is padded
        lengths = sorted({int(n) for n in (*pieces.diff(), *offsets.diff()) if n})
        return pad_groups(Ragged(rows, pieces), keys, owner, lengths)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        return attend_groups(q, k, v, self.prepared(grid))


def _repeat_lists(rows: Tensor, offsets: Tensor, which: Tensor) -> Ragged:
    """Lists which[0], which[1], ... of the given ones, one after the other."""
    size = offsets.diff()[which]
    ends = size.cumsum(0)
    start = (offsets[which] - ends + size).repeat_interleave(size)
    return Ragged(
        rows[start + torch.arange(len(start), device=rows.device)],
        torch.cat([ends.new_zeros(1), ends]),
    )
