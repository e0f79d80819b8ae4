"""torch's nested tensors: windows as a jagged tensor, strata behind the keys of every window."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.attention_zoo.groups import (
    Ragged,
    fold_bias,
    number_members,
    offsets_of,
    window_rows,
)
from projects.attention_zoo.mixer import JointBaseline
from stratified3d.layers.window_grid import WindowGrid


class Jagged(NamedTuple):
    """Windows as the components of jagged tensors.

    Attributes:
        queries: rows of every window.
        keys: rows of every window, then the strata tokens of its sample; these count from N.
        ends_q, ends_k: length of the shortest and of the longest window, as Python numbers.
        inverse: [N], where every row stands among the queries.
    """

    queries: Ragged
    keys: Ragged
    ends_q: tuple[int, int]
    ends_k: tuple[int, int]
    inverse: Tensor


class NestedAttention(JointBaseline):
    """scaled_dot_product_attention on jagged tensors, without padding on our side.

    The strata are copied to every window and their bias is a column of their keys. hints: pass the
    lengths of the shortest and of the longest window to torch; longest_first: sort the windows.

    torch.nested (PyTorch's documentation), layout torch.jagged.
    """

    defaults = dict(hints=False, longest_first=False)
    variants = (dict(hints=True), dict(hints=True, longest_first=True))
    hints: bool
    longest_first: bool

    def prepare(self, grid: WindowGrid, strata: int) -> Jagged:
        windows, sample = window_rows(grid.plan)
        size = windows.offsets.diff()  # [W]
        order = torch.arange(len(size), device=size.device)
        if self.longest_first:
            order = size.argsort(descending=True, stable=True)
        size = size[order]
        first = windows.offsets[order]
        sample = sample[order]

        owner, number = number_members(size)
        queries = Ragged(first[owner] + number, offsets_of(size))
        keys = append_strata(queries, sample, strata)

        shortest = longest = 0
        if len(size):
            shortest = int(size.min())
            longest = int(size.max())
        return Jagged(
            queries,
            keys,
            (shortest, longest),
            (shortest + strata, longest + strata),
            queries.rows.argsort(),
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
        width = q.shape[-1]
        scale = width**-0.5
        if strata_k is not None:
            assert strata_v is not None  # both or none
            q, k, v, strata_k, strata_v = fold_bias(q, k, v, strata_k, strata_v, strata_bias)
            k = torch.cat([k, strata_k.flatten(0, 1)])
            v = torch.cat([v, strata_v.flatten(0, 1)])

        queries = self._nest(q, jagged.queries, jagged.ends_q)
        keys = self._nest(k, jagged.keys, jagged.ends_k)
        values = self._nest(v, jagged.keys, jagged.ends_k)
        out = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
        rows = out.transpose(1, 2).values()  # [N, H, D]
        return rows.index_select(0, jagged.inverse)[..., :width]

    def _nest(self, table: Tensor, lists: Ragged, ends: tuple[int, int]) -> Tensor:
        """Return lists of the table's rows [N, H, D] as a jagged tensor [W, H, j, D]."""
        shortest, longest = ends
        nested = torch.nested.nested_tensor_from_jagged(
            table.index_select(0, lists.rows),
            lists.offsets,
            min_seqlen=shortest if self.hints else None,
            max_seqlen=longest if self.hints else None,
        )
        return nested.transpose(1, 2)


def append_strata(windows: Ragged, sample: Tensor, strata: int) -> Ragged:
    """Append the strata tokens of its sample to every window.

    Args:
        windows: W lists of rows, N in all.
        sample: [W] of every window.
        strata: M, the tokens per sample; token m of sample b counts as row N + b M + m.
    """
    num_rows = len(windows.rows)
    token = torch.arange(strata, device=sample.device)
    tokens = num_rows + sample[:, None] * strata + token  # [W, M]
    rows = torch.cat([windows.rows, tokens.flatten()])

    window = torch.arange(len(sample), device=sample.device)
    owner = torch.cat(
        [window.repeat_interleave(windows.offsets.diff()), window.repeat_interleave(strata)]
    )
    before = torch.arange(len(windows.offsets), device=sample.device) * strata
    return Ragged(rows[owner.argsort(stable=True)], windows.offsets + before)
