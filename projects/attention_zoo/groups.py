"""Attention inside groups of rows: pad to common lengths, gather, attend, scatter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stratified3d.ops import WindowPlan


class Ragged(NamedTuple):
    """G lists of rows, one after the other.

    Attributes:
        rows: int64, all lists.
        offsets: [G + 1] int64; list g is rows[offsets[g]:offsets[g + 1]].
    """

    rows: Tensor
    offsets: Tensor


class Bucket(NamedTuple):
    """G groups that are padded to one shape; padding repeats the last row of a group.

    Attributes:
        queries, keys: rows, [G, L] and [G, K].
        query_valid, key_valid: bool, [G, L] and [G, K], False where a place is padding; None where
            nothing is padded.
        sample: [G], the sample of every group.
    """

    queries: Tensor
    keys: Tensor
    query_valid: Tensor | None
    key_valid: Tensor | None
    sample: Tensor


class Groups(NamedTuple):
    """All groups of a grid.

    Attributes:
        buckets: the groups, one bucket per shape.
        inverse: [N], where every row stands among the valid queries of all buckets.
    """

    buckets: list[Bucket]
    inverse: Tensor

    @property
    def padding(self) -> float:
        """Return the share of the logits that belong to a padded query or key."""
        padded = sum(b.queries.numel() * b.keys.shape[1] for b in self.buckets)
        real = sum(_count_logits(b) for b in self.buckets)
        return 1 - real / padded if padded else 0.0


def _count_logits(bucket: Bucket) -> float:
    """Count the logits of a bucket without its padding."""
    queries = _count_valid(bucket.queries, bucket.query_valid)  # [G]
    keys = _count_valid(bucket.keys, bucket.key_valid)
    return float((queries * keys).sum())


def _count_valid(rows: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return rows.new_full((len(rows),), rows.shape[1])
    return valid.sum(1)


def offsets_of(sizes: Tensor) -> Tensor:
    """Return where lists of these sizes [G] start and end: [G + 1]."""
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def number_members(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Enumerate the members of lists of these sizes [G], which stand one after the other.

    Returns:
        the list of each member and its number in that list, both [sum of sizes] int64.
    """
    owner = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
    number = torch.arange(len(owner), device=sizes.device) - offsets_of(sizes)[owner]
    return owner, number


def run_offsets(key: Tensor) -> Tensor:
    """Return where the runs of equal values of a sorted key [N] start and end: [K + 1]."""
    rows = torch.arange(len(key), device=key.device)
    first = rows[torch.searchsorted(key, key) == rows]  # [K]
    return torch.cat([first, first.new_tensor([len(key)])])


def list_ranges(start: Tensor, end: Tensor) -> Ragged:
    """Return the lists start [G] to end - 1."""
    owner, number = number_members(end - start)
    return Ragged(start[owner] + number, offsets_of(end - start))


def split_samples(batch_offsets: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split every sample into chunks of at most `size` rows.

    Returns:
        the first row of every chunk, the row after its last, and its sample, [G] int64 each.
    """
    ends = batch_offsets.long()
    sample, number = number_members(-(-ends.diff() // size))
    start = ends[sample] + number * size
    return start, torch.minimum(start + size, ends[sample + 1]), sample


def take(lists: Ragged, chosen: Tensor) -> Ragged:
    """Return the lists chosen[0], chosen[1], ..., one after the other."""
    places = list_ranges(lists.offsets[chosen], lists.offsets[chosen + 1])
    return Ragged(lists.rows[places.rows], places.offsets)


def keep(lists: Ragged, is_kept: Tensor) -> Ragged:
    """Leave out the rows of the lists that are not kept, is_kept [N]."""
    chosen = is_kept[lists.rows]
    return Ragged(lists.rows[chosen], offsets_of(chosen.long())[lists.offsets])


def append(first: Ragged, second: Ragged) -> Ragged:
    """Return the lists of `first`, then those of `second`."""
    offsets = torch.cat([first.offsets, first.offsets[-1] + second.offsets[1:]])
    return Ragged(torch.cat([first.rows, second.rows]), offsets)


def join(first: Ragged, second: Ragged) -> Ragged:
    """Append the lists of `second` to those of `first`, list by list."""
    owners = [number_members(lists.offsets.diff())[0] for lists in (first, second)]
    order = torch.cat(owners).argsort(stable=True)
    rows = torch.cat([first.rows, second.rows])
    return Ragged(rows[order], first.offsets + second.offsets)


def window_rows(plan: WindowPlan) -> tuple[Ragged, Tensor]:
    """Return the plan's W windows as lists of rows, and the sample [W] of each window."""
    rows = torch.arange(len(plan.window_start), device=plan.window_start.device)
    first = (plan.window_start == rows).nonzero().squeeze(1)  # [W]
    offsets = torch.cat([first, first.new_tensor([len(rows)])])
    return Ragged(rows, offsets), plan.sample[first].long()


def pad_groups(
    queries: Ragged, keys: Ragged, sample: Tensor, lengths: Sequence[int] = ()
) -> Groups:
    """Put every group into the smallest bucket that fits its queries and its keys.

    No row is dropped: groups beyond the last length share one more bucket, as long as its longest.

    Args:
        queries: of each group, every row once over all groups. A group without queries is left out.
        keys: of each group, at least one where there are queries.
        sample: [G] of each group.
        lengths: ascending lengths of the buckets; without any, all are padded to the longest.
    """
    # a bucket is numbered by the step of its queries and the step of its keys
    steps = [*lengths, None]
    number = _length_step(queries, lengths) * len(steps) + _length_step(keys, lengths)  # [G]
    number = number.masked_fill(queries.offsets.diff() == 0, -1)

    buckets = []
    for index in number[number >= 0].unique().tolist():
        chosen = (number == index).nonzero().squeeze(1)
        query_length, key_length = (steps[step] for step in divmod(index, len(steps)))
        query_rows, query_valid = _pad_lists(queries, chosen, query_length)
        key_rows, key_valid = _pad_lists(keys, chosen, key_length)
        buckets.append(Bucket(query_rows, key_rows, query_valid, key_valid, sample[chosen]))

    if not buckets:
        return Groups(buckets, queries.rows)
    order = torch.cat([_valid_rows(bucket.queries, bucket.query_valid) for bucket in buckets])
    return Groups(buckets, order.argsort())


def _length_step(lists: Ragged, lengths: Sequence[int]) -> Tensor:
    """Return the index [G] of the first length that fits every list; len(lengths) if none does."""
    limits = torch.tensor(list(lengths), device=lists.rows.device, dtype=torch.int64)
    return torch.bucketize(lists.offsets.diff(), limits)


def _pad_lists(lists: Ragged, chosen: Tensor, length: int | None) -> tuple[Tensor, Tensor | None]:
    """Pad the chosen lists to a length, or to the longest of them.

    Returns:
        rows [G, length], and which of them are valid (None where all are).
    """
    sizes = lists.offsets.diff()[chosen, None]  # [G, 1]
    place = torch.arange(int(sizes.max()) if length is None else length, device=sizes.device)
    valid = place < sizes
    index = lists.offsets[chosen, None] + torch.minimum(place, sizes - 1)
    return lists.rows[index], None if bool(valid.all()) else valid


def _valid_rows(rows: Tensor, valid: Tensor | None) -> Tensor:
    """Flatten [G, L, ...] to the valid places."""
    return rows.flatten(0, 1) if valid is None else rows[valid]


def gather(table: Tensor, rows: Tensor) -> Tensor:
    """Return the rows [G, L] of a table [N, H, D] as [G, H, L, D]."""
    found = table.index_select(0, rows.flatten())
    return found.view(*rows.shape, *table.shape[1:]).transpose(1, 2)


def scatter(outs: Sequence[Tensor], groups: Groups, like: Tensor) -> Tensor:
    """Put one [G, H, L, D] per bucket back into the order of the rows, [N, H, D].

    like: the queries [N, H, D], returned where there are no buckets, so that gradients pass.
    """
    valid = [
        _valid_rows(out.transpose(1, 2), bucket.query_valid)
        for out, bucket in zip(outs, groups.buckets)
    ]
    return torch.cat(valid).index_select(0, groups.inverse) if valid else like * 1


def attend_groups(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: Groups,
    strata_k: Tensor | None = None,
    strata_v: Tensor | None = None,
    strata_bias: Tensor | None = None,
    sees: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Let every query attend to the keys of its group and to the strata of its sample.

    One softmax runs over both.

    Args:
        q: [N, H, D].
        k, v: [K, H, D], the rows that the keys of the groups index.
        groups: from `pad_groups`.
        strata_k, strata_v: [B, M, H, D]; None for groups alone.
        strata_bias: [B, M, H], -inf for absent tokens.
        sees: called with rows of queries [G, L, 1] and of keys [G, 1, K], returns which pairs
            count, bool [G, L, K]; every query sees a key of its group.
    Returns:
        [N, H, D].
    """
    width = q.shape[-1]
    scale = width**-0.5
    if strata_k is not None:
        assert strata_v is not None  # both or none
        q, k, v, strata_k, strata_v = fold_bias(q, k, v, strata_k, strata_v, strata_bias)

    outs = []
    for bucket in groups.buckets:
        queries = gather(q, bucket.queries)  # [G, H, L, D]
        keys = gather(k, bucket.keys)  # [G, H, K, D]
        values = gather(v, bucket.keys)
        mask = _mask_keys(bucket, sees)
        if strata_k is not None and strata_v is not None:
            keys = torch.cat([keys, strata_k.transpose(1, 2)[bucket.sample]], 2)
            values = torch.cat([values, strata_v.transpose(1, 2)[bucket.sample]], 2)
            if mask is not None:
                mask = F.pad(mask, (0, strata_k.shape[1]), value=True)

        outs.append(
            F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
        )
    return scatter(outs, groups, q)[..., :width]


def _mask_keys(bucket: Bucket, sees: Callable[[Tensor, Tensor], Tensor] | None) -> Tensor | None:
    """Return which keys count, [G, 1, 1 or L, K]; None where all do."""
    mask = None if bucket.key_valid is None else bucket.key_valid[:, None, None]
    if sees is None:
        return mask
    pairs = sees(bucket.queries.unsqueeze(2), bucket.keys.unsqueeze(1)).unsqueeze(1)
    return pairs if mask is None else mask & pairs


def fold_bias(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    strata_k: Tensor,
    strata_v: Tensor,
    strata_bias: Tensor | None,
    multiple: int = 8,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Fold the bias of the strata into a column of their keys that meets a one in the queries.

    A mask with a gradient would keep torch from using its fused kernels. The logit of an absent
    token is so low that its weight is exactly zero beside the weights of any window.

    Args:
        q, k, v: [N, H, D].
        strata_k, strata_v: [B, M, H, D].
        strata_bias: [B, M, H], -inf for absent tokens; None returns everything unchanged.
        multiple: of the new width.
    Returns:
        q, k, v, strata_k, strata_v, widened to the next multiple above D.
    """
    if strata_bias is None:
        return q, k, v, strata_k, strata_v

    num_rows, num_heads, width = q.shape
    added = multiple - width % multiple
    ones = q.new_ones(num_rows, num_heads, 1)
    zeros = q.new_zeros(num_rows, num_heads, added - 1)
    q = torch.cat([q, ones, zeros], -1)
    k = F.pad(k, (0, added))
    v = F.pad(v, (0, added))

    column = _bias_column(strata_bias, width, q.dtype)
    strata_k = F.pad(torch.cat([strata_k, column], -1), (0, added - 1))
    strata_v = F.pad(strata_v, (0, added))
    return q, k, v, strata_k, strata_v


def _bias_column(strata_bias: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return the column [B, M, H, 1] of the keys; it cancels the softmax scale width^-1/2."""
    absent = strata_bias == -torch.inf
    column = (strata_bias.masked_fill(absent, 0) * width**0.5).to(dtype)
    lowest = -6e4 if dtype == torch.float16 else -1e30
    return column.masked_fill(absent, lowest).unsqueeze(-1)
