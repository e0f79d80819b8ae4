"""Strata tokens of earlier frames: keys and values that voxels of a later frame also attend to."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

# seconds; the fastest tells sweeps 0.05 s apart, the slowest frames of several seconds
_WAVELENGTHS = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)


class PastTokens(NamedTuple):
    """P tokens of earlier frames of each of B samples, as one block left them.

    Attributes:
        feats: [B, P, C].
        positions: [B, P, 3] meters, in the frame of the present voxels.
        present: [B, P] bool; False for tokens that a frame did not have.
        ages: [B, P] seconds.
    """

    feats: Tensor
    positions: Tensor
    present: Tensor
    ages: Tensor


class TokenMemory(nn.Module):
    """What a mixer adds to remembered tokens: an embedding of their age, and their weight.

    The embedding is linear in sin(w t) and 1 - cos(w t) at seven wavelengths from 0.2 to 12.8 s, so
    that it is 0 at age 0; it starts at 0 for all ages. The learned `offset` is added to the logits
    of remembered tokens, on top of the bias that tokens of the present frame have. It starts at
    offset - log(frames): all remembered tokens together then weigh e^offset times as much as those
    of the present frame.

    Args:
        channels: C.
        num_heads: H.
        frames: K earlier frames at most, at least 1.
        offset: see above.
    Raises:
        ValueError: frames is not a number from 1 on.
    """

    def __init__(self, channels: int, num_heads: int, frames: int, offset: float = 0.0):
        super().__init__()
        if not (isinstance(frames, int) and frames > 0):
            raise ValueError(f'memory: frames is 0 (off), 1 or more, not {frames!r}')
        self.frames = frames
        self.age = nn.Linear(2 * len(_WAVELENGTHS), channels, bias=False)
        nn.init.zeros_(self.age.weight)
        self.offset = nn.Parameter(torch.full((num_heads,), float(offset) - math.log(frames)))

    def forward(self, past: PastTokens) -> Tensor:
        """Return the features [B, P, C] of the tokens, dated."""
        rates = past.ages.new_tensor(_WAVELENGTHS).reciprocal() * (2 * math.pi)
        angle = past.ages.unsqueeze(-1) * rates  # [B, P, 7]
        waves = torch.cat([angle.sin(), 1 - angle.cos()], -1)
        return past.feats + self.age(waves).to(past.feats.dtype)

    def extra_repr(self) -> str:
        return f'frames={self.frames}'


def build_memory(
    settings: dict | None, channels: int, num_heads: int, num_strata: int
) -> TokenMemory | None:
    """Return the memory of a mixer's setting `memory`; None for None and for no frames.

    Args:
        settings: arguments of `TokenMemory`.
        channels, num_heads, num_strata: of the mixer.
    Raises:
        ValueError: memory without tokens, and what `TokenMemory` refuses.
    """
    if settings is None or settings.get('frames') == 0:
        return None
    if not num_strata:
        raise ValueError('memory is of strata tokens, and num_strata is 0: set one of the two')
    return TokenMemory(channels, num_heads, **settings)
