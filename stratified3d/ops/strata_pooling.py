"""Strata tokens from voxels, m per sample: one for each chunk of window order, or chosen voxels."""

from __future__ import annotations

import torch
from torch import Tensor

from stratified3d.ops.segments import (
    chunk_offsets,
    segment_ids,
    segment_reduce,
    segment_softmax,
)


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

    shape = (len(batch_offsets) - 1, num_strata)
    return _take_rows(feats, positions, row.view(shape), present.view(shape))


def top_strata(
    feats: Tensor,
    positions: Tensor,
    scores: Tensor,
    batch_offsets: Tensor,
    window_start: Tensor,
    num_strata: int,
    max_per_window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the rows of highest score, at most so many of each window.

    Among equal scores the first row wins. The choice itself has no gradient.

    Args:
        feats: [N, C], rows in window order, grouped by sample.
        positions: [N, 3] meters.
        scores: [N].
        batch_offsets: [B + 1] integer.
        window_start: [N] integer, the first row of each row's window, see `WindowPlan`.
        num_strata: m >= 1.
        max_per_window: at least 1.
    Returns:
        tokens [B, m, C] sorted by descending score, positions [B, m, 3] fp32, present [B, m] bool;
        absent tokens, of samples with too few windows or voxels, are zero.
    """
    scores = scores.detach()
    place = torch.arange(len(scores), device=scores.device)
    window_start = window_start.long()
    order = _best_first(scores, window_start)
    rank = place - window_start[order]  # a window is a range of rows, before and after sorting
    is_candidate = torch.empty_like(order, dtype=torch.bool)
    is_candidate[order] = rank < max_per_window

    start = batch_offsets[:-1].long()
    sample = segment_ids(batch_offsets, len(scores))
    order = _best_first(scores.masked_fill(~is_candidate, -torch.inf), start[sample])
    count = torch.zeros_like(start).index_add(0, sample, is_candidate.long())

    token = torch.arange(num_strata, device=start.device)
    present = token < count.unsqueeze(1)  # [B, m]
    place = start.unsqueeze(1) + token
    row = order[place.clamp(max=len(order) - 1)] if len(order) else place
    return _take_rows(feats, positions, row, present)


def _best_first(scores: Tensor, group_start: Tensor) -> Tensor:
    """[N] rows sorted by the start of their group, then by descending score."""
    order = scores.argsort(descending=True, stable=True)
    return order[group_start[order].argsort(stable=True)]


def farthest_strata(
    feats: Tensor, positions: Tensor, batch_offsets: Tensor, num_strata: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Take rows by farthest-point sampling (Eldar et al. 1997; PointNet++, Qi et al. 2017).

    The first row of a sample, then m - 1 times the row farthest from those taken. O(m N) time.

    Args:
        feats: [N, C], rows grouped by sample.
        positions: [N, 3] meters.
        batch_offsets: [B + 1] integer.
        num_strata: m >= 1.
    Returns:
        tokens [B, m, C], positions [B, m, 3] fp32, present [B, m] bool; absent tokens are zero.
    """
    token = torch.arange(num_strata, device=batch_offsets.device)
    present = token < batch_offsets.diff().unsqueeze(1)
    row = _farthest_rows(positions.detach(), batch_offsets, num_strata)
    return _take_rows(feats, positions, row, present)


def _farthest_rows(positions: Tensor, batch_offsets: Tensor, num_strata: int) -> Tensor:
    """[B, m] rows; those of absent tokens lie anywhere."""
    count = len(positions)
    row = batch_offsets[:-1].long().clamp(max=max(count - 1, 0))
    if not count:
        return row.unsqueeze(1).expand(-1, num_strata)

    sample = segment_ids(batch_offsets, count)
    place = torch.arange(count, device=row.device)
    nearest = positions.new_full((count,), torch.inf)  # squared distance to the rows taken
    rows = []
    for _ in range(num_strata):
        rows.append(row)
        distance = (positions - positions[row][sample]).square().sum(1)
        nearest = torch.minimum(nearest, distance)
        # the first row of each sample that attains the sample's maximum
        farthest = nearest.new_zeros(len(row)).scatter_reduce(0, sample, nearest, 'amax')
        attains = nearest == farthest[sample]
        found = place.masked_fill(~attains, count)
        row = row.scatter_reduce(0, sample, found, 'amin', include_self=False)
    return torch.stack(rows, 1)


def _take_rows(
    feats: Tensor, positions: Tensor, row: Tensor, present: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, positions and presence from row [B, m]; absent tokens are zero."""
    if len(feats):
        # an absent token may point behind the last row
        row = row.clamp(max=len(feats) - 1)
        absent = ~present.unsqueeze(-1)
        tokens = feats[row].masked_fill(absent, 0)
        places = positions[row].masked_fill(absent, 0)
    else:
        tokens = feats.new_zeros(*row.shape, feats.shape[1])
        places = positions.new_zeros(*row.shape, 3)
    return tokens, places.float(), present
