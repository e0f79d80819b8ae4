"""FlexAttention with the windows and the strata as its mask."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
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
    are runs of rows, without looking at every pair. Rows are padded to whole blocks, so that the
    strata start with a block of their own. On a CPU, which compiles anew for every shape, they are
    padded to one, two, four and so on blocks; blocks of padding alone are skipped. On a CPU torch
    has the forward pass only, and a gradient is an error. compiled=False runs eagerly with all
    pairs in memory, for checks.
    """

    defaults = dict(block_size=128, compiled=True)
    variants = (dict(block_size=64), dict(block_size=256))
    block_size: int
    compiled: bool

    def build(self) -> None:
        self.check_at_least(1, 'block_size')

    def padded_rows(self, num_rows: int, device: torch.device) -> int:
        """Return how many rows, at least num_rows, the attention is computed with."""
        blocks = -(-num_rows // self.block_size)
        if device.type == 'cpu':
            blocks = 1 << (blocks - 1).bit_length()
        return blocks * self.block_size

    def prepare(self, grid: WindowGrid, strata: int) -> BlockMask:
        plan, size = grid.plan, self.block_size
        num_rows = len(plan.sample)
        padded = self.padded_rows(num_rows, plan.sample.device)
        num_keys = padded + (len(plan.batch_offsets) - 1) * strata
        first = torch.arange(0, num_rows, size, device=plan.sample.device)  # of a query block [Q]
        last = (first + size - 1).clamp(max=num_rows - 1)

        # windows of successive rows are one run of keys, and so are the strata of their samples
        near, near_count = self._blocks_between(plan.window_start[first], plan.window_end[last])
        far = padded + plan.sample[first] * strata
        far, far_count = self._blocks_between(far, padded + (plan.sample[last] + 1) * strata)
        place = torch.arange(-(-num_keys // size), device=first.device)
        blocks = torch.where(place < near_count, near + place, far + place - near_count)

        counts = (near_count + far_count).flatten()
        padding = padded // size - len(first)
        return BlockMask.from_kv_blocks(
            F.pad(counts, (0, padding)).int()[None, None],
            # those beyond the counts are ignored
            F.pad(blocks.clamp(max=len(place) - 1), (0, 0, 0, padding)).int()[None, None],
            BLOCK_SIZE=size,
            mask_mod=_mask_of(plan, strata, padded),
            seq_lengths=(padded, num_keys),
        )

    def _blocks_between(self, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first block of keys start [Q] to end - 1, and how many they touch: [Q, 1]."""
        first = start // self.block_size
        count = (end - 1) // self.block_size - first + 1
        return first.unsqueeze(1), torch.where(end > start, count, 0).unsqueeze(1)

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
        num_rows, padded = len(q), mask.seq_lengths[0]
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, padded - num_rows)) for x in (q, k, v))
        modify: Callable[..., Tensor] | None = None
        if strata_k is not None:
            assert strata_v is not None  # both or none
            k = torch.cat([k, strata_k.flatten(0, 1)])
            v = torch.cat([v, strata_v.flatten(0, 1)])
            if strata_bias is not None:
                modify = _add_bias(strata_bias, padded)

        run: Callable = flex_attention
        if self.compiled:
            run = _compiled(q.device.type)
        heads = [x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)]  # [1, H, N, D]
        out = run(*heads, score_mod=modify, block_mask=mask)[0].transpose(0, 1)
        return out[:num_rows]

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


def _mask_of(plan: WindowPlan, strata: int, num_rows: int) -> Callable[..., Tensor]:
    """Return the function that decides whether a row, padded to num_rows, attends to a key."""
    padding = (0, num_rows - len(plan.sample))
    start, end = (F.pad(x, padding) for x in (plan.window_start, plan.window_end))
    sample = F.pad(plan.sample, padding, value=-1)
    # a tensor: a number would be compiled in, and every point cloud would compile anew
    rows = torch.full((), num_rows, device=start.device)

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
