"""Torch-only backend, made for CPUs: windows bucketed by length, strata by one dense product per
sample.

Both parts produce an output and a log-sum-exp; a joint softmax over the union of their keys is the
mean of the two outputs weighted by exp(log-sum-exp), so no strata key is ever copied to a window.
The backward pass recomputes the probabilities from the joint log-sum-exp (FlashAttention, Dao et
al. 2022, appendix B.4), which makes the gradients of the two parts independent of each other as
well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from stratified3d.ops.windows import WindowPlan

# window lengths are padded up to the next of these, at most 1.5x: 1, 2, 3, 4, 6, 8, 12, 16, ...
# beyond any window
_BUCKETS = (1, *(length << octave for octave in range(30) for length in (2, 3)))
# windows at least this long go through torch's flash kernel on the CPU; below, two plain products
# are faster
_FLASH_LENGTH = 16
# windows are taken in chunks of about this many numbers (gathered rows and logits): small enough
# for the cache, large enough to hide the cost of the calls
_CHUNK_NUMBERS = 1 << 21


def stratified_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: WindowPlan,
    strata_k: Tensor | None,
    strata_v: Tensor | None,
    strata_bias: Tensor | None,
    scale: float,
) -> Tensor:
    return _JointAttention.apply(
        q,
        k,
        v,
        strata_k,
        strata_v,
        strata_bias,
        plan.window_start,
        plan.window_end,
        plan.batch_offsets,
        scale,
    )


def collect_strata(q: Tensor, k: Tensor, v: Tensor, batch_offsets: Tensor, scale: float) -> Tensor:
    samples = []
    for b, rows in enumerate(_sample_rows(batch_offsets)):
        # [H, M, D] queries against [H, n, D] keys
        heads = [x.transpose(0, 1).unsqueeze(0) for x in (q[b], k[rows], v[rows])]
        if rows.start == rows.stop:
            # zeros that still depend on q: distributed training waits for a gradient of every
            # parameter
            samples.append(q[b].masked_fill(torch.ones_like(q[b], dtype=torch.bool), 0))
        else:
            samples.append(F.scaled_dot_product_attention(*heads, scale=scale)[0].transpose(0, 1))
    return torch.stack(samples)


def read_strata(
    q: Tensor,
    strata_k: Tensor,
    strata_v: Tensor,
    batch_offsets: Tensor,
    strata_bias: Tensor | None,
    scale: float,
) -> Tensor:
    samples = []
    for b, rows in enumerate(_sample_rows(batch_offsets)):
        bias, wide = None, q.dtype
        if strata_bias is not None:  # the bias keeps its precision, so the others take it on
            wide = torch.promote_types(q.dtype, strata_bias.dtype)
            bias = strata_bias[b].T.unsqueeze(1)  # [H, 1, M]
            absent = (bias == -torch.inf).all(-1, keepdim=True)
            bias = bias.masked_fill(absent, 0).to(wide).unsqueeze(0)
        heads = [
            x.to(wide).transpose(0, 1).unsqueeze(0) for x in (q[rows], strata_k[b], strata_v[b])
        ]
        out = F.scaled_dot_product_attention(*heads, attn_mask=bias, scale=scale)[0]  # [H, n, D]
        samples.append(
            (out if bias is None else out.masked_fill(absent, 0)).transpose(0, 1).to(q.dtype)
        )
    return torch.cat(samples)


def _sample_rows(batch_offsets: Tensor) -> list[slice]:
    offsets = batch_offsets.tolist()
    return [slice(start, end) for start, end in zip(offsets, offsets[1:])]


class _Chunk(NamedTuple):
    """Windows of similar length: rows [W, L] of each; padding [W, L] bool, places: the flat ones
    that are no padding (both None where nothing is padded). A padded place repeats the window's own
    last row, so that whatever that row holds (NaN, say) stays in its window."""

    rows: Tensor
    padding: Tensor | None
    places: Tensor | None


def _window_chunks(
    window_start: Tensor, window_end: Tensor, numbers_per_row: int, heads: int
) -> Iterator[_Chunk]:
    """All windows, by length and in pieces that fit the cache."""
    is_first = torch.arange(len(window_start), device=window_start.device) == window_start
    start, end = window_start[is_first].long(), window_end[is_first].long()
    length = end - start
    bucket = torch.bucketize(length, torch.tensor(_BUCKETS, device=length.device))
    for index in torch.unique(bucket).tolist():
        chosen = bucket == index
        starts, ends, lengths = start[chosen], end[chosen], length[chosen]
        size = int(lengths.max())
        place = torch.arange(size, device=length.device)
        count = max(1, _CHUNK_NUMBERS // (size * (numbers_per_row + heads * size)))
        for s, e, n in zip(starts.split(count), ends.split(count), lengths.split(count)):
            rows = torch.minimum(s[:, None] + place, e[:, None] - 1)
            padding = place >= n[:, None]
            places = (~padding).flatten().nonzero().squeeze(1)
            yield (
                _Chunk(rows, padding, places)
                if len(places) < padding.numel()
                else _Chunk(rows, None, None)
            )


class _JointAttention(torch.autograd.Function):
    """out[i] = sum_j softmax_j(logits) v[j] over i's window and the strata of its sample."""

    @staticmethod
    def forward(
        ctx,
        q,
        k,
        v,
        strata_k,
        strata_v,
        strata_bias,
        window_start,
        window_end,
        batch_offsets,
        scale,
    ):
        wide = torch.promote_types(q.dtype, torch.float32)
        heads, width = q.shape[1:]
        out = q.new_empty(q.shape, dtype=wide)
        lse = q.new_empty(q.shape[:2], dtype=wide)  # [N, H]
        tables = [x.to(wide).reshape(len(x), heads * width) for x in (q, k, v)]
        for chunk in _window_chunks(window_start, window_end, 3 * heads * width, heads):
            out_w, lse_w = _attend_windows(
                *(_take(x, chunk, heads) for x in tables), chunk.padding, scale
            )
            _put(out, chunk, out_w.transpose(1, 2))
            _put(lse, chunk, lse_w.transpose(1, 2))
        if strata_k is not None:
            for b, rows in enumerate(_sample_rows(batch_offsets)):
                logits = _strata_logits(
                    q[rows].to(wide), strata_k[b].to(wide), strata_bias, b, scale
                )  # [H, n, M]
                lse_s = logits.logsumexp(-1)  # [H, n]
                joint = torch.logaddexp(lse[rows].T, lse_s)
                out_s = logits.sub_(joint.unsqueeze(-1)).exp_() @ strata_v[b].to(wide).transpose(
                    0, 1
                )  # [H, n, D]
                share = (lse[rows] - joint.T).exp_().unsqueeze(-1)
                out[rows] = out[rows] * share + out_s.transpose(0, 1)
                lse[rows] = joint.T
        out = out.to(q.dtype)
        ctx.save_for_backward(
            q,
            k,
            v,
            strata_k,
            strata_v,
            strata_bias,
            window_start,
            window_end,
            batch_offsets,
            out,
            lse,
        )
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        # whoever calls backward inside autocast means the forward pass
        with torch.autocast(grad.device.type, enabled=False):
            return _JointAttention._gradients(ctx, grad)

    @staticmethod
    def _gradients(ctx, grad):
        (
            q,
            k,
            v,
            strata_k,
            strata_v,
            strata_bias,
            window_start,
            window_end,
            batch_offsets,
            out,
            lse,
        ) = ctx.saved_tensors
        scale, wide = ctx.scale, lse.dtype
        heads, width = q.shape[1:]
        grad = grad.to(wide)
        grad_q, grad_k, grad_v = (x.new_empty(x.shape, dtype=wide) for x in (q, k, v))
        tables = [x.to(wide).reshape(len(x), heads * width) for x in (q, k, v, out, grad)]
        for chunk in _window_chunks(window_start, window_end, 5 * heads * width, heads):
            inputs = [_take(x, chunk, heads) for x in tables]  # [W, H, L, D]
            if (
                chunk.padding is not None
            ):  # a padded query must not add to the gradients of keys and values
                inputs[4].masked_fill_(chunk.padding[:, None, :, None], 0)
            lse_w = _take(lse, chunk, heads).squeeze(-1)
            grads = _window_gradients(*inputs, lse_w, chunk.padding, scale)
            for table, values in zip((grad_q, grad_k, grad_v), grads):
                _put(table, chunk, values.transpose(1, 2))
        grad_sk = grad_sv = grad_bias = None
        if strata_k is not None:
            delta = (grad * out.to(wide)).sum(-1)  # [N, H]
            grad_sk, grad_sv = (x.new_zeros(x.shape, dtype=wide) for x in (strata_k, strata_v))
            grad_bias = None if strata_bias is None else torch.zeros_like(strata_bias)
            for b, rows in enumerate(_sample_rows(batch_offsets)):
                qs, gs = q[rows].to(wide).transpose(0, 1), grad[rows].transpose(0, 1)  # [H, n, D]
                ks, vs = (
                    strata_k[b].to(wide).transpose(0, 1),
                    strata_v[b].to(wide).transpose(0, 1),
                )  # [H, M, D]
                p = _strata_logits(q[rows].to(wide), strata_k[b].to(wide), strata_bias, b, scale)
                p = p.sub_(lse[rows].T.unsqueeze(-1)).exp_()  # [H, n, M]
                grad_sv[b] = (p.transpose(-1, -2) @ gs).transpose(0, 1)
                ds = (gs @ vs.transpose(-1, -2)).sub_(delta[rows].T.unsqueeze(-1)).mul_(p)
                if grad_bias is not None:
                    grad_bias[b] = ds.sum(1).T
                ds = ds.mul_(scale)
                grad_q[rows] += (ds @ ks).transpose(0, 1)
                grad_sk[b] = (ds.transpose(-1, -2) @ qs).transpose(0, 1)
            grad_sk, grad_sv = grad_sk.to(strata_k.dtype), grad_sv.to(strata_v.dtype)
        return (
            grad_q.to(q.dtype),
            grad_k.to(k.dtype),
            grad_v.to(v.dtype),
            grad_sk,
            grad_sv,
            grad_bias,
            None,
            None,
            None,
            None,
        )


def _attend_windows(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """q, k, v [W, H, L, D] -> output [W, H, L, D] and log-sum-exp [W, H, L]."""
    if _uses_flash(q):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=_mask(q, padding), scale=scale
        )
    logits = _logits(q, k, padding, scale)
    lse = logits.logsumexp(-1)
    return logits.sub_(lse.unsqueeze(-1)).exp_() @ v, lse


def _window_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    grad: Tensor,
    lse: Tensor,
    padding: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v [W, H, L, D] from the output and log-sum-exp of the whole softmax,
    strata included."""
    if _uses_flash(q):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad,
            q,
            k,
            v,
            out,
            lse.contiguous(),
            0.0,
            False,
            attn_mask=_mask(q, padding),
            scale=scale,
        )
    p = _logits(q, k, padding, scale).sub_(lse.unsqueeze(-1)).exp_()
    grad_v = p.transpose(-1, -2) @ grad
    ds = (grad @ v.transpose(-1, -2)).sub_((grad * out).sum(-1, keepdim=True)).mul_(p).mul_(scale)
    return ds @ k, ds.transpose(-1, -2) @ q, grad_v


def _uses_flash(q: Tensor) -> bool:
    return q.shape[2] >= _FLASH_LENGTH and q.device.type == 'cpu'


def _mask(q: Tensor, padding: Tensor | None) -> Tensor | None:
    """[W, 1, L, L] to be added to the logits: -inf at padded keys."""
    if padding is None:
        return None
    blank = q.new_zeros(padding.shape).masked_fill_(padding, -torch.inf)
    return blank[:, None, None, :].expand(-1, 1, padding.shape[1], -1)


def _take(table: Tensor, chunk: _Chunk, heads: int) -> Tensor:
    """[N, H D] -> [W, H, L, D] at the chunk's rows."""
    return (
        table.index_select(0, chunk.rows.flatten())
        .view(*chunk.rows.shape, heads, -1)
        .transpose(1, 2)
    )


def _put(table: Tensor, chunk: _Chunk, values: Tensor) -> None:
    """Write values [W, L, ...] to the chunk's rows of the table, except at padded places."""
    rows, values = chunk.rows.flatten(), values.reshape(-1, *table.shape[1:])
    if chunk.places is not None:
        rows, values = rows[chunk.places], values.index_select(0, chunk.places)
    table.index_copy_(0, rows, values)


def _logits(q: Tensor, k: Tensor, padding: Tensor | None, scale: float) -> Tensor:
    logits = (q @ k.transpose(-1, -2)).mul_(scale)  # [W, H, L, L]
    return logits if padding is None else logits.masked_fill_(padding[:, None, None, :], -torch.inf)


def _strata_logits(
    q: Tensor, strata_k: Tensor, strata_bias: Tensor | None, b: int, scale: float
) -> Tensor:
    logits = (q.transpose(0, 1) @ strata_k.permute(1, 2, 0)).mul_(scale)  # [H, n, M]
    return logits if strata_bias is None else logits.add_(strata_bias[b].T.unsqueeze(1))
