"""What the strata tokens of one block do with one cloud: the weights that attention otherwise keeps
to itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stratified3d.layers.attention import StratifiedAttention
from stratified3d.ops.stratified_attention import reference


class StrataRecord(NamedTuple):
    """Attention weights of the strata tokens, means over the heads; absent tokens are left out.

    Attributes:
        voxels: [N, 3] meters.
        tokens: [M, 3] meters.
        collected: [M, N], how the attention of a token is spread over the voxels; rows sum to 1.
        read: [N, M], the part of a voxel's attention that goes to each token. The rest goes to
            its window (joint) and to tokens of earlier frames (memory), or there is no rest.
        effective_voxels: [M], the number of voxels that a token collects from: exponential of the
            entropy of its weights, from 1 (one voxel) to N (the plain mean of all). Taken head by
            head, since heads may collect from different voxels.
    """

    voxels: np.ndarray
    tokens: np.ndarray
    collected: np.ndarray
    read: np.ndarray
    effective_voxels: np.ndarray


class _Recorder:
    """An attention backend: the reference, which also keeps what it weighed."""

    def collect_strata(
        self, q: Tensor, k: Tensor, v: Tensor, batch_offsets: Tensor, scale: float
    ) -> Tensor:
        weights = (torch.einsum('mhd,nhd->hmn', q[0], k) * scale).softmax(-1)
        self.collected = weights.mean(0)
        entropy = torch.special.entr(weights).sum(-1)  # [H, M]
        self.effective_voxels = entropy.exp().mean(0)
        return reference.collect_strata(q, k, v, batch_offsets, scale)

    def stratified_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan,
        strata_k: Tensor | None,
        strata_v: Tensor | None,
        strata_bias: Tensor | None,
        scale: float,
    ) -> Tensor:
        if strata_k is not None and strata_v is not None:
            self.read = _weights(
                strata_v,
                lambda values: reference.stratified_attention(
                    q, k, torch.zeros_like(v), plan, strata_k, values, strata_bias, scale
                ),
            )
        return reference.stratified_attention(q, k, v, plan, strata_k, strata_v, strata_bias, scale)

    def read_strata(
        self,
        q: Tensor,
        strata_k: Tensor,
        strata_v: Tensor,
        batch_offsets: Tensor,
        strata_bias: Tensor | None,
        scale: float,
    ) -> Tensor:
        self.read = _weights(
            strata_v,
            lambda values: reference.read_strata(
                q, strata_k, values, batch_offsets, strata_bias, scale
            ),
        )
        return reference.read_strata(q, strata_k, strata_v, batch_offsets, strata_bias, scale)


def _weights(strata_v: Tensor, attend) -> Tensor:
    """Attention is linear in the values: with unit vectors for the tokens' values, the result is
    their weights."""
    _, num, heads, width = strata_v.shape
    parts = []
    for i in range(0, num, width):
        values = torch.eye(num, device=strata_v.device, dtype=strata_v.dtype)[:, i : i + width]
        values = nn.functional.pad(values, (0, width - values.shape[1]))[None, :, None].expand(
            1, num, heads, width
        )
        parts.append(attend(values).mean(1))  # [N, D]
    return torch.cat(parts, 1)[:, :num]


@contextmanager
def record_strata(
    mixer: StratifiedAttention, past: list[np.ndarray] | None = None
) -> Iterator[list[StrataRecord]]:
    """Within the context, every forward pass of the mixer over one sample adds a StrataRecord to
    the list.

    Meanwhile the mixer runs on a backend that is the reference and keeps its weights.

    Args:
        mixer: of a block that has strata.
        past: receives, for each record, the part [N, P] of a voxel's attention that goes to each
            token of earlier frames: m of the newest frame, then m of the one before, and so on;
            0 for absent tokens. P is 0 where nothing is remembered.
    Raises:
        ValueError: the mixer has no strata, or runs over another number of samples than one.
    """
    if not getattr(mixer, 'num_strata', 0):
        raise ValueError(
            'this block has no strata tokens (num_strata=0, or another mixer): nothing to show'
        )
    records: list[StrataRecord] = []
    recorder, before = _Recorder(), mixer.backend

    def keep(module: nn.Module, inputs: tuple, outputs: tuple) -> None:
        grid, strata = inputs[1], outputs[1]
        if len(strata.feats) != 1:
            raise ValueError(
                f'strata are recorded for one cloud at a time, not {len(strata.feats)}'
            )
        present = strata.present[0]
        read, read_past = recorder.read.tensor_split([len(present)], 1)
        parts = (
            grid.positions,
            strata.positions[0][present],
            recorder.collected[present],
            read[:, present],
            recorder.effective_voxels[present],
        )
        records.append(StrataRecord(*(part.detach().cpu().numpy() for part in parts)))
        if past is not None:
            past.append(read_past.detach().cpu().numpy())

    handle = mixer.register_forward_hook(keep)
    mixer.backend = recorder
    try:
        yield records
    finally:
        handle.remove()
        mixer.backend = before
