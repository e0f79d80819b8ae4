"""Window planning: which voxels of a batch share an attention window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stratified3d.ops.checks import UNKNOWN_AXIS_BITS, check_windows


class WindowPlan(NamedTuple):
    """Voxels arranged window by window.

    It is a pytree, so it passes through torch.compile and torch.export. order [N] int64: the voxel
    at each row of window order; inverse [N] int64: the row of each voxel; window_start, window_end
    [N] int32: each row's window as a half-open range of rows; sample [N] int32: each row's sample;
    batch_offsets [B + 1] int32: sample b owns rows batch_offsets[b] to batch_offsets[b + 1].
    """

    order: Tensor
    inverse: Tensor
    window_start: Tensor
    window_end: Tensor
    sample: Tensor
    batch_offsets: Tensor


def plan_windows(
    coords: Tensor,
    window_shape: Sequence[int],
    shift: Sequence[int] = (0, 0, 0),
    *,
    batch_size: int,
    spatial_shape: Sequence[int] | None = None,
) -> WindowPlan:
    """Sort voxels so that every attention window is one contiguous run of rows.

    Voxel (z, y, x) lies in window floor((coord + shift) / window_shape). Rows are sorted by (batch,
    Morton code of the window index), stable; windows at the border are smaller and nothing wraps
    around. Cost: one sort and two binary searches, O(N log N) time, O(N) memory; does not wait for
    the device.

    Args:
        coords: [N, 4] int32 (batch, z, y, x), >= 0, any order; N = 0 is valid.
        window_shape: (z, y, x) in voxels.
        shift: (z, y, x) in voxels, 0 <= shift < window_shape; ignored along z where the window
            spans all of z.
        batch_size: B; samples without voxels are allowed anywhere.
        spatial_shape: (z, y, x) in voxels; only makes the sort key shorter. Without it each axis
            may have up to 65,536 windows.
    Returns:
        WindowPlan.
    Raises:
        ValueError: wrong shapes or dtypes, a shift outside its window, or (where values are
            checked) coordinates that are negative or lie outside the batch or the grid.
    """
    window_shape = tuple(int(w) for w in window_shape)
    shift = tuple(int(s) for s in shift)
    check_windows(coords, window_shape, shift, batch_size, spatial_shape)
    bits = [UNKNOWN_AXIS_BITS] * 3
    if spatial_shape is not None:
        # one window spans z: a shift would only cut it in two
        if window_shape[0] >= spatial_shape[0]:
            shift = (0, *shift[1:])
        bits = [
            _bits_of_index(size + s, w) for size, s, w in zip(spatial_shape, shift, window_shape)
        ]

    # index of each voxel's window along z, y, x
    window = [
        torch.div(coords[:, 1 + axis] + shift[axis], window_shape[axis], rounding_mode='floor')
        for axis in range(3)
    ]
    key = _window_key(coords[:, 0], window, bits, batch_size)
    key, order = torch.sort(key, stable=True)

    rows = torch.arange(key.shape[0], device=key.device)
    inverse = torch.empty_like(order).scatter_(0, order, rows)
    sample = coords[:, 0][order]
    samples = torch.arange(batch_size + 1, device=key.device, dtype=torch.int32)
    # equal keys lie side by side: a window is the range of its key
    return WindowPlan(
        order=order,
        inverse=inverse,
        window_start=torch.searchsorted(key, key, out_int32=True),
        window_end=torch.searchsorted(key, key, right=True, out_int32=True),
        sample=sample,
        batch_offsets=torch.searchsorted(sample, samples, out_int32=True),
    )


def permute_rows(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """x[order], differentiable.

    The gradient is gathered by the inverse permutation, where that of indexing would be scattered.

    Args:
        x: [N, ...].
        order, inverse: [N] int64, a permutation of the rows and its inverse, as in `WindowPlan`.
    Returns:
        [N, ...]; row i is x[order[i]].
    """
    return _PermuteRows.apply(x, order, inverse)


class _PermuteRows(torch.autograd.Function):
    @staticmethod
    def forward(x, order, inverse):
        return x.index_select(0, order)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, grad):
        order, inverse = ctx.saved_tensors
        return _PermuteRows.apply(grad, inverse, order), None, None


def _bits_of_index(size: int, window: int) -> int:
    """Bits that number the windows of an axis of so many voxels."""
    count = -(-size // window)
    return (count - 1).bit_length()


def _window_key(
    sample: Tensor, window: Sequence[Tensor], bits: Sequence[int], batch_size: int
) -> Tensor:
    """[N] sort key: the sample above the interleaved bits of the window index, x lowest."""
    is_wide = sum(bits) + batch_size.bit_length() > 31
    key = torch.zeros_like(sample, dtype=torch.int64 if is_wide else torch.int32)
    position = 0
    for level in range(max(bits)):
        # an axis that has run out of bits is skipped: its higher bits are zero
        for axis in (2, 1, 0):
            if level < bits[axis]:
                bit = (window[axis].to(key.dtype) >> level) & 1
                key |= bit << position
                position += 1
    return key | (sample.to(key.dtype) << position)
