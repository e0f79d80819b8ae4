"""A state-space scan along the windows, there and back: LION, Vision Mamba."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.attention_zoo.groups import split_samples
from projects.attention_zoo.mixer import Baseline
from projects.attention_zoo.orders import AXIS_OF_BLOCK, sort_along_snake
from projects.attention_zoo.summaries.recurrence import Inputs, scan_chunks
from stratified3d.layers.window_grid import WindowGrid


class Chunks(NamedTuple):
    """S chunks of T successive rows of one sample; the last chunk of a sample is padded.

    Attributes:
        rows: [S, T]; padding repeats a row.
        valid: [S, T] bool.
        place: [N], the place of every row among the S T flattened places.
        is_first: [S] bool, whether a chunk is the first of its sample; is_last: whether the last.
    """

    rows: Tensor
    valid: Tensor
    place: Tensor
    is_first: Tensor
    is_last: Tensor


class ScanAttention(Baseline):
    """h_i = a_i h_(i-1) + d_i k_i v_i^T and y_i = q_i h_i, along a snake through the windows.

    d_i = softplus(a learned function of v_i) is the step and a_i = exp(-rate d_i) the decay, both
    per head. A second scan runs backward, with steps and rates of its own; the two are added, and
    the value itself times a learned weight. Blocks follow the windows along x and y in turn.

    LION (Liu et al. 2024, section 3.2) scans windows along x and y in groups of rows, Vision Mamba
    (Zhu et al. 2024) in both directions; the recurrence is that of Mamba-2 (Dao and Gu 2024), which
    is computed in chunks of `chunk` rows. Their gates and convolutions are left out.
    """

    defaults = dict(chunk=64)
    variants = (dict(chunk=32), dict(chunk=128))
    takes_rotated = False
    chunk: int

    def build(self) -> None:
        self.check_at_least(1, 'chunk')
        self.phase = AXIS_OF_BLOCK[self.block % 4]
        heads = self.num_heads
        self.step = nn.Linear(heads * self.head_dim, 2 * heads)
        # Mamba-2 starts with rates of 1 to 16 and steps of 0.001 to 0.1
        self.rate = nn.Parameter(torch.linspace(1, 16, heads).log().repeat(2))
        self.skip = nn.Parameter(torch.ones(heads, 1))
        steps = torch.logspace(-3, -1, heads).repeat(2)
        with torch.no_grad():
            self.step.bias.copy_(steps.expm1().log())  # the inverse of softplus

    def prepare(self, grid: WindowGrid) -> Chunks:
        order = sort_along_snake(grid, axis=self.phase)
        start, end, sample = split_samples(grid.plan.batch_offsets, self.chunk)
        place = torch.arange(self.chunk, device=order.device)
        index = torch.minimum(start[:, None] + place, end[:, None] - 1)
        valid = start[:, None] + place < end[:, None]

        where = torch.empty_like(order)
        where[order] = valid.flatten().nonzero().squeeze(1)
        ends = grid.plan.batch_offsets
        return Chunks(order[index], valid, where, start == ends[sample], end == ends[sample + 1])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        chunks = self.prepared(grid)
        if not len(q):
            return q * 1

        there, back = self._inputs(q, k, v, chunks)
        ahead = scan_chunks(there, chunks.is_first)
        turned = scan_chunks(back.flip(), chunks.is_last.flip(0)).flip(0, 1)
        mixed = (ahead + turned).flatten(0, 1).index_select(0, chunks.place)
        return mixed + self.skip.to(v.dtype) * v

    def _inputs(self, q: Tensor, k: Tensor, v: Tensor, chunks: Chunks) -> list[Inputs]:
        """Return the inputs of both directions."""
        wide = torch.promote_types(q.dtype, torch.float32)
        steps = F.softplus(self.step(v.flatten(1)).to(wide))[chunks.rows]  # [S, T, 2 H]
        steps = steps * chunks.valid.unsqueeze(-1)
        decays = -steps * self.rate.to(wide).exp()

        q, k, v = (x[chunks.rows] for x in (q * self.head_dim**-0.5, k, v))  # [S, T, H, D]
        ways = zip(steps.chunk(2, -1), decays.chunk(2, -1))
        return [Inputs(q, k, v, *way) for way in ways]
