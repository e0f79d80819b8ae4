"""Voxels in window order, cut into groups of one size across windows: FlatFormer."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.attention_zoo.groups import gather, number_members, offsets_of
from projects.attention_zoo.mixer import Baseline
from projects.attention_zoo.orders import AXIS_OF_BLOCK, sort_along_snake
from stratified3d.layers.window_grid import WindowGrid
from stratified3d.ops import WindowPlan


class EqualGroups(NamedTuple):
    """G groups of T rows.

    Attributes:
        rows: [G, T].
        place: [N], the place among the G T flattened places where a row's output is computed.
        valid: [G, T] bool, False where a place is padding; None where nothing is padded.
    """

    rows: Tensor
    place: Tensor
    valid: Tensor | None

    @property
    def padding(self) -> float:
        """Return the share of the logits of padded keys and of queries that are computed twice."""
        num_groups, size = self.rows.shape
        queries = (self.place // size).bincount(minlength=num_groups).double()  # [G]
        keys = size if self.valid is None else self.valid.sum(1)
        return 1 - float((queries * keys).sum()) / max(1, self.rows.numel() * size)


class EqualGroupAttention(Baseline):
    """Attention inside groups of `group_size` voxels of one sample, whatever their windows are.

    Voxels are sorted along a snake through the windows, and every T successive ones form a group.
    The rest of a sample forms a group with the rows before it; a sample of fewer than T voxels is
    one padded group. Blocks follow rows of windows along x and y in turn.

    FlatFormer (Liu et al. 2023, section 3.1).
    """

    defaults = dict(group_size=144)
    variants = (dict(group_size=72), dict(group_size=288))
    group_size: int

    def build(self) -> None:
        self.check_at_least(1, 'group_size')
        self.phase = AXIS_OF_BLOCK[self.block % 4]

    def prepare(self, grid: WindowGrid) -> EqualGroups:
        order = sort_along_snake(grid, axis=self.phase)  # [N]
        offsets = grid.plan.batch_offsets.long()
        count = offsets.diff()  # [B]
        groups = -(-count // self.group_size)  # [B]
        sample, number = number_members(groups)  # [G]

        # the last group of a sample reaches back so that it is full
        latest = (count[sample] - self.group_size).clamp(min=0)
        start = torch.minimum(number * self.group_size, latest)  # [G], counted in the sample

        within, valid = self._fill_groups(start, count[sample])
        rows = order[offsets[sample, None] + within]
        output = torch.empty_like(order)
        output[order] = self._output_places(grid.plan, groups, start)
        return EqualGroups(rows, output, None if bool(valid.all()) else valid)

    def _fill_groups(self, start: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Return the row at every place, counted in its sample, and whether it is valid: [G, T].

        Args:
            start: [G], first row of every group, counted in its sample.
            count: [G], rows of the sample.
        """
        place = torch.arange(self.group_size, device=start.device)
        within = torch.minimum(start[:, None] + place, count[:, None] - 1)
        return within, place < count[:, None]

    def _output_places(self, plan: WindowPlan, groups: Tensor, start: Tensor) -> Tensor:
        """Return the place [N] of every sorted row's output among the G T flattened places.

        It is in the group that the row belongs to if none reaches back.

        Args:
            groups: [B], groups of every sample.
            start: [G], first row of every group, counted in its sample.
        """
        sample = plan.sample.long()  # [N]
        row = torch.arange(len(sample), device=sample.device)
        rank = row - plan.batch_offsets.long()[sample]
        group = offsets_of(groups)[sample] + rank // self.group_size
        return group * self.group_size + rank - start[group]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        groups = self.prepared(grid)
        queries = gather(q, groups.rows)  # [G, H, T, D]
        keys = gather(k, groups.rows)
        values = gather(v, groups.rows)
        mask = None if groups.valid is None else groups.valid[:, None, None]  # [G, 1, 1, T]
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return out.transpose(1, 2).flatten(0, 1).index_select(0, groups.place)
