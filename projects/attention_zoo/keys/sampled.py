"""Near keys dense, far keys sparse, in one softmax: Stratified Transformer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from projects.attention_zoo.groups import (
    Bucket,
    Groups,
    Ragged,
    attend_groups,
    gather,
    join,
    list_ranges,
    number_members,
    offsets_of,
    pad_groups,
    run_offsets,
    scatter,
)
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.window_grid import WindowGrid

# logits that are written out at a time
_LOGITS = 1 << 24

# bucket lengths of queries and keys
_LENGTHS = (16, 32, 64, 128, 256, 512)


class SampledWindowAttention(Baseline):
    """Keys are the query's window and a sampled part of the doubled window around it.

    Far keys lie in the doubled window but not in the window itself; one softmax runs over near and
    far keys. Shifted blocks move both by half of their own length, as the authors' code does. The
    `part` of a sample, rounded up to a whole row, is found by farthest point sampling ('fps') or
    lies evenly in window order ('stride'). contextual adds relative positions (section 3.3): tables
    over the offset along each axis, multiplied by the query and by the key, and added to the value.

    Stratified Transformer (Lai et al. 2022, section 3.2).
    """

    defaults = dict(part=1 / 8, sampling='fps', contextual=True)
    variants = (
        dict(part=1 / 4),
        dict(sampling='stride'),
        dict(sampling='stride', contextual=False),
    )
    part: float
    sampling: str
    contextual: bool

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
        window = grid.plan.window_start.long()  # [N]
        doubled = _doubled_windows(grid)  # [N]

        # a shifted doubled window may cut a window: their common rows are a group
        key, order = (window * (len(window) + 1) + doubled).sort(stable=True)
        queries = Ragged(order, run_offsets(key))

        one = order[queries.offsets[:-1]]  # [G], a row of every group
        near = list_ranges(window[one], grid.plan.window_end.long()[one])
        far = self._far_rows(grid, window[one], doubled, doubled[one])
        return pad_groups(queries, join(near, far), grid.plan.sample[one].long(), _LENGTHS)

    def _far_rows(
        self, grid: WindowGrid, window: Tensor, doubled: Tensor, wanted: Tensor
    ) -> Ragged:
        """Return the sampled rows of every group's doubled window that lie outside its window.

        Args:
            window: [G], the first row of the group's window.
            doubled: [N], the doubled window of every row.
            wanted: [G], the doubled window of the group.
        """
        sampled = self._sample(grid)
        sampled = sampled[doubled[sampled].argsort(stable=True)]

        # the sampled rows of one doubled window are a run
        start = torch.searchsorted(doubled[sampled], wanted)
        end = torch.searchsorted(doubled[sampled], wanted, right=True)
        places = list_ranges(start, end)
        rows = sampled[places.rows]

        owner, _ = number_members(end - start)
        outside = grid.plan.window_start[rows] != window[owner]
        return Ragged(rows[outside], offsets_of(outside.long())[places.offsets])

    def _sample(self, grid: WindowGrid) -> Tensor:
        """Return the sampled rows of all samples."""
        offsets = grid.plan.batch_offsets.tolist()
        rows = [grid.plan.order[:0]]
        for start, end in zip(offsets, offsets[1:]):
            size = end - start
            count = math.ceil(size * self.part)
            if self.sampling == 'fps' and count:
                chosen = farthest_points(grid.positions[start:end], count)
            else:
                step = torch.arange(count, device=rows[0].device)
                chosen = step * size // max(1, count)
            rows.append(start + chosen)
        return torch.cat(rows)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        groups = self.prepared(grid)
        if not self.contextual:
            return attend_groups(q, k, v, groups)

        q = q * self.head_dim**-0.5
        outs = []
        for bucket in groups.buckets:
            logits = self.num_heads * bucket.queries.shape[1] * bucket.keys.shape[1]  # per group
            pieces = [
                self._attend_bucket(q, k, v, grid.coords, piece)
                for piece in _split_bucket(bucket, max(1, _LOGITS // logits))
            ]
            outs.append(torch.cat(pieces))
        return scatter(outs, groups, q)

    def _attend_bucket(
        self, q: Tensor, k: Tensor, v: Tensor, coords: Tensor, bucket: Bucket
    ) -> Tensor:
        """Return [G, H, L, D]; q is already scaled."""
        queries = gather(q, bucket.queries)  # [G, H, L, D]
        keys = gather(k, bucket.keys)  # [G, H, K, D]
        indices = self._indices(bucket, coords)
        weights = self._logits(queries, keys, bucket, indices).softmax(-1)

        out = weights @ gather(v, bucket.keys)
        for table, index in zip(self.tables, indices):
            to_value = table[2].to(q.dtype).transpose(0, 1)  # [H, T, D]
            out = out + _sum_equal_offsets(weights, index, len(table[0])) @ to_value
        return out

    def _logits(
        self, queries: Tensor, keys: Tensor, bucket: Bucket, indices: Sequence[Tensor]
    ) -> Tensor:
        """Return [G, H, L, K], -inf for padded keys."""
        logits = queries @ keys.transpose(-1, -2)
        for table, index in zip(self.tables, indices):
            logits = logits + _position_logits(queries, keys, table.to(queries.dtype), index)
        if bucket.key_valid is None:
            return logits
        return logits.masked_fill(~bucket.key_valid[:, None, None], -torch.inf)

    def _indices(self, bucket: Bucket, coords: Tensor) -> list[Tensor]:
        """Return where the offset of every pair stands in the tables, [G, H, L, K] per axis."""
        indices = []
        for axis, table in enumerate(self.tables):
            place = coords[:, 1 + axis]
            index = _table_index(place[bucket.queries], place[bucket.keys], len(table[0]))
            indices.append(index.unsqueeze(1).expand(-1, self.num_heads, -1, -1))
        return indices


def _table_index(queries: Tensor, keys: Tensor, length: int) -> Tensor:
    """Return where the offset of every query [G, L] from every key [G, K] stands: [G, L, K].

    Padded queries and keys repeat real ones, so that their offsets are in the table too.
    """
    offset = queries.unsqueeze(2) - keys.unsqueeze(1)
    return offset.long() + length // 2


def _position_logits(queries: Tensor, keys: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Return what the table [3, T, H, D] adds to the logits, by the queries and by the keys.

    index: [G, H, L, K], as the result.
    """
    to_query, to_key, _ = table.permute(0, 2, 3, 1)  # [H, D, T] each
    of_query = (queries @ to_query).gather(-1, index)
    of_key = (keys @ to_key).gather(-1, index.transpose(-1, -2))
    return of_query + of_key.transpose(-1, -2)


def _sum_equal_offsets(weights: Tensor, index: Tensor, length: int) -> Tensor:
    """Sum the weights [G, H, L, K] of equal offsets: [G, H, L, T].

    So a table is multiplied once per offset, not once per pair.
    """
    summed = weights.new_zeros(*weights.shape[:3], length)
    return summed.scatter_add(-1, index, weights)


def farthest_points(positions: Tensor, count: int) -> Tensor:
    """Return indices [count] of points [N, 3], each the farthest from all before it.

    The first index is 0.
    """
    chosen = torch.zeros(count, dtype=torch.int64, device=positions.device)
    distance = positions.new_full((len(positions),), torch.inf)
    for i in range(1, count):
        last = positions[chosen[i - 1]]
        distance = torch.minimum(distance, (positions - last).square().sum(1))
        chosen[i] = distance.argmax()
    return chosen


def _doubled_windows(grid: WindowGrid) -> Tensor:
    """Return the number [N] of every row's doubled window."""
    if not len(grid.coords):
        return grid.coords[:, 0].long()

    index = [grid.coords[:, 0]]
    for axis in range(3):
        place = grid.coords[:, 1 + axis] + 2 * grid.shift[axis]
        index.append(place // (2 * grid.window_shape[axis]))
    return torch.stack(index, 1).unique(dim=0, return_inverse=True)[1]


def _split_bucket(bucket: Bucket, size: int) -> Iterator[Bucket]:
    """Split a bucket into buckets of at most `size` groups."""
    for start in range(0, len(bucket.queries), size):
        groups = slice(start, start + size)
        yield Bucket(
            bucket.queries[groups],
            bucket.keys[groups],
            None if bucket.query_valid is None else bucket.query_valid[groups],
            None if bucket.key_valid is None else bucket.key_valid[groups],
            bucket.sample[groups],
        )
