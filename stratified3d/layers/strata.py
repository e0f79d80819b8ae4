"""Strata tokens as they travel through the blocks of a stage, and how they are created."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stratified3d.ops import (
    WindowPlan,
    farthest_strata,
    pool_strata,
    sample_strata,
    top_strata,
)

SELECTIONS = ('pool', 'random', 'first', 'farthest', 'topk', 'learned')
# of 'topk'
_MAX_PER_WINDOW = 2
_OBJECTNESS_WEIGHT = 1.0


class VoxelScores(NamedTuple):
    """Objectness of the voxels that a selection chose its tokens from, for its training loss.

    Attributes:
        logits: [N], differentiable.
        positions: [N, 3] meters.
        sample: [N] integer, the sample of each voxel.
        weight: of the loss.
    """

    logits: Tensor
    positions: Tensor
    sample: Tensor
    weight: float


class Strata(NamedTuple):
    """The M strata tokens of each of B samples.

    Attributes:
        feats: [B, M, C].
        positions: [B, M, 3] meters.
        present: [B, M] bool; False for surplus tokens of a sample with fewer than M voxels.
        scores: of all selections so far that learn where objects are ('topk').
    """

    feats: Tensor
    positions: Tensor
    present: Tensor
    scores: tuple[VoxelScores, ...] = ()


class StrataSelection(nn.Module):
    """Create tokens: one per chunk of window order, one at each of m chosen voxels, or learned.

    Args:
        channels: C.
        num_strata: m >= 1 tokens per sample.
        selection: 'pool' averages the chunk with softmax weights from a learned score; 'first'
            takes the first voxel of the chunk; 'random' draws one with torch's global generator in
            training and takes the first in evaluation. 'farthest' chooses voxels of the whole
            sample by farthest-point sampling; 'topk' those of highest objectness, a learned linear
            score that the detector teaches whether a voxel lies in a box. 'learned' tokens are
            parameters, the same for all samples, at the sensor: the inducing points of Set
            Transformer (Lee et al. 2019, section 3.1).
        max_per_window: most tokens of one window ('topk' only; None is 2).
        objectness_weight: of the score's loss ('topk' only; None is 1).
    Raises:
        ValueError: unknown selection, m < 1, a setting that is out of bounds or without effect.
    """

    def __init__(
        self,
        channels: int,
        num_strata: int,
        selection: str = 'pool',
        max_per_window: int | None = None,
        objectness_weight: float | None = None,
    ):
        super().__init__()
        if selection not in SELECTIONS:
            raise ValueError(f'selection is one of {", ".join(SELECTIONS)}, not {selection!r}')
        if num_strata < 1:
            raise ValueError(f'num_strata is at least 1 here, not {num_strata}')
        _check_topk(selection, max_per_window, objectness_weight)
        self.num_strata = num_strata
        self.selection = selection
        self.max_per_window = max_per_window or _MAX_PER_WINDOW
        self.objectness_weight = objectness_weight or _OBJECTNESS_WEIGHT
        self.tokens = None
        if selection == 'learned':
            # as large as what they collect, so that they stay different from each other
            self.tokens = nn.Parameter(torch.randn(num_strata, channels))
        self.score = None
        if selection in ('pool', 'topk'):
            # pool: no bias, because it would cancel in the softmax
            self.score = nn.Linear(channels, 1, bias=selection == 'topk')

    def forward(self, feats: Tensor, positions: Tensor, plan: WindowPlan) -> Strata:
        """Return the tokens of rows in window order.

        Args:
            feats: [N, C].
            positions: [N, 3] meters.
            plan: of these rows.
        """
        batch_offsets = plan.batch_offsets
        if self.tokens is not None:
            present = (batch_offsets.diff() > 0).unsqueeze(1).expand(-1, self.num_strata)
            tokens = self.tokens.to(feats.dtype).expand(len(present), -1, -1)
            return Strata(tokens, positions.new_zeros(*present.shape, 3), present)
        if self.selection == 'farthest':
            return Strata(*farthest_strata(feats, positions, batch_offsets, self.num_strata))
        if self.score is not None:
            if self.selection == 'topk':
                # not in autocast's dtype: bf16 scores tie, and of equal ones the first row is taken
                with torch.autocast(feats.device.type, enabled=False):
                    score = self.score(feats.to(self.score.weight.dtype))
                return self._choose_objects(feats, positions, score.squeeze(1), plan)
            score = self.score(feats)
            return Strata(*pool_strata(feats, positions, score, batch_offsets, self.num_strata))

        draw = None
        if self.selection == 'random' and self.training:
            # the global generator: activation checkpointing restores it before it recomputes
            shape = (len(batch_offsets) - 1, self.num_strata)
            draw = torch.rand(shape, device=feats.device, dtype=torch.float64)
        return Strata(*sample_strata(feats, positions, batch_offsets, self.num_strata, draw))

    def _choose_objects(
        self, feats: Tensor, positions: Tensor, logits: Tensor, plan: WindowPlan
    ) -> Strata:
        """Tokens at the voxels of highest logits [N], which go along for the loss."""
        tokens, places, present = top_strata(
            feats,
            positions,
            logits,
            plan.batch_offsets,
            plan.window_start,
            self.num_strata,
            self.max_per_window,
        )
        scores = VoxelScores(logits, positions, plan.sample, self.objectness_weight)
        return Strata(tokens, places, present, (scores,))

    def extra_repr(self) -> str:
        return f'num_strata={self.num_strata}, selection={self.selection!r}'


def _check_topk(
    selection: str, max_per_window: int | None, objectness_weight: float | None
) -> None:
    """Raise ValueError for settings of 'topk' that are out of bounds, or given beside others."""
    given = dict(max_per_window=max_per_window, objectness_weight=objectness_weight)
    for name, value in given.items():
        if value is not None and selection != 'topk':
            raise ValueError(
                f"{name}={value} has no effect with selection={selection!r}: it belongs to 'topk'"
            )
    if max_per_window is not None and max_per_window < 1:
        raise ValueError(f'max_per_window is at least 1, not {max_per_window}')
    if objectness_weight is not None and not 0 < objectness_weight < float('inf'):
        raise ValueError(
            f'objectness_weight is above 0, not {objectness_weight}: without its loss the score '
            'would stay random'
        )
