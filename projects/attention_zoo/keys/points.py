"""Points between columns of voxels: interpolation, and attention to the points of a window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.attention_zoo.cells import Cells, find_cells
from projects.attention_zoo.groups import Groups, gather, scatter


def interpolate(points: Tensor, columns: Cells, label: Tensor) -> tuple[Tensor, Tensor]:
    """Interpolate between the four columns around every point, or those of them that exist.

    Args:
        points: [W, H, P, 2], in voxels; a column has its whole numbers.
        columns: at places (0, y, x).
        label: [W], among the columns.
    Returns:
        weights, which sum to one, or to zero where no column exists, and the columns, [W, H, P, 4]
        both.
    """
    lower = points.detach().floor()
    corner = lower.unsqueeze(-2) + lower.new_tensor([(0, 0), (0, 1), (1, 0), (1, 1)])
    weights = (1 - (points.unsqueeze(-2) - corner).abs()).prod(-1)

    label = label[:, None, None, None, None].expand(*corner.shape[:-1], 1)
    index = torch.cat([label, torch.zeros_like(label), corner.long()], -1)
    found = find_cells(columns, index.flatten(0, -2)).view(weights.shape)
    weights = weights.masked_fill(found < 0, 0)
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1), found.clamp(min=0)


def attend_points(
    q: Tensor, keys: Tensor, values: Tensor, exists: Tensor, window: Tensor, groups: Groups
) -> Tensor:
    """Let the rows of a window attend to its points.

    Args:
        q: [N, H, D].
        keys, values: [W, H, P, D].
        exists: [W, H, P], at least one per window and head.
        window: [N], of every row.
        groups: of the rows of every window.
    Returns:
        [N, H, D].
    """
    outs = []
    for bucket in groups.buckets:
        own = window[bucket.queries[:, 0]]  # [G]
        mask = exists[own].unsqueeze(2)
        queries = gather(q, bucket.queries)
        outs.append(F.scaled_dot_product_attention(queries, keys[own], values[own], mask))
    return scatter(outs, groups, q)
