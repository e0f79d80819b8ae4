"""The equation of every mixer of the zoo over all pairs of rows: slow on purpose, for tests.

Equations share with the mixers only settings and parameters; they compute windows, sets and cells
in their own way.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from projects.attention_zoo.equations import keys, summaries
from projects.attention_zoo.equations import windows as parts
from projects.attention_zoo.equations.dense import attend, same, windows
from stratified3d.layers.attention import StratifiedAttention
from stratified3d.layers.window_grid import WindowGrid

EQUATIONS = {**parts.EQUATIONS, **keys.EQUATIONS, **summaries.EQUATIONS}


def equation(
    baseline: nn.Module, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid, *strata: Tensor
) -> Tensor:
    """Compute `baseline.attend` by its equation.

    Args:
        q, k, v: [N, H, D] in the grid's window order.
        strata: strata_k, strata_v [B, M, H, D] and strata_bias [B, M, H], or nothing.
    Returns:
        [N, H, D].
    """
    if isinstance(baseline, StratifiedAttention):
        if not strata:
            return attend(q, k, v, same(windows(grid)))
        return _attend_with_strata(q, k, v, grid, *strata)
    return EQUATIONS[type(baseline)](baseline, q, k, v, grid)


def _attend_with_strata(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: WindowGrid,
    strata_k: Tensor,
    strata_v: Tensor,
    strata_bias: Tensor,
) -> Tensor:
    """One softmax over the window and the strata tokens of the sample."""
    sample = grid.coords[:, 0]
    batch, strata = strata_k.shape[:2]
    samples = torch.arange(batch, device=q.device)
    owner = samples.repeat_interleave(strata)
    far = sample[:, None] == owner  # [N, B M]
    seen = torch.cat([same(windows(grid)), far], 1)

    keys = torch.cat([k, strata_k.flatten(0, 1)])
    values = torch.cat([v, strata_v.flatten(0, 1)])
    no_bias = strata_bias.new_zeros(len(q), q.shape[1])
    bias = torch.cat([no_bias, strata_bias.flatten(0, 1)])  # [N + B M, H]
    return _attend_with_bias(q, keys, values, bias, seen)


def _attend_with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, seen: Tensor) -> Tensor:
    """Softmax attention over the keys that are seen [N, K]; bias [K, H] of every key."""
    logits = torch.einsum('ihd,jhd->ijh', q, k) * q.shape[-1] ** -0.5 + bias
    weights = logits.masked_fill(~seen[..., None], -torch.inf).softmax(1)
    return torch.einsum('ijh,jhd->ihd', weights.to(v.dtype), v)
