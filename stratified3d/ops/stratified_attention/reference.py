"""The three attentions as their equations say, window by window; never optimized."""

from __future__ import annotations

import torch
from torch import Tensor

from stratified3d.ops.windows import WindowPlan


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v; rows without a key give zeros.

    q: [n, H, D]; k, v: [j, H, D]; bias: [j, H].
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    logits = torch.einsum('ihd,jhd->ijh', q.to(wide), k.to(wide)) * scale  # [n, j, H]
    if bias is not None:
        logits = logits + bias.to(wide)
    # a row whose logits are all -inf has no key: its logits become 0 for the softmax and its
    # weights 0 after it
    without_key = (logits == -torch.inf).all(1, keepdim=True)
    weights = logits.masked_fill(without_key, 0).softmax(1).masked_fill(without_key, 0)
    return torch.einsum('ijh,jhd->ihd', weights, v.to(wide)).to(q.dtype)


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
    is_first = torch.arange(len(q), device=q.device) == plan.window_start
    windows = torch.stack([plan.window_start, plan.window_end, plan.sample], 1)[is_first]
    out = [q[:0]]
    for start, end, b in windows.tolist():
        keys = k[start:end]
        values = v[start:end]
        bias = None
        if strata_k is not None and strata_v is not None:
            keys = torch.cat([keys, strata_k[b]])
            values = torch.cat([values, strata_v[b]])
            if strata_bias is not None:
                window_bias = strata_bias.new_zeros(end - start, q.shape[1])
                bias = torch.cat([window_bias, strata_bias[b]])
        out.append(_attend(q[start:end], keys, values, bias, scale))
    return torch.cat(out)


def collect_strata(q: Tensor, k: Tensor, v: Tensor, batch_offsets: Tensor, scale: float) -> Tensor:
    offsets = batch_offsets.tolist()
    out = []
    for b, (start, end) in enumerate(zip(offsets, offsets[1:])):
        out.append(_attend(q[b], k[start:end], v[start:end], None, scale))
    return torch.stack(out)


def read_strata(
    q: Tensor,
    strata_k: Tensor,
    strata_v: Tensor,
    batch_offsets: Tensor,
    strata_bias: Tensor | None,
    scale: float,
) -> Tensor:
    offsets = batch_offsets.tolist()
    out = []
    for b, (start, end) in enumerate(zip(offsets, offsets[1:])):
        bias = None if strata_bias is None else strata_bias[b]
        out.append(_attend(q[start:end], strata_k[b], strata_v[b], bias, scale))
    return torch.cat(out)
