"""Strata tokens from voxels: m per sample, one for each chunk of its window order."""

from __future__ import annotations

from torch import Tensor

from stratified3d.ops.segments import chunk_offsets, segment_reduce, segment_softmax


def pool_strata(
    feats: Tensor, positions: Tensor, scores: Tensor, batch_offsets: Tensor, num_strata: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Average every chunk with softmax weights from a learned score.

    Args:
        feats: [N, C], rows in window order, grouped by sample.
        positions: [N, 3] meters.
        scores: [N, 1], the learned score of each row.
        batch_offsets: [B + 1] integer.
        num_strata: m >= 1.
    Returns:
        tokens [B, m, C] in the dtype of feats, positions [B, m, 3] (plain mean of the chunk),
        present [B, m] bool; absent tokens are zero.
    """
    offsets = chunk_offsets(batch_offsets, num_strata)
    weights = segment_softmax(scores, offsets)  # [N, 1]
    tokens = segment_reduce(weights * feats, offsets, 'sum').to(feats.dtype)
    means = segment_reduce(positions.float(), offsets, 'mean')
    present = offsets.diff() > 0
    shape = (len(batch_offsets) - 1, num_strata)
    return tokens.view(*shape, -1), means.view(*shape, 3), present.view(shape)


def sample_strata(
    feats: Tensor,
    positions: Tensor,
    batch_offsets: Tensor,
    num_strata: int,
    draw: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take one row of every chunk: the first, or the one that a random number picks.

    Args:
        feats: [N, C], rows in window order, grouped by sample.
        positions: [N, 3] meters.
        batch_offsets: [B + 1] integer.
        num_strata: m >= 1.
        draw: [B, m] uniform in [0, 1), fp64 where a chunk may be large; picks a row of each chunk.
            None takes the first row of each chunk.
    Returns:
        tokens [B, m, C], positions [B, m, 3] fp32, present [B, m] bool; absent tokens are zero.
    """
    offsets = chunk_offsets(batch_offsets, num_strata)
    size = offsets.diff()  # [B m]
    present = size > 0
    row = offsets[:-1]
    if draw is not None:
        row = row + (draw.flatten() * size).long()

    if len(feats):
        # an absent token may point behind the last row
        row = row.clamp(max=len(feats) - 1)
        absent = ~present.unsqueeze(1)
        tokens = feats[row].masked_fill(absent, 0)
        places = positions[row].masked_fill(absent, 0)
    else:
        tokens = feats.new_zeros(len(row), feats.shape[1])
        places = positions.new_zeros(len(row), 3)
    shape = (len(batch_offsets) - 1, num_strata)
    tokens = tokens.view(*shape, feats.shape[1])
    places = places.float().view(*shape, 3)
    return tokens, places, present.view(shape)
