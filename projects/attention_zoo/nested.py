"""torch's nested tensors: windows as the components of a jagged tensor, strata behind every
window's keys."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.attention_zoo.groups import Ragged, fold_bias, window_rows
from projects.attention_zoo.mixer import JointBaseline
from stratified3d.layers.attention import WindowGrid


class Jagged(NamedTuple):
    """queries, keys: rows of each window, keys counting strata tokens on from N; shortest and
    longest of each (host numbers); inverse [N]: place of every row among the queries."""

    queries: Ragged
    keys: Ragged
    ends_q: tuple[int, int]
    ends_k: tuple[int, int]
    inverse: Tensor


class NestedAttention(JointBaseline):
    """scaled_dot_product_attention on jagged tensors; nothing is padded by us, the strata are
    copied to every window and their bias is a column of their keys.

    torch.nested (PyTorch's documentation), layout torch.jagged. hints: whether torch is told the
    shortest and longest window beforehand; longest_first: order of the windows.
    """

    defaults = dict(hints=False, longest_first=False)
    variants = (dict(hints=True), dict(hints=True, longest_first=True))

    def prepare(self, grid: WindowGrid, strata: int) -> Jagged:
        windows, sample = window_rows(grid.plan)
        size = windows.offsets.diff()
        order = (
            size.argsort(descending=True, stable=True)
            if self.longest_first
            else torch.arange(len(size), device=size.device)
        )
        size, first, sample = size[order], windows.offsets[order], sample[order]
        window = torch.arange(len(size), device=size.device)
        offsets = torch.cat([size.new_zeros(1), size.cumsum(0)])
        owner = window.repeat_interleave(size)
        rows = first[owner] + torch.arange(len(owner), device=size.device) - offsets[owner]
        tokens = len(rows) + sample[:, None] * strata + torch.arange(strata, device=size.device)
        keys = torch.cat([rows, tokens.flatten()])
        keys = keys[torch.cat([owner, window.repeat_interleave(strata)]).argsort(stable=True)]
        ends = (int(size.min()), int(size.max())) if len(size) else (0, 0)
        return Jagged(
            Ragged(rows, offsets),
            Ragged(keys, offsets + strata * torch.arange(len(offsets), device=size.device)),
            ends,
            tuple(e + strata for e in ends),
            rows.argsort(),
        )

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        grid: WindowGrid,
        strata_k: Tensor | None = None,
        strata_v: Tensor | None = None,
        strata_bias: Tensor | None = None,
    ) -> Tensor:
        if not len(q):
            return q * 1
        jagged = self.prepared(grid, 0 if strata_k is None else strata_k.shape[1])
        width, scale = q.shape[-1], q.shape[-1] ** -0.5
        if strata_k is not None:
            q, k, v, strata_k, strata_v = fold_bias(q, k, v, strata_k, strata_v, strata_bias)
            k, v = torch.cat([k, strata_k.flatten(0, 1)]), torch.cat([v, strata_v.flatten(0, 1)])
        parts = [
            self._nest(q, jagged.queries, jagged.ends_q),
            *(self._nest(x, jagged.keys, jagged.ends_k) for x in (k, v)),
        ]
        out = (
            F.scaled_dot_product_attention(*parts, scale=scale).transpose(1, 2).values()
        )  # [N, H, D]
        return out.index_select(0, jagged.inverse)[..., :width]

    def _nest(self, table: Tensor, rows: Ragged, ends: tuple[int, int]) -> Tensor:
        hints = dict(min_seqlen=ends[0], max_seqlen=ends[1]) if self.hints else {}
        return torch.nested.nested_tensor_from_jagged(
            table.index_select(0, rows.rows), rows.offsets, **hints
        ).transpose(1, 2)  # [W, H, j, D]
