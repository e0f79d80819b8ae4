"""FlexAttention with the windows and the strata as its mask."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from projects.attention_zoo.mixer import JointBaseline
from stratified3d.layers.window_grid import WindowGrid
from stratified3d.ops import WindowPlan


@functools.cache
def _compiled(device: str) -> Callable:
    # dynamic: torch 2.13 writes C++ for a CPU that does not compile where sizes are symbols;
    # fullgraph: an error instead of a silent fallback to eager execution
    return torch.compile(flex_attention, dynamic=device != 'cpu', fullgraph=True)


class FlexAttention(JointBaseline):
    """The keys of one call are all rows, then all strata tokens; blocks without a pair are skipped.

    FlexAttention (Dong et al. 2024). The BlockMask is computed from the window plan, whose windows
    are runs of rows, without looking at every pair. On a CPU torch has the forward pass only, and a
    gradient is an error. compiled=False runs eagerly with all pairs in memory, for checks.
    """

    defaults = dict(block_size=128, compiled=True)
    variants = (dict(block_size=64), dict(block_size=256))
    block_size: int
    compiled: bool

    def build(self) -> None:
        self.check_at_least(1, 'block_size')

    def prepare(self, grid: WindowGrid, strata: int) -> BlockMask:
        plan = grid.plan
        batch = len(plan.batch_offsets) - 1
        num_rows = len(plan.sample)
        num_keys = num_rows + batch * strata

        touched = self._touched_blocks(plan, strata)  # [query blocks, key blocks]
        counts = touched.sum(1, dtype=torch.int32)
        order = touched.to(torch.int8).argsort(dim=1, descending=True, stable=True).int()
        return BlockMask.from_kv_blocks(
            counts[None, None],
            order[None, None],
            BLOCK_SIZE=self.block_size,
            mask_mod=_mask_of(plan, strata),
            seq_lengths=(num_rows, num_keys),
        )

    def _touched_blocks(self, plan: WindowPlan, strata: int) -> Tensor:
        """Return which blocks of keys a block of queries may attend to, bool [Q, K]."""
        size = self.block_size
        num_rows = len(plan.sample)
        batch = len(plan.batch_offsets) - 1
        num_blocks = -(-(num_rows + batch * strata) // size)
        first = torch.arange(0, num_rows, size, device=plan.sample.device)  # [Q]
        last = (first + size - 1).clamp(max=num_rows - 1)

        # windows of successive rows are one run of keys, and so are the strata of their samples
        start = plan.window_start[first]
        end = plan.window_end[last]
        touched = self._blocks_between(start, end, num_blocks)
        if strata:
            start = num_rows + plan.sample[first] * strata
            end = num_rows + (plan.sample[last] + 1) * strata
            touched |= self._blocks_between(start, end, num_blocks)
        return touched

    def _blocks_between(self, start: Tensor, end: Tensor, num_blocks: int) -> Tensor:
        """Return which blocks overlap keys start [Q] to end - 1: bool [Q, K]."""
        block = torch.arange(num_blocks, device=start.device)
        first = start[:, None] // self.block_size
        last = (end[:, None] - 1) // self.block_size
        return (block >= first) & (block <= last)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grid: WindowGrid,
        strata_k: Tensor | None = None,
        strata_v: Tensor | None = None,
        strata_bias: Tensor | None = None,
    ) -> Tensor:
        reason = self.unsupported_reason(q)
        if reason:
            raise ValueError(reason)
        if not len(q):
            return q * 1

        mask = self.prepared(grid, 0 if strata_k is None else strata_k.shape[1])
        modify: Callable[..., Tensor] | None = None
        if strata_k is not None:
            assert strata_v is not None  # both or none
            k = torch.cat([k, strata_k.flatten(0, 1)])
            v = torch.cat([v, strata_v.flatten(0, 1)])
            if strata_bias is not None:
                modify = _add_bias(strata_bias, len(q))

        run: Callable = flex_attention
        if self.compiled:
            run = _compiled(q.device.type)
        heads = [x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)]  # [1, H, N, D]
        return run(*heads, score_mod=modify, block_mask=mask)[0].transpose(0, 1)

    def unsupported_reason(self, q: Tensor) -> str | None:
        if self.compiled and ' ' in torch.__path__[0]:
            return (
                'torch cannot compile FlexAttention in a folder with a space '
                f'({torch.__path__[0]}): move the environment, set compiled=False or take another '
                'mixer'
            )
        if q.device.type == 'cpu' and q.requires_grad and torch.is_grad_enabled():
            return (
                'FlexAttention has no backward pass on a CPU: train on a GPU, or use another mixer'
            )
        return None


def _mask_of(plan: WindowPlan, strata: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the function that decides whether a row attends to a key."""
    start, end, sample = plan.window_start, plan.window_end, plan.sample
    # a tensor: a number would be compiled in, and every point cloud would compile anew
    rows = torch.full((), len(sample), device=start.device)

    def attends(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        near = (key >= start[row]) & (key < end[row])
        if not strata:
            return near
        return near | ((key >= rows) & ((key - rows) // strata == sample[row]))

    return attends


def _add_bias(strata_bias: Tensor, num_rows: int) -> Callable[..., Tensor]:
    """Return the function that adds the bias [B, M, H] to the scores of strata tokens."""
    # finite: the gradient of a stored -inf would be NaN
    bias = strata_bias.flatten(0, 1).clamp(min=-1e4)  # [B M, H]
    rows = torch.full((), num_rows, device=bias.device)

    def modify(score: Tensor, b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        token = (key - rows).clamp(min=0)
        return torch.where(key >= rows, score + bias[token, h].to(score.dtype), score)

    return modify
