"""Near keys dense, far keys sparse, in one softmax: Stratified Transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from projects.attention_zoo.groups import (
    Bucket,
    Groups,
    Ragged,
    attend_groups,
    gather,
    pad_groups,
    scatter,
    window_rows,
)
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.attention import WindowGrid

# logits at a time where they are written out
_LOGITS = 1 << 24


def farthest_points(positions: Tensor, count: int) -> Tensor:
    """Indices of `count` points, each the farthest from those before it, from the first point on:
    [N, 3] -> [count]."""
    chosen = torch.zeros(count, dtype=torch.int64, device=positions.device)
    distance = positions.new_full((len(positions),), torch.inf)
    for i in range(1, count):
        distance = torch.minimum(distance, (positions - positions[chosen[i - 1]]).square().sum(1))
        chosen[i] = distance.argmax()
    return chosen


class SampledWindowAttention(Baseline):
    """Keys are the query's window and those of a sampled part of the sample that lie in the doubled
    window but not in the window itself; one softmax over both.

    Stratified Transformer (Lai et al. 2022, section 3.2). The part is found by farthest point
    sampling ('fps') or is every n-th row of window order ('stride'). contextual adds its relative
    positions (section 3.3): tables over the offset along each axis, met by the query, by the key,
    and added to the value.
    """

    defaults = dict(part=1 / 8, sampling='fps', contextual=True)
    variants = (
        dict(part=1 / 4),
        dict(sampling='stride'),
        dict(sampling='stride', contextual=False),
    )

    def build(self) -> None:
        if not 0 < self.part <= 1:
            raise ValueError(f'part lies in 0 to 1, not {self.part}')
        if self.sampling not in ('fps', 'stride'):
            raise ValueError(f"sampling is 'fps' or 'stride', not {self.sampling!r}")
        if self.contextual:
            if self.window_shape is None:
                raise ValueError(
                    'contextual=True needs window_shape: its tables are as long as two windows'
                )
            # offsets run from -(2 w - 1) to 2 w - 1 voxels
            self.tables = nn.ParameterList(
                0.02 * torch.randn(3, 4 * w - 1, self.num_heads, self.head_dim)
                for w in self.window_shape
            )

    def prepare(self, grid: WindowGrid) -> Groups:
        windows, sample = window_rows(grid.plan)
        first = windows.offsets[:-1]
        window = torch.arange(len(first), device=first.device)
        window_of = window.repeat_interleave(windows.offsets.diff())  # [N]
        doubled = torch.stack(
            [
                grid.coords[:, 0],
                *(
                    (grid.coords[:, 1 + axis] + grid.shift[axis]) // (2 * grid.window_shape[axis])
                    for axis in range(3)
                ),
            ],
            1,
        )
        doubled = (
            doubled.unique(dim=0, return_inverse=True)[1] if len(doubled) else window_of
        )  # [N]
        far = self._sample(grid)
        far = far[doubled[far].argsort(stable=True)]
        # all sampled rows of a window's doubled window, less its own
        start, end = (
            torch.searchsorted(doubled[far], doubled[first], right=right) for right in (False, True)
        )
        owner = window.repeat_interleave(end - start)
        ends = (end - start).cumsum(0)
        place = (
            torch.arange(len(owner), device=first.device)
            - (ends - (end - start))[owner]
            + start[owner]
        )
        rows = far[place]
        outside = window_of[rows] != owner
        rows, owner = (
            torch.cat([windows.rows, rows[outside]]),
            torch.cat([window_of, owner[outside]]),
        )
        order = owner.argsort(stable=True)
        offsets = torch.searchsorted(
            owner[order], torch.arange(len(first) + 1, device=first.device)
        )
        return pad_groups(
            windows, Ragged(rows[order], offsets), sample, (16, 32, 64, 128, 256, 512)
        )

    def _sample(self, grid: WindowGrid) -> Tensor:
        rows = [grid.plan.order[:0]]
        offsets = grid.plan.batch_offsets.tolist()
        for start, end in zip(offsets, offsets[1:]):
            count = -(-(end - start) // round(1 / self.part))
            if self.sampling == 'fps' and count:
                rows.append(start + farthest_points(grid.positions[start:end], count))
            else:
                rows.append(
                    start
                    + torch.arange(count, device=rows[0].device) * (end - start) // max(1, count)
                )
        return torch.cat(rows)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        groups = self.prepared(grid)
        if not self.contextual:
            return attend_groups(q, k, v, groups)
        q = q * self.head_dim**-0.5
        outs = []
        for bucket in groups.buckets:
            size = max(
                1, _LOGITS // (self.num_heads * bucket.queries.shape[1] * bucket.keys.shape[1])
            )
            pieces = zip(
                *(
                    (x.split(size) if x is not None else [None] * -(-len(bucket.queries) // size))
                    for x in bucket
                )
            )
            outs.append(
                torch.cat(
                    [self._attend_bucket(q, k, v, grid.coords, Bucket(*piece)) for piece in pieces]
                )
            )
        return scatter(outs, groups, q)

    def _attend_bucket(
        self, q: Tensor, k: Tensor, v: Tensor, coords: Tensor, bucket: Bucket
    ) -> Tensor:
        """[G, H, L, D]; q is scaled already."""
        queries, keys, values = (
            gather(q, bucket.queries),
            gather(k, bucket.keys),
            gather(v, bucket.keys),
        )
        logits = queries @ keys.transpose(-1, -2)  # [G, H, L, K]
        indices = []
        for axis, table in enumerate(self.tables):
            to_query, to_key, _ = table.to(q.dtype).permute(0, 2, 3, 1)  # [H, D, T] each
            offset = coords[bucket.queries, 1 + axis].unsqueeze(2) - coords[
                bucket.keys, 1 + axis
            ].unsqueeze(1)
            # a padded key lies anywhere in the window, a padded query too
            index = (offset.long() + table.shape[1] // 2).unsqueeze(1).expand_as(logits)
            logits = logits + (queries @ to_query).gather(-1, index)
            logits = logits + (keys @ to_key).gather(-1, index.transpose(-1, -2)).transpose(-1, -2)
            indices.append(index)
        if bucket.key_real is not None:
            logits = logits.masked_fill(~bucket.key_real[:, None, None], -torch.inf)
        weights = logits.softmax(-1)
        out = weights @ values
        for table, index in zip(self.tables, indices):
            # weights of equal offsets are summed up before they meet the table
            summed = weights.new_zeros(*weights.shape[:3], table.shape[1]).scatter_add(
                -1, index, weights
            )
            out = out + summed @ table[2].to(q.dtype).transpose(0, 1)
        return out
