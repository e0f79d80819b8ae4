"""The recurrence of a state-space model, in chunks and without a loop over them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scan_chunks(
    q: Tensor, k: Tensor, v: Tensor, steps: Tensor, decays: Tensor, is_first: Tensor
) -> Tensor:
    """Return y_i = q_i h_i with h_i = a_i h_(i-1) + d_i k_i v_i^T, for all chunks at once.

    Inside chunks it is products of matrices, and over their states a parallel prefix scan (Dao and
    Gu 2024, section 6).

    Args:
        q, k, v: [S, T, H, D].
        steps, decays: [S, T, H], d_i and the logarithm of a_i.
        is_first: [S], chunks that start from no state.
    Returns:
        [S, T, H, D].
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v * steps.unsqueeze(-1).to(v.dtype)))
    total = decays.transpose(1, 2).cumsum(-1)  # [S, H, T]
    between = total.unsqueeze(-1) - total.unsqueeze(-2)  # [S, H, T, T]
    is_later = torch.ones_like(between[0, 0], dtype=torch.bool).triu(1)
    weights = between.masked_fill(is_later, -torch.inf).exp().to(q.dtype)
    inside = (q @ k.transpose(-1, -2) * weights) @ v

    left = (total[..., -1:] - total).exp().unsqueeze(-1).to(k.dtype)  # until the chunk ends
    states = (k * left).transpose(-1, -2) @ v  # [S, H, D, D], that a chunk adds
    kept = total[..., -1].exp().masked_fill(is_first.unsqueeze(-1), 0)[..., None, None]
    states = _prefix(states, kept.to(states.dtype))
    before = F.pad(states[:-1], (0, 0) * 3 + (1, 0))
    before = before.masked_fill(is_first[:, None, None, None], 0)
    return (inside + q * total.exp().unsqueeze(-1).to(q.dtype) @ before).transpose(1, 2)


def _prefix(states: Tensor, kept: Tensor) -> Tensor:
    """Return s_i = kept_i s_(i-1) + states_i [S, ...], in log2(S) steps."""
    distance = 1
    while distance < len(states):
        ahead = (0, 0) * 3 + (distance, 0)
        states = states + kept * F.pad(states[:-distance], ahead)
        kept = kept * F.pad(kept[:-distance], ahead)
        distance *= 2
    return states
