"""The recurrence of a state-space model, in chunks and without a loop over them.

y_i = q_i h_i with h_i = a_i h_(i-1) + d_i k_i v_i^T. Inside chunks it is products of matrices, and
over their states a parallel prefix scan (Dao and Gu 2024, section 6).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Inputs(NamedTuple):
    """What the recurrence runs on, in S chunks of T rows.

    Attributes:
        q, k, v: [S, T, H, D].
        steps, decays: [S, T, H], d_i and the logarithm of a_i.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    steps: Tensor
    decays: Tensor

    def flip(self) -> Inputs:
        """Return the rows in the opposite order."""
        return Inputs(*(x.flip(0, 1) for x in self))


def scan_chunks(inputs: Inputs, is_first: Tensor) -> Tensor:
    """Return y [S, T, H, D]; is_first [S]: chunks that start from no state."""
    q, k = inputs.q.transpose(1, 2), inputs.k.transpose(1, 2)
    scaled = inputs.v * inputs.steps.unsqueeze(-1).to(inputs.v.dtype)
    v = scaled.transpose(1, 2)
    total = inputs.decays.transpose(1, 2).cumsum(-1)  # [S, H, T]

    inside = (q @ k.transpose(-1, -2) * _weights(total).to(q.dtype)) @ v
    before = _states_before(k, v, total, is_first)
    carried = q * total.exp().unsqueeze(-1).to(q.dtype) @ before
    return (inside + carried).transpose(1, 2)


def _weights(total: Tensor) -> Tensor:
    """Return what row i keeps of row j of its chunk, [S, H, T, T]."""
    between = total.unsqueeze(-1) - total.unsqueeze(-2)
    is_later = torch.ones_like(between[0, 0], dtype=torch.bool).triu(1)
    return between.masked_fill(is_later, -torch.inf).exp()


def _states_before(k: Tensor, v: Tensor, total: Tensor, is_first: Tensor) -> Tensor:
    """Return the state [S, H, D, D] that every chunk starts from."""
    starts_anew = is_first[:, None, None, None]
    left = (total[..., -1:] - total).exp().unsqueeze(-1)  # until the chunk ends
    added = (k * left.to(k.dtype)).transpose(-1, -2) @ v
    kept = total[..., -1].exp()[..., None, None].masked_fill(starts_anew, 0)

    after = _prefix(added, kept.to(added.dtype))
    return _later(after, 1).masked_fill(starts_anew, 0)


def _prefix(states: Tensor, kept: Tensor) -> Tensor:
    """Return s_i = kept_i s_(i-1) + states_i [S, ...], in log2(S) steps."""
    distance = 1
    while distance < len(states):
        states = states + kept * _later(states, distance)
        kept = kept * _later(kept, distance)
        distance *= 2
    return states


def _later(x: Tensor, distance: int) -> Tensor:
    """Move x [S, H, D, D] along the chunks, zeros first."""
    return F.pad(x[:-distance], (0, 0, 0, 0, 0, 0, distance, 0))
