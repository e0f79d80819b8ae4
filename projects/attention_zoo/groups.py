"""Attention inside groups of rows that were padded to a few common lengths: gather, one dense
product, scatter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stratified3d.ops import WindowPlan


class Ragged(NamedTuple):
    """Lists of rows: list g is rows[offsets[g]:offsets[g + 1]]; offsets [G + 1], both int64."""

    rows: Tensor
    offsets: Tensor


class Bucket(NamedTuple):
    """G groups of one padded shape.

    queries [G, L], keys [G, K]: rows, a padded place repeats the group's last one; query_real,
    key_real [G, L] and [G, K] bool, or None where nothing is padded; sample [G].
    """

    queries: Tensor
    keys: Tensor
    query_real: Tensor | None
    key_real: Tensor | None
    sample: Tensor


class Groups(NamedTuple):
    """buckets: list of Bucket; inverse [N]: the place of every row among the buckets' real queries,
    one after the other."""

    buckets: list[Bucket]
    inverse: Tensor

    @property
    def padding(self) -> float:
        """Part of the logits that belong to a padded query or key."""
        padded = sum(b.queries.numel() * b.keys.shape[1] for b in self.buckets)
        real = sum(
            float((_count(b.query_real, b.queries) * _count(b.key_real, b.keys)).sum())
            for b in self.buckets
        )
        return 1 - real / padded if padded else 0.0


def _count(real: Tensor | None, rows: Tensor) -> Tensor:
    return rows.new_full((len(rows),), rows.shape[1]) if real is None else real.sum(1)


def window_rows(plan: WindowPlan) -> tuple[Ragged, Tensor]:
    """The plan's windows as lists of rows, and the sample of each window."""
    rows = torch.arange(len(plan.window_start), device=plan.window_start.device)
    first = (plan.window_start == rows).nonzero().squeeze(1)
    return Ragged(rows, torch.cat([first, first.new_tensor([len(rows)])])), plan.sample[
        first
    ].long()


def pad_groups(
    queries: Ragged, keys: Ragged, sample: Tensor, lengths: Sequence[int] = ()
) -> Groups:
    """Put every group into the smallest bucket that holds its queries and its keys; nothing is
    dropped.

    Args:
        queries: of each group; over all groups every row once. A group without queries is left out.
        keys: of each group, at least one where there are queries.
        sample: [G] of each group.
        lengths: rising lengths of the buckets; longer groups share one more, as long as its
        longest. Where none is
            given, all groups are padded to the longest.
    """
    sizes = [x.offsets.diff() for x in (queries, keys)]
    limits = torch.tensor(list(lengths), device=queries.rows.device, dtype=torch.int64)
    number = [torch.bucketize(size, limits) for size in sizes]
    both = number[0] * (len(lengths) + 1) + number[1]
    buckets = []
    for index in both[sizes[0] > 0].unique().tolist():
        chosen = ((both == index) & (sizes[0] > 0)).nonzero().squeeze(1)
        padded = []
        for lists, size, step in zip((queries, keys), sizes, divmod(index, len(lengths) + 1)):
            longest = lengths[step] if step < len(lengths) else int(size[chosen].max())
            place = torch.arange(longest, device=limits.device)
            real = place < size[chosen, None]
            at = lists.offsets[chosen, None] + torch.minimum(place, size[chosen, None] - 1)
            padded.append((lists.rows[at], None if bool(real.all()) else real))
        (q_rows, q_real), (k_rows, k_real) = padded
        buckets.append(Bucket(q_rows, k_rows, q_real, k_real, sample[chosen]))
    rows = [
        b.queries.flatten() if b.query_real is None else b.queries[b.query_real] for b in buckets
    ]
    return Groups(buckets, torch.cat(rows).argsort() if rows else queries.rows)


def gather(table: Tensor, rows: Tensor) -> Tensor:
    """[N, H, D] at rows [G, L] -> [G, H, L, D]."""
    return table.index_select(0, rows.flatten()).view(*rows.shape, *table.shape[1:]).transpose(1, 2)


def scatter(outs: Sequence[Tensor], groups: Groups, like: Tensor) -> Tensor:
    """One [G, H, L, D] of each bucket -> [N, H, D]."""
    real = []
    for out, bucket in zip(outs, groups.buckets):
        out = out.transpose(1, 2)
        real.append(out.flatten(0, 1) if bucket.query_real is None else out[bucket.query_real])
    return torch.cat(real).index_select(0, groups.inverse) if real else like * 1


def attend_groups(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: Groups,
    strata_k: Tensor | None = None,
    strata_v: Tensor | None = None,
    strata_bias: Tensor | None = None,
) -> Tensor:
    """Let the queries of every group attend to its keys, and to the strata of its sample in the
    same softmax.

    Args:
        q: [N, H, D]; k, v: [K, H, D], the rows that the groups' keys point at.
        groups: from `pad_groups`.
        strata_k, strata_v: [B, M, H, D]; strata_bias [B, M, H], -inf where a token is absent.
    Returns:
        [N, H, D].
    """
    width, scale = q.shape[-1], q.shape[-1] ** -0.5
    if strata_k is not None:
        q, k, v, strata_k, strata_v = fold_bias(q, k, v, strata_k, strata_v, strata_bias)
    outs = []
    for bucket in groups.buckets:
        keys, values = gather(k, bucket.keys), gather(v, bucket.keys)
        mask = None if bucket.key_real is None else bucket.key_real[:, None, None]  # [G, 1, 1, K]
        if strata_k is not None:
            keys, values = (
                torch.cat([near, far.transpose(1, 2)[bucket.sample]], 2)
                for near, far in ((keys, strata_k), (values, strata_v))
            )
            if mask is not None:
                mask = F.pad(mask, (0, strata_k.shape[1]), value=True)
        outs.append(
            F.scaled_dot_product_attention(
                gather(q, bucket.queries), keys, values, attn_mask=mask, scale=scale
            )
        )
    return scatter(outs, groups, q)[..., :width]


def fold_bias(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    strata_k: Tensor,
    strata_v: Tensor,
    strata_bias: Tensor | None,
    multiple: int = 8,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Carry the strata's bias in a column of their keys that meets a one in the queries.

    A mask with a gradient would keep torch from its fused kernels. The logit of an absent token is
    so low that its weight is exactly zero beside any window's.

    Returns:
        q, k, v, strata_k, strata_v, as wide as the next multiple.
    """
    if strata_bias is None:
        return q, k, v, strata_k, strata_v
    width, wider = q.shape[-1], multiple - q.shape[-1] % multiple
    absent = strata_bias == -torch.inf
    column = (strata_bias.masked_fill(absent, 0) * width**0.5).to(q.dtype)
    column = column.masked_fill(absent, -6e4 if q.dtype == torch.float16 else -1e30).unsqueeze(-1)
    q = torch.cat([q, q.new_ones(*q.shape[:2], 1), q.new_zeros(*q.shape[:2], wider - 1)], -1)
    strata_k = F.pad(torch.cat([strata_k, column], -1), (0, wider - 1))
    return q, *(F.pad(x, (0, wider)) for x in (k, v)), strata_k, F.pad(strata_v, (0, wider))
