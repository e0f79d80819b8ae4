"""Torch-only backend, made for CPUs.

Windows are bucketed by length, strata take one dense product per sample. Both parts yield an output
and a log-sum-exp. A softmax over the union of their keys is the mean of the two outputs weighted by
exp(log-sum-exp), so no strata key is ever copied to a window.

The backward pass recomputes the probabilities from the joint log-sum-exp (FlashAttention, Dao et
al. 2022, appendix B.4), so the gradients of the two parts are independent of each other as well.
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
# windows at least this long go through torch's flash kernel on the CPU; below it, two plain
# products are faster
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
    strata = (strata_k, strata_v, strata_bias)
    layout = (plan.window_start, plan.window_end, plan.batch_offsets)
    return _JointAttention.apply(scale, q, k, v, *strata, *layout)


def collect_strata(q: Tensor, k: Tensor, v: Tensor, batch_offsets: Tensor, scale: float) -> Tensor:
    samples = []
    for b, rows in enumerate(_sample_rows(batch_offsets)):
        if rows.start == rows.stop:
            # zeros that still depend on q: distributed training waits for a gradient of every
            # parameter
            everything = torch.ones_like(q[b], dtype=torch.bool)
            out = q[b].masked_fill(everything, 0)
        else:
            queries = _heads_first(q[b])  # [1, H, M, D]
            keys = _heads_first(k[rows])  # [1, H, n, D]
            values = _heads_first(v[rows])
            out = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
            out = out[0].transpose(0, 1)
        samples.append(out)
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
        bias = None if strata_bias is None else strata_bias[b]
        samples.append(_read_sample(q[rows], strata_k[b], strata_v[b], bias, scale))
    return torch.cat(samples)


def _read_sample(
    q: Tensor, strata_k: Tensor, strata_v: Tensor, strata_bias: Tensor | None, scale: float
) -> Tensor:
    """`read_strata` of one sample: q [n, H, D], strata [M, H, D], bias [M, H]."""
    if strata_bias is None:
        mask, absent, wide = None, None, q.dtype
    else:
        # the bias keeps its precision, so the others are converted to it
        wide = torch.promote_types(q.dtype, strata_bias.dtype)
        bias = strata_bias.T.unsqueeze(1)  # [H, 1, M]
        absent = (bias == -torch.inf).all(-1, keepdim=True)
        mask = bias.masked_fill(absent, 0).to(wide).unsqueeze(0)

    queries = _heads_first(q.to(wide))
    keys = _heads_first(strata_k.to(wide))
    values = _heads_first(strata_v.to(wide))
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    out = out[0]  # [H, n, D]
    if absent is not None:
        out = out.masked_fill(absent, 0)
    return out.transpose(0, 1).to(q.dtype)


def _heads_first(x: Tensor) -> Tensor:
    """[n, H, D] -> [1, H, n, D]."""
    return x.transpose(0, 1).unsqueeze(0)


def _sample_rows(batch_offsets: Tensor) -> list[slice]:
    """Rows of every sample."""
    offsets = batch_offsets.tolist()
    return [slice(start, end) for start, end in zip(offsets, offsets[1:])]


class _Chunk(NamedTuple):
    """Windows of similar length.

    rows [W, L]: the rows of each; padding [W, L] bool; real: the flat places that are not padding
    (both None where nothing is padded). A padded place repeats its window's own last row, so that
    whatever that row contains (NaN, say) stays in its window.
    """

    rows: Tensor
    padding: Tensor | None
    real: Tensor | None


def _window_chunks(
    window_start: Tensor, window_end: Tensor, numbers_per_row: int, heads: int
) -> Iterator[_Chunk]:
    """All windows, by length and in pieces that fit the cache."""
    is_first = torch.arange(len(window_start), device=window_start.device) == window_start
    start = window_start[is_first].long()
    end = window_end[is_first].long()
    bounds = torch.tensor(_BUCKETS, device=start.device)
    bucket = torch.bucketize(end - start, bounds)
    for index in torch.unique(bucket).tolist():
        chosen = bucket == index
        size = int((end[chosen] - start[chosen]).max())
        count = max(1, _CHUNK_NUMBERS // (size * (numbers_per_row + heads * size)))
        for starts, ends in zip(start[chosen].split(count), end[chosen].split(count)):
            yield _make_chunk(starts, ends, size)


def _make_chunk(start: Tensor, end: Tensor, size: int) -> _Chunk:
    """Windows of rows start [W] to end [W], padded to a size."""
    place = torch.arange(size, device=start.device)
    rows = torch.minimum(start[:, None] + place, end[:, None] - 1)  # [W, L]
    padding = place >= (end - start)[:, None]
    real = (~padding).flatten().nonzero().squeeze(1)
    if len(real) == padding.numel():
        return _Chunk(rows, None, None)
    return _Chunk(rows, padding, real)


class _Inputs(NamedTuple):
    """Tensors of one call: rows [N, H, D], strata [B, M, H, D], bias [B, M, H], the plan's."""

    q: Tensor
    k: Tensor
    v: Tensor
    strata_k: Tensor | None
    strata_v: Tensor | None
    strata_bias: Tensor | None
    window_start: Tensor
    window_end: Tensor
    batch_offsets: Tensor


class _JointAttention(torch.autograd.Function):
    """out[i] = sum_j softmax_j(logits) v[j] over i's window and the strata of its sample."""

    @staticmethod
    def forward(ctx, scale, *tensors):
        x = _Inputs(*tensors)
        out, lse = _attend_windows(x, scale)
        if x.strata_k is not None:
            _merge_strata(out, lse, x, scale)
        out = out.to(x.q.dtype)
        ctx.save_for_backward(*tensors, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *tensors, out, lse = ctx.saved_tensors
        x = _Inputs(*tensors)
        # whoever calls backward inside autocast means the forward pass
        with torch.autocast(grad.device.type, enabled=False):
            grad = grad.to(lse.dtype)
            grad_q, grad_k, grad_v = _window_gradients(x, out, lse, grad, ctx.scale)
            strata_gradients = (None, None, None)
            if x.strata_k is not None:
                strata_gradients = _strata_gradients(x, out, lse, grad, grad_q, ctx.scale)
            rows = (grad_q.to(x.q.dtype), grad_k.to(x.k.dtype), grad_v.to(x.v.dtype))
        return None, *rows, *strata_gradients, None, None, None


def _attend_windows(x: _Inputs, scale: float) -> tuple[Tensor, Tensor]:
    """Output [N, H, D] and log-sum-exp [N, H] over the windows alone, in fp32 or wider."""
    wide = torch.promote_types(x.q.dtype, torch.float32)
    heads, width = x.q.shape[1:]
    out = x.q.new_empty(x.q.shape, dtype=wide)
    lse = x.q.new_empty(x.q.shape[:2], dtype=wide)
    tables = [table.to(wide).reshape(len(table), heads * width) for table in (x.q, x.k, x.v)]
    for chunk in _window_chunks(x.window_start, x.window_end, 3 * heads * width, heads):
        q, k, v = (_take(table, chunk, heads) for table in tables)  # [W, H, L, D]
        chunk_out, chunk_lse = _attend_chunk(q, k, v, chunk.padding, scale)
        _put(out, chunk, chunk_out.transpose(1, 2))
        _put(lse, chunk, chunk_lse.transpose(1, 2))
    return out, lse


def _merge_strata(out: Tensor, lse: Tensor, x: _Inputs, scale: float) -> None:
    """Extend the softmax of out [N, H, D] and lse [N, H] by the strata, in place."""
    for _, rows, sample in _samples(x, out.dtype):
        logits = sample.strata_logits(scale)  # [H, n, M]
        joint = torch.logaddexp(lse[rows].T, logits.logsumexp(-1))  # [H, n]
        weights = logits.sub_(joint.unsqueeze(-1)).exp_()
        strata_out = weights @ sample.v  # [H, n, D]
        window_share = (lse[rows] - joint.T).exp_().unsqueeze(-1)  # [n, H, 1]
        out[rows] = out[rows] * window_share + strata_out.transpose(0, 1)
        lse[rows] = joint.T


class _Sample(NamedTuple):
    """Queries q [H, n, D] of one sample, its strata k, v [H, M, D] and their bias [M, H]."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None

    def strata_logits(self, scale: float) -> Tensor:
        """[H, n, M]."""
        logits = (self.q @ self.k.transpose(-1, -2)).mul_(scale)
        return logits if self.bias is None else logits.add_(self.bias.T.unsqueeze(1))


def _samples(x: _Inputs, wide: torch.dtype) -> Iterator[tuple[int, slice, _Sample]]:
    """Number, rows and tensors in a wide dtype of every sample of inputs with strata."""
    assert x.strata_k is not None and x.strata_v is not None
    for b, rows in enumerate(_sample_rows(x.batch_offsets)):
        q = x.q[rows].to(wide).transpose(0, 1)
        k = x.strata_k[b].to(wide).transpose(0, 1)
        v = x.strata_v[b].to(wide).transpose(0, 1)
        bias = None if x.strata_bias is None else x.strata_bias[b]
        yield b, rows, _Sample(q, k, v, bias)


def _window_gradients(
    x: _Inputs, out: Tensor, lse: Tensor, grad: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v [N, H, D] from the windows, in fp32 or wider."""
    wide = lse.dtype
    heads, width = x.q.shape[1:]
    grad_q = x.q.new_empty(x.q.shape, dtype=wide)
    grad_k = x.k.new_empty(x.k.shape, dtype=wide)
    grad_v = x.v.new_empty(x.v.shape, dtype=wide)
    # [N, H D]
    tables = [
        table.to(wide).reshape(len(table), heads * width) for table in (x.q, x.k, x.v, out, grad)
    ]
    for chunk in _window_chunks(x.window_start, x.window_end, 5 * heads * width, heads):
        inputs = (_take(table, chunk, heads) for table in tables)
        q, k, v, chunk_out, chunk_grad = inputs  # [W, H, L, D]
        chunk_lse = _take(lse, chunk, heads).squeeze(-1)
        if chunk.padding is not None:
            # a padded query must not add to the gradients of keys and values
            chunk_grad.masked_fill_(chunk.padding[:, None, :, None], 0)
        dq, dk, dv = _chunk_gradients(
            q, k, v, chunk_out, chunk_grad, chunk_lse, chunk.padding, scale
        )
        _put(grad_q, chunk, dq.transpose(1, 2))
        _put(grad_k, chunk, dk.transpose(1, 2))
        _put(grad_v, chunk, dv.transpose(1, 2))
    return grad_q, grad_k, grad_v


def _strata_gradients(
    x: _Inputs, out: Tensor, lse: Tensor, grad: Tensor, grad_q: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of strata_k, strata_v and strata_bias; adds that of the queries to grad_q."""
    assert x.strata_k is not None and x.strata_v is not None
    wide = lse.dtype
    delta = (grad * out.to(wide)).sum(-1)  # [N, H]
    grad_k = x.strata_k.new_zeros(x.strata_k.shape, dtype=wide)
    grad_v = x.strata_v.new_zeros(x.strata_v.shape, dtype=wide)
    grad_bias = None if x.strata_bias is None else torch.zeros_like(x.strata_bias)
    for b, rows, sample in _samples(x, wide):
        dq, dk, dv, dbias = _sample_gradients(sample, grad[rows], lse[rows], delta[rows], scale)
        grad_q[rows] += dq
        grad_k[b] = dk
        grad_v[b] = dv
        if grad_bias is not None:
            grad_bias[b] = dbias
    return grad_k.to(x.strata_k.dtype), grad_v.to(x.strata_v.dtype), grad_bias


def _sample_gradients(
    sample: _Sample, grad: Tensor, lse: Tensor, delta: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of one sample's q [n, H, D], k, v [M, H, D] and bias [M, H].

    grad: [n, H, D]; lse, delta: [n, H].
    """
    grad = grad.transpose(0, 1)  # [H, n, D]
    logits = sample.strata_logits(scale)
    p = logits.sub_(lse.T.unsqueeze(-1)).exp_()  # [H, n, M]
    dv = p.transpose(-1, -2) @ grad

    ds = grad @ sample.v.transpose(-1, -2)
    ds = ds.sub_(delta.T.unsqueeze(-1)).mul_(p)
    dbias = ds.sum(1)
    ds = ds.mul_(scale)
    dq = ds @ sample.k
    dk = ds.transpose(-1, -2) @ sample.q
    return dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1), dbias.T


def _attend_chunk(
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


def _chunk_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    grad: Tensor,
    lse: Tensor,
    padding: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v [W, H, L, D].

    out and lse are those of the whole softmax, strata included.
    """
    if _uses_flash(q):
        mask = _mask(q, padding)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse.contiguous(), 0.0, False, attn_mask=mask, scale=scale
        )
    p = _logits(q, k, padding, scale).sub_(lse.unsqueeze(-1)).exp_()  # [W, H, L, L]
    delta = (grad * out).sum(-1, keepdim=True)
    ds = grad @ v.transpose(-1, -2)
    ds = ds.sub_(delta).mul_(p).mul_(scale)
    grad_q = ds @ k
    grad_k = ds.transpose(-1, -2) @ q
    grad_v = p.transpose(-1, -2) @ grad
    return grad_q, grad_k, grad_v


def _uses_flash(q: Tensor) -> bool:
    return q.shape[2] >= _FLASH_LENGTH and q.device.type == 'cpu'


def _mask(q: Tensor, padding: Tensor | None) -> Tensor | None:
    """[W, 1, L, L] to be added to the logits: -inf at padded keys."""
    if padding is None:
        return None
    mask = q.new_zeros(padding.shape).masked_fill_(padding, -torch.inf)
    return mask[:, None, None, :].expand(-1, 1, padding.shape[1], -1)


def _take(table: Tensor, chunk: _Chunk, heads: int) -> Tensor:
    """[N, H D] -> [W, H, L, D] at the chunk's rows."""
    rows = table.index_select(0, chunk.rows.flatten())
    return rows.view(*chunk.rows.shape, heads, -1).transpose(1, 2)


def _put(table: Tensor, chunk: _Chunk, values: Tensor) -> None:
    """Write values [W, L, ...] to the chunk's rows of the table, except at padded places."""
    rows = chunk.rows.flatten()
    values = values.reshape(-1, *table.shape[1:])
    if chunk.real is not None:
        rows = rows[chunk.real]
        values = values.index_select(0, chunk.real)
    table.index_copy_(0, rows, values)


def _logits(q: Tensor, k: Tensor, padding: Tensor | None, scale: float) -> Tensor:
    """[W, H, L, L], -inf at padded keys."""
    logits = (q @ k.transpose(-1, -2)).mul_(scale)
    return logits if padding is None else logits.masked_fill_(padding[:, None, None, :], -torch.inf)
