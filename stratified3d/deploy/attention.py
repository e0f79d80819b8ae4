"""The three attentions for one sample, in torch alone and without a loop over data.

Windows are sorted into a fixed number of buckets by their length and padded to the bucket's; each
bucket is one product. The softmax over window and strata is put together from the two parts'
log-sum-exps, as in the backend `sdpa`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stratified3d.ops import WindowPlan

# lengths of the buckets: the first, and the next one over it; every bucket is code to be compiled
_SHORTEST = 8
_GROWTH = 4


class Bucket(NamedTuple):
    """W windows of at most L rows.

    rows: [W, L] int64; a padded place repeats the window's last row. mask: [W, 1, L, L], -inf at
    padded keys, else 0. places: [W L] int64, where results go, those of padding behind the rows.
    """

    rows: Tensor
    mask: Tensor
    places: Tensor


class BucketedAttention:
    """An attention backend for a batch of one sample that is not empty.

    Args:
        longest: the largest number of rows that a window can have.
        is_padded: whether the batch has a second sample, which is padding, so that no shape depends
            on the data: every bucket is as large as the rows allow.
    """

    def __init__(self, longest: int, is_padded: bool = False):
        self.is_padded = is_padded
        lengths = [_SHORTEST]
        while lengths[-1] < longest:
            lengths.append(_GROWTH * lengths[-1])
        self.lengths = [*lengths[:-1], longest]
        self._kept: dict[int, tuple[WindowPlan, list[Bucket]]] = {}

    def forget(self) -> None:
        """Drop what was derived from the plans of the last frame."""
        self._kept.clear()

    def stratified_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan: WindowPlan,
        strata_k: Tensor | None,
        strata_v: Tensor | None,
        strata_bias: Tensor | None,
        scale: float,
    ) -> Tensor:
        """See `ops.stratified_attention`."""
        count, heads, _ = q.shape
        out = torch.zeros_like(q[:1]).expand(count + 1, -1, -1).contiguous()
        lse = out.new_zeros(count + 1, heads)
        for bucket in self._buckets(plan):
            rows = bucket.rows.flatten()
            shape = (*bucket.rows.shape, *q.shape[1:])
            queries, keys, values = (x[rows].view(shape).transpose(1, 2) for x in (q, k, v))
            window_out, window_lse = _attend(queries, keys, values, bucket.mask, scale)
            window_out = window_out.transpose(1, 2).flatten(0, 1)
            window_lse = window_lse.transpose(1, 2).flatten(0, 1)
            out = out.index_put((bucket.places,), window_out)
            lse = lse.index_put((bucket.places,), window_lse)
        out, lse = out[:count], lse[:count]
        if strata_k is None or strata_v is None:
            return out
        return _join_strata(out, lse, q, strata_k[0], strata_v[0], strata_bias, scale)

    def collect_strata(
        self, q: Tensor, k: Tensor, v: Tensor, batch_offsets: Tensor, scale: float
    ) -> Tensor:
        """See `ops.collect_strata`."""
        keys, values = k.transpose(0, 1)[None], v.transpose(0, 1)[None]
        mask = None
        if self.is_padded:
            rows = torch.arange(k.shape[0], device=k.device)
            mask = torch.where(rows < batch_offsets[1], 0.0, -torch.inf).expand(q.shape[1], -1)
            keys, values = (x.expand(q.shape[0], -1, -1, -1) for x in (keys, values))
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, attn_mask=mask, scale=scale
        )
        return out.transpose(1, 2)

    def read_strata(
        self,
        q: Tensor,
        strata_k: Tensor,
        strata_v: Tensor,
        batch_offsets: Tensor,
        strata_bias: Tensor | None,
        scale: float,
    ) -> Tensor:
        """See `ops.read_strata`."""
        logits = _strata_logits(q, strata_k[0], strata_bias, scale)
        return (logits.softmax(-1).flatten(1) @ _block_diagonal(strata_v[0])).view(q.shape)

    def _buckets(self, plan: WindowPlan) -> list[Bucket]:
        """The windows of a plan by length; kept, because the blocks of a stage share plans."""
        key = id(plan.window_start)
        if key not in self._kept:
            make = _make_padded_buckets if self.is_padded else _make_buckets
            self._kept[key] = plan, make(plan, self.lengths)
        return self._kept[key][1]


def _make_buckets(plan: WindowPlan, lengths: list[int]) -> list[Bucket]:
    count = plan.window_start.shape[0]
    is_first = torch.arange(count, device=plan.window_start.device) == plan.window_start
    first = is_first.nonzero().squeeze(1)
    starts = plan.window_start[first].long()
    ends = plan.window_end[first].long()
    buckets = []
    shorter = 0
    for length in lengths:
        is_in = (ends - starts > shorter) & (ends - starts <= length)
        chosen = is_in.nonzero().squeeze(1)
        buckets.append(_make_bucket(starts[chosen], ends[chosen], length, count))
        shorter = length
    return buckets


def _make_padded_buckets(plan: WindowPlan, lengths: list[int]) -> list[Bucket]:
    """Buckets of the windows of sample 0, as many as its rows could fill."""
    start, end = plan.window_start.long(), plan.window_end.long()
    count = start.shape[0]
    is_first = torch.arange(count, device=start.device) == start
    size = torch.where(is_first & (plan.sample == 0), end - start, 0)
    buckets = []
    shorter = 0
    for length in lengths:
        is_in = (size > shorter) & (size <= length)
        room = max(count // (shorter + 1), 1)
        bounds = _take_padded(start, is_in, room), _take_padded(end, is_in, room)
        buckets.append(_make_bucket(*bounds, length, count))
        shorter = length
    return buckets


def _take_padded(values: Tensor, chosen: Tensor, room: int) -> Tensor:
    """values[chosen] of [N] in the first of so many rows, 0 in the others."""
    place = torch.where(chosen, chosen.cumsum(0) - 1, room)
    return values.new_zeros(room + 1).index_put((place,), values)[:room]


def _make_bucket(start: Tensor, end: Tensor, length: int, count: int) -> Bucket:
    """Windows of rows start [W] to end [W] of count, padded to a length; empty ones see a row."""
    rows = start[:, None] + torch.arange(length, device=start.device)  # [W, L]
    is_padding = rows >= end[:, None]
    places = rows.masked_fill(is_padding, count).flatten()
    is_hidden = is_padding & (rows > start[:, None])
    mask = torch.zeros_like(rows, dtype=torch.float32).masked_fill(is_hidden, -torch.inf)
    mask = mask[:, None, None, :].expand(-1, 1, length, -1)
    return Bucket(torch.minimum(rows, (end[:, None] - 1).clamp(min=0)), mask, places)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q, k, v [W, H, L, D], mask [W, 1, L, L] -> output [W, H, L, D], log-sum-exp [W, H, L]."""
    if q.device.type == 'cpu':
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=mask, scale=scale
        )
    logits = q @ k.transpose(-1, -2) * scale + mask
    lse = logits.logsumexp(-1)
    return (logits - lse.unsqueeze(-1)).exp() @ v, lse


def _strata_logits(q: Tensor, strata_k: Tensor, strata_bias: Tensor | None, scale: float) -> Tensor:
    """q [N, H, D], strata_k [M, H, D], strata_bias [1, M, H] -> [N, H, M]."""
    logits = q.flatten(1) @ _block_diagonal(strata_k).T * scale  # [N, H M]
    logits = logits.view(-1, *strata_k.shape[1::-1])
    return logits if strata_bias is None else logits + strata_bias[0].T


def _block_diagonal(x: Tensor) -> Tensor:
    """[M, H, D] -> [H M, H D]: products of all heads as one of matrices.

    A batch of products whose number of rows depends on the data cannot be compiled by torch 2.13.
    """
    return torch.block_diag(*x.unbind(1))


def _join_strata(
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    strata_k: Tensor,
    strata_v: Tensor,
    strata_bias: Tensor | None,
    scale: float,
) -> Tensor:
    """Extend the softmax over the windows, out [N, H, D] and lse [N, H], by the strata."""
    logits = _strata_logits(q, strata_k, strata_bias, scale)  # [N, H, M]
    joint = torch.logaddexp(lse, logits.logsumexp(-1))  # [N, H]
    weights = (logits - joint.unsqueeze(-1)).exp()
    strata_out = (weights.flatten(1) @ _block_diagonal(strata_v)).view(q.shape)
    return out * (lse - joint).exp().unsqueeze(-1) + strata_out
