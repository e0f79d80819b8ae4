"""Windows padded to common lengths: Swin's way and SST's, with the strata beside every window's
keys."""

from __future__ import annotations

from torch import Tensor

from projects.attention_zoo.groups import Groups, attend_groups, pad_groups, window_rows
from projects.attention_zoo.mixer import JointBaseline
from stratified3d.layers.attention import WindowGrid


class SSTAttention(JointBaseline):
    """Windows padded to the shortest of a few lengths that holds them; keys that pad are masked.

    SST (Fan et al. 2022, section 4.2, regional grouping). Its code drops what a window holds beyond
    the last length; here such windows share one more bucket, as long as the longest, and nothing is
    dropped.
    """

    defaults = dict(lengths=(30, 60, 100))
    variants = (
        dict(lengths=(16, 32, 64, 128, 256)),
        dict(lengths=(8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)),
    )

    def prepare(self, grid: WindowGrid) -> Groups:
        windows, sample = window_rows(grid.plan)
        return pad_groups(windows, windows, sample, self.lengths)

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
        return attend_groups(q, k, v, self.prepared(grid), strata_k, strata_v, strata_bias)


class SwinAttention(SSTAttention):
    """All windows padded to one length: the longest window there is, or a multiple of 8 or 64 above
    it.

    Swin Transformer (Liu et al. 2021, section 3.2) on voxels: its windows are full, a voxel cloud's
    are not, so empty places are masked. Windows shift in every second block of the stage, without
    wrapping around.
    """

    defaults = dict(multiple=1)
    variants = (dict(multiple=8), dict(multiple=64))

    def prepare(self, grid: WindowGrid) -> Groups:
        windows, sample = window_rows(grid.plan)
        longest = int(windows.offsets.diff().max()) if len(sample) else 1
        return pad_groups(windows, windows, sample, (-(-longest // self.multiple) * self.multiple,))
