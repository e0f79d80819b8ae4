"""Deterministic reductions over runs of consecutive rows, which are given by offsets.

Neither direction uses float atomics.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def segment_ids(offsets: Tensor, num_rows: int) -> Tensor:
    """Number the rows by the segment they lie in.

    Args:
        offsets: [N + 1] integer, ascending, from 0 to num_rows.
        num_rows: P, known on the host, so that nothing waits for the device.
    Returns:
        [P] int64.
    """
    segments = torch.arange(len(offsets) - 1, device=offsets.device)
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
    weights = (scores - segment_broadcast(largest, offsets, len(scores))).exp()
    total = segment_reduce(weights, offsets, 'sum')
    return weights / segment_broadcast(total, offsets, len(scores))


def _sum_rows(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum over every segment: [P, C] -> [N, C]."""
    if values.is_cuda:
        # `unsafe` skips a check of the offsets that would wait for the device
        return torch.segment_reduce(values, 'sum', offsets=offsets, axis=0, initial=0, unsafe=True)
    if values.dtype not in (torch.float32, torch.float64) or not values.numel():
        out = values.new_zeros(len(offsets) - 1, values.shape[1])
        return out.index_add_(0, segment_ids(offsets, len(values)), values)
    # four times faster than index_add_; each segment is summed by one thread
    rows = torch.arange(len(values), device=values.device)
    return F.embedding_bag(rows, values, offsets, mode='sum', include_last_offset=True)


class _SegmentSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets):
        ctx.save_for_backward(offsets)
        ctx.rows = len(values)
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
        return _SegmentSum.apply(grad.contiguous(), offsets), None, None


class _SegmentMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets):
        segment = segment_ids(offsets, len(values)).unsqueeze(1).expand_as(values)
        out = values.new_zeros(len(offsets) - 1, values.shape[1])
        # a maximum does not depend on the order of its operands, so atomics are harmless here
        out.scatter_reduce_(0, segment, values, 'amax', include_self=False)
        ctx.save_for_backward(values, offsets, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        values, offsets, out = ctx.saved_tensors
        largest = out.index_select(0, segment_ids(offsets, len(values)))
        attained = (values == largest).to(grad.dtype)
        share = grad / _sum_rows(attained, offsets).clamp_(min=1)
        return attained.mul_(segment_broadcast(share, offsets, len(values))), None
