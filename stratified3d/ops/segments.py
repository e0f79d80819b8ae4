"""Deterministic reductions over runs of consecutive rows, which are given by offsets.

Neither direction uses float atomics.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS_PER_CHUNK = 64  # about as many as there are chunks in a segment of 4,000 rows
_MAX_CHUNKS = 64


def chunk_offsets(offsets: Tensor, num_chunks: int) -> Tensor:
    """Cut every segment of rows into equal chunks.

    Chunk i of a segment with n rows is its rows floor(i n / m) to floor((i + 1) n / m); where n < m
    some are empty.

    Args:
        offsets: [B + 1] integer, the first row of every segment and the end of the last.
        num_chunks: m >= 1.
    Returns:
        [B m + 1] int64: the rows of chunk i of segment b start at entry b m + i.
    Raises:
        ValueError: m < 1.
    """
    if num_chunks < 1:
        raise ValueError(f'num_chunks is at least 1 here, not {num_chunks}')
    start = offsets[:-1].long()  # [B]
    count = offsets.diff().long()
    steps = torch.arange(num_chunks, device=start.device)
    skipped = torch.div(steps * count[:, None], num_chunks, rounding_mode='floor')  # [B, m]
    chunk_start = start[:, None] + skipped
    return torch.cat([chunk_start.flatten(), offsets[-1:].long()])


def segment_ids(offsets: Tensor, num_rows: int) -> Tensor:
    """Number the rows by the segment they lie in.

    Args:
        offsets: [N + 1] integer, ascending, from 0 to num_rows.
        num_rows: P, known on the host, so that nothing waits for the device.
    Returns:
        [P] int64.
    """
    segments = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return segments.repeat_interleave(offsets.diff(), output_size=num_rows)


def segment_reduce(values: Tensor, offsets: Tensor, reduce: str) -> Tensor:
    """Reduce every segment of rows to one row.

    Args:
        values: [P, C], floating point; segment i is rows offsets[i] to offsets[i + 1].
        offsets: [N + 1] int64, ascending, from 0 to P.
        reduce: 'sum', 'mean' or 'max'; the gradient of a maximum is shared by the rows that attain
            it.
    Returns:
        [N, C]; an empty segment gives zeros.
    Raises:
        ValueError: unknown reduction.
    """
    if reduce == 'max':
        return _SegmentMax.apply(values, offsets)
    if reduce not in ('sum', 'mean'):
        raise ValueError(f"reduce is 'sum', 'mean' or 'max', not {reduce!r}")
    # summed in fp32 or wider: a long segment would overflow fp16
    wide = torch.promote_types(values.dtype, torch.float32)
    total = _SegmentSum.apply(values.to(wide), offsets)
    if reduce == 'mean':
        total = total / offsets.diff().clamp(min=1).unsqueeze(1).to(total.dtype)
    return total.to(values.dtype)


def segment_broadcast(values: Tensor, offsets: Tensor, num_rows: int) -> Tensor:
    """Give every row the value of its segment: [N, C] -> [P, C].

    The gradient is the sum over each segment.
    """
    return _SegmentBroadcast.apply(values, offsets, num_rows)


def segment_softmax(scores: Tensor, offsets: Tensor) -> Tensor:
    """Softmax within every segment of rows.

    Args:
        scores: [P, C], floating point; computed in fp32 or wider.
        offsets: [N + 1] int64, ascending, from 0 to P.
    Returns:
        [P, C] weights in the dtype of the computation; every non-empty segment sums to 1 in each
        column.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    # the shift by the maximum cancels out of the result, so it needs no gradient
    largest = segment_reduce(scores.detach(), offsets, 'max')
    weights = (scores - segment_broadcast(largest, offsets, scores.shape[0])).exp()
    total = segment_reduce(weights, offsets, 'sum')
    return weights / segment_broadcast(total, offsets, scores.shape[0])


def _sum_rows(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum over every segment: [P, C] -> [N, C]."""
    if values.is_cuda:
        return _sum_chunks(values, offsets)
    if values.dtype not in (torch.float32, torch.float64) or not values.numel():
        out = values.new_zeros(offsets.shape[0] - 1, values.shape[1])
        return out.index_add_(0, segment_ids(offsets, values.shape[0]), values)
    # four times faster than index_add_; each segment is summed by one thread
    rows = torch.arange(values.shape[0], device=values.device)
    return F.embedding_bag(rows, values, offsets, mode='sum', include_last_offset=True)


def _sum_chunks(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum over every segment in two steps, because on a GPU one thread adds up a whole segment."""
    count, width = offsets.shape[0] - 1, values.shape[1]
    num_chunks = max(1, min(values.shape[0] // max(count, 1) // _ROWS_PER_CHUNK, _MAX_CHUNKS))
    chunks = chunk_offsets(offsets, num_chunks)
    # `unsafe` skips a check of the offsets that would wait for the device
    sums = torch.segment_reduce(values, 'sum', offsets=chunks, axis=0, initial=0, unsafe=True)
    return sums.view(count, num_chunks, width).sum(1)


class _SegmentSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets):
        ctx.save_for_backward(offsets)
        ctx.rows = values.shape[0]
        return _sum_rows(values, offsets)

    @staticmethod
    def backward(ctx, grad):
        (offsets,) = ctx.saved_tensors
        return segment_broadcast(grad, offsets, ctx.rows), None


class _SegmentBroadcast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets, num_rows):
        ctx.save_for_backward(offsets)
        return values.index_select(0, segment_ids(offsets, num_rows))

    @staticmethod
    def backward(ctx, grad):
        (offsets,) = ctx.saved_tensors
        return segment_reduce(grad.contiguous(), offsets, 'sum'), None, None


class _SegmentMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets):
        segment = segment_ids(offsets, values.shape[0]).unsqueeze(1).expand_as(values)
        out = values.new_zeros(offsets.shape[0] - 1, values.shape[1])
        # a maximum does not depend on the order of its operands, so atomics are harmless here
        out.scatter_reduce_(0, segment, values, 'amax', include_self=False)
        ctx.save_for_backward(values, offsets, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        values, offsets, out = ctx.saved_tensors
        largest = out.index_select(0, segment_ids(offsets, values.shape[0]))
        attained = (values == largest).float()  # counted in fp32: fp16 ends at 65504
        share = grad / _sum_rows(attained, offsets).clamp_(min=1)
        shares = segment_broadcast(share, offsets, values.shape[0])
        return (attained * shares).to(values.dtype), None
