"""The strata tokens as they travel through the blocks of a stage, and the module that chooses
them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stratified3d.ops import pool_strata, sample_strata

SELECTIONS = ('pool', 'random', 'first')


class Strata(NamedTuple):
    """feats [B, M, C]; positions [B, M, 3] meters; present [B, M] bool, False for tokens of a
    sample with too few voxels."""

    feats: Tensor
    positions: Tensor
    present: Tensor


class StrataSelection(nn.Module):
    """Choose one token per chunk of window order.

    Args:
        channels: C.
        num_strata: m >= 1 tokens a sample.
        selection: 'pool' averages the chunk with softmax weights from a learned score; 'random'
        draws one voxel of
            the chunk with torch's global generator (in training; in evaluation it takes the first,
            as 'first' always does).
    Raises:
        ValueError: unknown selection, m < 1.
    """

    def __init__(self, channels: int, num_strata: int, selection: str = 'pool'):
        super().__init__()
        if selection not in SELECTIONS:
            raise ValueError(f'selection is one of {", ".join(SELECTIONS)}, not {selection!r}')
        if num_strata < 1:
            raise ValueError(f'num_strata is at least 1 here, not {num_strata}')
        self.num_strata, self.selection = num_strata, selection
        # no bias: it would cancel in the softmax
        self.score = nn.Linear(channels, 1, bias=False) if selection == 'pool' else None

    def forward(self, feats: Tensor, positions: Tensor, batch_offsets: Tensor) -> Strata:
        """feats [N, C], positions [N, 3] meters, both in window order; batch_offsets [B + 1] ->
        Strata."""
        if self.selection == 'pool':
            return Strata(
                *pool_strata(feats, positions, self.score(feats), batch_offsets, self.num_strata)
            )
        draw = None
        if self.selection == 'random' and self.training:
            # the global generator, because activation checkpointing restores it before it
            # recomputes
            draw = torch.rand(
                len(batch_offsets) - 1, self.num_strata, device=feats.device, dtype=torch.float64
            )
        return Strata(*sample_strata(feats, positions, batch_offsets, self.num_strata, draw))

    def extra_repr(self) -> str:
        return f'num_strata={self.num_strata}, selection={self.selection!r}'
