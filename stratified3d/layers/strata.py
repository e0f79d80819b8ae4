"""Strata tokens as they travel through the blocks of a stage, and how they are created."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stratified3d.ops import pool_strata, sample_strata

SELECTIONS = ('pool', 'random', 'first')


class Strata(NamedTuple):
    """The M strata tokens of each of B samples.

    Attributes:
        feats: [B, M, C].
        positions: [B, M, 3] meters.
        present: [B, M] bool; False for surplus tokens of a sample with fewer than M voxels.
    """

    feats: Tensor
    positions: Tensor
    present: Tensor


class StrataSelection(nn.Module):
    """Create one token per chunk of window order.

    Args:
        channels: C.
        num_strata: m >= 1 tokens per sample.
        selection: 'pool' averages the chunk with softmax weights from a learned score; 'first'
            takes the first voxel of the chunk; 'random' draws one with torch's global generator in
            training and takes the first in evaluation.
    Raises:
        ValueError: unknown selection, m < 1.
    """

    def __init__(self, channels: int, num_strata: int, selection: str = 'pool'):
        super().__init__()
        if selection not in SELECTIONS:
            raise ValueError(f'selection is one of {", ".join(SELECTIONS)}, not {selection!r}')
        if num_strata < 1:
            raise ValueError(f'num_strata is at least 1 here, not {num_strata}')
        self.num_strata = num_strata
        self.selection = selection
        self.score = None
        if selection == 'pool':
            # no bias: it would cancel in the softmax
            self.score = nn.Linear(channels, 1, bias=False)

    def forward(self, feats: Tensor, positions: Tensor, batch_offsets: Tensor) -> Strata:
        """Return the tokens of rows in window order.

        Args:
            feats: [N, C].
            positions: [N, 3] meters.
            batch_offsets: [B + 1], see `WindowPlan`.
        """
        if self.score is not None:
            score = self.score(feats)
            return Strata(*pool_strata(feats, positions, score, batch_offsets, self.num_strata))

        draw = None
        if self.selection == 'random' and self.training:
            # the global generator: activation checkpointing restores it before it recomputes
            shape = (len(batch_offsets) - 1, self.num_strata)
            draw = torch.rand(shape, device=feats.device, dtype=torch.float64)
        return Strata(*sample_strata(feats, positions, batch_offsets, self.num_strata, draw))

    def extra_repr(self) -> str:
        return f'num_strata={self.num_strata}, selection={self.selection!r}'
