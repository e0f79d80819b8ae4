"""Windows padded to common lengths, with the strata beside the keys of every window: Swin, SST."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from projects.attention_zoo.groups import Groups, attend_groups, pad_groups, window_rows
from projects.attention_zoo.mixer import JointBaseline
from stratified3d.layers.window_grid import WindowGrid


class _PaddedAttention(JointBaseline):
    """Attention whose `prepare` returns padded windows."""

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


class SSTAttention(_PaddedAttention):
    """Windows are padded to the shortest of a few lengths that fits; padded keys are masked.

    SST (Fan et al. 2022, section 4.2, regional grouping). Its code drops the voxels of a window
    beyond the last length. Here longer windows share one more bucket, as long as the longest, and
    no voxel is dropped.
    """

    defaults = dict(lengths=(30, 60, 100))
    variants = (
        dict(lengths=(16, 32, 64, 128, 256)),
        dict(lengths=(8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)),
    )
    lengths: Sequence[int]

    def build(self) -> None:
        self.check_ascending('lengths')

    def prepare(self, grid: WindowGrid) -> Groups:
        windows, sample = window_rows(grid.plan)
        return pad_groups(windows, windows, sample, self.lengths)


class SwinAttention(_PaddedAttention):
    """All windows are padded to one length: the longest window, rounded up to a multiple.

    Swin Transformer (Liu et al. 2021, section 3.2) on voxels: its windows are full, those of a
    point cloud are not, so empty places are masked. Windows shift in every second block of the
    stage and do not wrap around.
    """

    defaults = dict(multiple=1)
    variants = (dict(multiple=8), dict(multiple=64))
    multiple: int

    def build(self) -> None:
        self.check_at_least(1, 'multiple')

    def prepare(self, grid: WindowGrid) -> Groups:
        windows, sample = window_rows(grid.plan)
        longest = int(windows.offsets.diff().max()) if len(sample) else 1
        length = -(-longest // self.multiple) * self.multiple
        return pad_groups(windows, windows, sample, (length,))
