"""A few latents per region; latents attend to each other across the sample: FIT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from projects.attention_zoo.cells import Cells, group_samples, region_cells
from projects.attention_zoo.groups import Groups, Ragged, attend_groups, pad_groups
from projects.attention_zoo.mixer import Baseline
from stratified3d.layers.window_grid import WindowGrid
from stratified3d.ops import stratified_attention

# of latents, and of the voxels of a region
_LENGTHS = tuple(1 << octave for octave in range(21))


class LatentAttention(Baseline):
    """Attention inside the window, plus what the voxels read from the latents of their region.

    The `num_latents` latents of a region start as learned queries of its voxels. Then they attend
    to all latents of the sample, rotated to the mean position of their region. Regions are whole
    windows, at most `regions` x `regions` of them, so that the cost is linear.

    FIT (Chen and Li 2023, section 2): local layers on groups of data interleave with global layers
    on latents; here one block has one of each, side by side. There a group has its latents to
    itself, and the cost grows with N^(4/3) at best; here windows share those of a region.
    """

    defaults = dict(num_latents=4, regions=16)
    variants = (dict(num_latents=1), dict(num_latents=8), dict(regions=8))
    takes_rotated = False
    num_latents: int
    regions: int

    def build(self) -> None:
        self.check_at_least(1, 'num_latents', 'regions')
        channels = self.num_heads * self.head_dim
        self.latents = nn.Parameter(torch.randn(self.num_latents, self.num_heads, self.head_dim))
        self.exchange = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 3 * channels))
        self.write = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 2 * channels))

    def prepare(self, grid: WindowGrid) -> tuple[Groups, Groups, Groups, Cells]:
        """Return who reads: latents from voxels, latents from latents, voxels from latents."""
        cells = region_cells(grid, self.regions, self.head_dim if self.use_rotary else None)
        sample = cells.sample.repeat_interleave(self.num_latents)
        batch = len(grid.plan.batch_offsets) - 1

        rows = torch.arange(len(sample), device=sample.device)
        ends = torch.arange(len(cells.sample) + 1, device=sample.device) * self.num_latents
        latents = Ragged(rows, ends)
        collect = pad_groups(latents, cells.rows, cells.sample, _LENGTHS)
        read = pad_groups(cells.rows, latents, cells.sample, _LENGTHS)
        return read, collect, group_samples(sample, sample, batch), cells

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        read, collect, exchange, cells = self.prepared(grid)
        queries = self.latents.repeat(len(cells.sample), 1, 1).to(q.dtype)  # [R m, H, D]
        latents = attend_groups(queries, k, v, collect)

        latents = latents + self._exchange(latents, exchange, cells)
        far_k, far_v = self.write(latents.flatten(1)).chunk(2, 1)
        far = attend_groups(q, far_k.reshape(latents.shape), far_v.reshape(latents.shape), read)
        queries, keys = (self.rotate(x, grid.rotary) for x in (q, k))
        return far + stratified_attention(queries, keys, v, grid.plan)

    def _exchange(self, latents: Tensor, groups: Groups, cells: Cells) -> Tensor:
        """Let the latents [R m, H, D] attend to each other."""
        parts = self.exchange(latents.flatten(1)).chunk(3, 1)
        q, k, v = (x.reshape(latents.shape) for x in parts)
        if cells.rotary is not None:
            cos, sin = (x.repeat_interleave(self.num_latents, 0) for x in cells.rotary)
            q, k = (self.rotate(x, (cos, sin)) for x in (q, k))
        return attend_groups(q, k, v, groups)
