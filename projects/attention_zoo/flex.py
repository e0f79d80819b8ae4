"""FlexAttention with the windows and the strata as its mask."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from projects.attention_zoo.mixer import JointBaseline
from stratified3d.layers.attention import WindowGrid


@functools.cache
def _compiled(device: str):
    # for a CPU, torch 2.13 writes C++ that does not compile where sizes are symbols; fullgraph:
    # never eagerly instead
    return torch.compile(flex_attention, dynamic=device != 'cpu', fullgraph=True)


class FlexAttention(JointBaseline):
    """Rows, and behind them all strata tokens, are the keys of one call; blocks that hold no pair
    are skipped.

    FlexAttention (Dong et al. 2024). The BlockMask comes from the window plan, whose windows are
    runs of rows, so it costs no look at every pair. On a CPU torch has the forward pass only, and a
    gradient is an error. compiled=False runs eagerly, with all pairs in memory: for checks.
    """

    defaults = dict(block_size=128, compiled=True)
    variants = (dict(block_size=64), dict(block_size=256))

    def prepare(self, grid: WindowGrid, strata: int) -> BlockMask:
        plan, size = grid.plan, self.block_size
        n, batch = len(plan.sample), len(plan.batch_offsets) - 1
        total = n + batch * strata
        first = torch.arange(0, n, size, device=plan.sample.device)
        last = (first + size - 1).clamp(max=n - 1)
        column = torch.arange(-(-total // size), device=first.device)

        def between(start: Tensor, end: Tensor) -> Tensor:
            return (column >= start[:, None] // size) & (column <= (end[:, None] - 1) // size)

        touched = between(plan.window_start[first], plan.window_end[last])
        if strata:
            touched |= between(
                n + plan.sample[first] * strata, n + (plan.sample[last] + 1) * strata
            )
        order = touched.to(torch.int8).argsort(dim=1, descending=True, stable=True).int()
        start, end, sample = plan.window_start, plan.window_end, plan.sample
        rows = torch.full(
            (), n, device=start.device
        )  # a tensor: a number would be compiled in, for each cloud anew

        def seen(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
            near = (key >= start[row]) & (key < end[row])
            return (
                near | ((key >= rows) & ((key - rows) // strata == sample[row])) if strata else near
            )

        return BlockMask.from_kv_blocks(
            touched.sum(1, dtype=torch.int32)[None, None],
            order[None, None],
            BLOCK_SIZE=size,
            mask_mod=seen,
            seq_lengths=(n, total),
        )

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
        n, modify = len(q), None
        reason = self.unsupported_reason(q)
        if reason:
            raise ValueError(reason)
        if not n:
            return q * 1
        mask = self.prepared(grid, 0 if strata_k is None else strata_k.shape[1])
        if strata_k is not None:
            k, v = torch.cat([k, strata_k.flatten(0, 1)]), torch.cat([v, strata_v.flatten(0, 1)])
            if strata_bias is not None:
                # finite: the gradient of a minus infinity that is stored would be NaN
                bias = strata_bias.flatten(0, 1).clamp(min=-1e4)  # [B M, H]
                rows = torch.full((), n, device=q.device)

                def modify(score: Tensor, b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
                    return torch.where(
                        key >= rows,
                        score + bias[(key - rows).clamp(min=0), h].to(score.dtype),
                        score,
                    )

        run = _compiled(q.device.type) if self.compiled else flex_attention
        heads = [x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)]
        return run(*heads, score_mod=modify, block_mask=mask)[0].transpose(0, 1)

    def unsupported_reason(self, q: Tensor) -> str | None:
        if q.device.type == 'cpu' and q.requires_grad and torch.is_grad_enabled():
            return (
                'FlexAttention has no backward pass on a CPU: train on a GPU, or take another mixer'
            )
        return None
