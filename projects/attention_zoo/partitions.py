"""Partitions of the rows: those with equal labels attend to each other, without padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.window_grid import WindowGrid
from stratified3d.ops import WindowPlan, permute_rows, stratified_attention


def fold_columns(*columns: Tensor) -> Tensor:
    """Return one key [N] that is equal, and sorts, as the integer columns [N] do one by one.

    Raises:
        ValueError: the columns have so many values that the key does not fit into 63 bits.
    """
    key = columns[0].long()
    if not len(key):
        return key

    sizes = 1.0
    key = key - key.min()
    for column in columns[1:]:
        column = column.long() - column.min()
        size = int(column.max()) + 1
        sizes *= size
        key = key * size + column
    if sizes * (int(columns[0].max()) + 1) >= 2**62:
        raise ValueError('the coordinates span too many cells: use a smaller range')
    return key


def plan_partition(grid: WindowGrid, *labels: Tensor) -> WindowPlan:
    """Plan attention among the rows of a sample whose labels [N] are equal."""
    key, order = fold_columns(grid.plan.sample, *labels).sort(stable=True)
    rows = torch.arange(len(order), device=order.device)
    return WindowPlan(
        order=order,
        inverse=torch.empty_like(order).scatter_(0, order, rows),
        window_start=torch.searchsorted(key, key, out_int32=True),
        window_end=torch.searchsorted(key, key, right=True, out_int32=True),
        sample=grid.plan.sample,  # samples stay where they are
        batch_offsets=grid.plan.batch_offsets,
    )


def attend_partition(q: Tensor, k: Tensor, v: Tensor, plan: WindowPlan) -> Tensor:
    """Attend inside the parts of a plan with q, k, v [N, H, D] in the grid's order."""
    queries, keys, values = (permute_rows(x, plan.order, plan.inverse) for x in (q, k, v))
    out = stratified_attention(queries, keys, values, plan)
    return permute_rows(out, plan.inverse, plan.order)


def check_heads(mixer: Baseline, shares: int, hint: str = '') -> None:
    """Raise ValueError where a mixer has fewer heads than what shares them."""
    if mixer.num_heads < shares:
        raise ValueError(
            f'{type(mixer).__name__} divides its heads into {shares} shares: num_heads is {shares} '
            f'or more, not {mixer.num_heads}{hint}'
        )


class PartitionAttention(Baseline):
    """Attention inside the parts of one or more partitions; partitions share the heads evenly.

    The parts run through the kernels of this package.
    """

    def partitions(self, grid: WindowGrid) -> Sequence[Sequence[Tensor]]:
        """Return the labels [N] of every partition."""
        raise NotImplementedError

    def prepare(self, grid: WindowGrid) -> list[WindowPlan]:
        return [plan_partition(grid, *labels) for labels in self.partitions(grid)]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        plans = self.prepared(grid)
        shares = [x.tensor_split(len(plans), 1) for x in (q, k, v)]
        outs = [attend_partition(*share) for share in zip(*shares, plans)]
        return torch.cat(outs, 1)
