"""Host side of the CPU kernels: converts tensors, and gives groups of windows to threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from stratified3d.ops.stratified_attention.cpu.backward import Gradients, differentiate
from stratified3d.ops.stratified_attention.cpu.forward import Strata
from stratified3d.ops.stratified_attention.cpu.forward import attend as attend_rows
from stratified3d.ops.windows import WindowPlan

_WIDTH = 8  # heads are padded to a multiple of this
# a group has about this many rows at least, and there are about so many groups: a constant, so that
# sums do not depend on the number of threads
_GROUP_ROWS = 256
_GROUPS = 64


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: WindowPlan,
    strata_k: Tensor | None,
    strata_v: Tensor | None,
    strata_bias: Tensor | None,
    scale: float,
) -> Tensor:
    """Output [N, H, D] of rows over their windows and strata, differentiable."""
    if strata_k is None or strata_v is None:
        batch = len(plan.batch_offsets) - 1
        strata_k = strata_v = q.new_zeros(batch, 0, *q.shape[1:])
    if strata_bias is None:
        strata_bias = q.new_zeros(strata_k.shape[:3], dtype=torch.float32)
    inputs = (q, k, v, strata_k, strata_v, strata_bias)
    return _Attention.apply(scale, plan.window_start, plan.window_end, plan.batch_offsets, *inputs)


class _Group(NamedTuple):
    """Rows first to last are whole windows of one sample; longest: rows of the longest window."""

    sample: int
    first: int
    last: int
    longest: int


class _Arrays(NamedTuple):
    """Inputs as the kernels read them: q, k, v [N, H, D]; strata of each sample."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    window_end: np.ndarray
    strata: list[Strata]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scale, window_start, window_end, batch_offsets, *inputs):
        arrays = _to_arrays(window_end, *inputs)
        groups = _group_windows(window_start, window_end, batch_offsets)
        shape = arrays.q.shape
        out = torch.empty(shape)
        lse = torch.empty(shape[:2])
        results = (out.numpy(), lse.numpy())

        def run(i: int) -> None:
            sample, *rows = groups[i]
            strata = arrays.strata[sample]
            attend_rows(*arrays[:4], strata, np.float32(scale), *rows, *results)

        _run_all(run, len(groups))
        ctx.save_for_backward(window_start, window_end, batch_offsets, out, lse, *inputs)
        ctx.scale = scale
        return _like(out, inputs[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        window_start, window_end, batch_offsets, out, lse, *inputs = ctx.saved_tensors
        arrays = _to_arrays(window_end, *inputs)
        groups = _group_windows(window_start, window_end, batch_offsets)
        gradients = _new_gradients(arrays, len(groups))
        results = (out.numpy(), lse.numpy(), _to_array(grad))

        def run(i: int) -> None:
            sample, *rows = groups[i]
            strata = arrays.strata[sample]
            own = _gradients_of_group(gradients, i)
            differentiate(*arrays[:4], strata, np.float32(ctx.scale), *rows, *results, own)

        _run_all(run, len(groups))
        return None, None, None, None, *_join_gradients(gradients, groups, inputs)


def _to_arrays(
    window_end: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    strata_k: Tensor,
    strata_v: Tensor,
    strata_bias: Tensor,
) -> _Arrays:
    bias = strata_bias.detach().float().transpose(1, 2).contiguous().numpy()  # [B, H, M]
    samples = zip(_to_array(strata_k), _to_array(strata_v), bias)
    tables = (_to_array(q), _to_array(k), _to_array(v))
    return _Arrays(*tables, window_end.numpy(), [Strata(*parts) for parts in samples])


def _to_array(x: Tensor) -> np.ndarray:
    """Contiguous fp32, its last dimension padded with zeros."""
    x = x.detach().float()
    padding = -x.shape[-1] % _WIDTH
    if padding:
        x = F.pad(x, (0, padding))
    return x.contiguous().numpy()


def _like(x: Tensor, original: Tensor) -> Tensor:
    """Without the padding, in the original's dtype."""
    return x[..., : original.shape[-1]].to(original.dtype)


def _new_gradients(arrays: _Arrays, groups: int) -> Gradients:
    """Gradients of all rows, and those of the strata [groups, ...] for each group.

    torch allocates them, so that its profiler counts them.
    """
    rows = [torch.empty(x.shape).numpy() for x in arrays[:3]]
    strata = [torch.zeros(groups, *x.shape).numpy() for x in arrays.strata[0]]
    return Gradients(*rows, *strata)


def _gradients_of_group(gradients: Gradients, i: int) -> Gradients:
    """Those that the i-th group writes."""
    return Gradients(
        gradients.q,
        gradients.k,
        gradients.v,
        gradients.strata_k[i],
        gradients.strata_v[i],
        gradients.strata_bias[i],
    )


def _join_gradients(
    gradients: Gradients, groups: list[_Group], inputs: list[Tensor]
) -> list[Tensor]:
    """Gradients of the inputs; those of the strata are summed over the groups of a sample."""
    samples = torch.tensor([group.sample for group in groups], dtype=torch.int64)
    joined = []
    for array, original in zip(gradients[:3], inputs[:3]):
        joined.append(_like(torch.from_numpy(array), original))
    for array, original in zip(gradients[3:], inputs[3:]):
        total = torch.zeros(len(original), *array.shape[1:])
        total.index_add_(0, samples, torch.from_numpy(array))
        if total.ndim == 3:  # the bias: [B, H, M]
            total = total.transpose(1, 2)
        joined.append(_like(total, original))
    return joined


def _group_windows(window_start: Tensor, window_end: Tensor, batch_offsets: Tensor) -> list[_Group]:
    """Cut the rows into groups of whole windows."""
    start, end, offsets = window_start.numpy(), window_end.numpy(), batch_offsets.numpy()
    step = max(_GROUP_ROWS, len(start) // _GROUPS)
    cuts = np.unique(np.concatenate([start[step::step], offsets]))
    groups = []
    for first, last in zip(cuts, cuts[1:]):
        sample = np.searchsorted(offsets, first, side='right') - 1
        longest = (end[first:last] - start[first:last]).max()
        groups.append(_Group(int(sample), int(first), int(last), int(longest)))
    return groups


def _run_all(function: Callable[[int], None], count: int) -> None:
    """Call function(i) for all i < count, on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), count)
    if threads < 2:
        for i in range(count):
            function(i)
        return
    # the numbers of a fork's parent are not those of its own threads
    for _ in _thread_pool(threads, os.getpid()).map(function, range(count)):
        pass


@lru_cache(maxsize=4)
def _thread_pool(threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, 'stratified3d')
