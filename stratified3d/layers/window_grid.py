"""Voxels of a stage divided into windows, with what the blocks of the stage share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from torch import Tensor

from stratified3d.ops import WindowPlan, permute_rows, plan_windows, rotary_angles


class WindowGrid(NamedTuple):
    """One partition of a stage's voxels into windows, computed once and shared by its blocks.

    Attributes:
        plan: of the windows.
        positions: [N, 3] meters, in window order.
        coords: [N, 4] int32 (batch, z, y, x), in window order.
        rotary: (cos, sin) of the rows; None without rotary embedding.
        window_shape, shift, spatial_shape: (z, y, x) in voxels, the last of the whole grid; voxel c
            lies in window floor((c + shift) / window_shape).
        derived: what mixers computed from the grid, see `once`.
        is_sorted: the voxels themselves lie in window order, so that nothing has to be moved.
    """

    plan: WindowPlan
    positions: Tensor
    coords: Tensor
    rotary: tuple[Tensor, Tensor] | None
    window_shape: tuple[int, int, int]
    shift: tuple[int, int, int]
    spatial_shape: tuple[int, int, int]
    derived: dict[Hashable, Any]
    is_sorted: bool = False

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return make(), called by the first block that asks for this key and then kept."""
        if key not in self.derived:
            self.derived[key] = make()
        return self.derived[key]

    def into_windows(self, x: Tensor) -> Tensor:
        """Permute [N, ...] from the order of the voxels to window order."""
        if self.is_sorted:
            return x
        return permute_rows(x, self.plan.order, self.plan.inverse)

    def into_voxels(self, x: Tensor) -> Tensor:
        """Permute [N, ...] from window order to the order of the voxels."""
        if self.is_sorted:
            return x
        return permute_rows(x, self.plan.inverse, self.plan.order)

    def after(self, first: WindowGrid) -> WindowGrid:
        """Return this grid for voxels that have been moved into the window order of `first`."""
        order = first.plan.inverse[self.plan.order]
        inverse = self.plan.inverse[first.plan.order]
        plan = self.plan._replace(order=order, inverse=inverse)
        return self._replace(plan=plan, is_sorted=self is first)


def build_window_grid(
    coords: Tensor,
    positions: Tensor,
    window_shape: tuple[int, int, int],
    shift: tuple[int, int, int],
    *,
    batch_size: int,
    spatial_shape: tuple[int, int, int],
    head_dim: int | None,
) -> WindowGrid:
    """Plan windows and tabulate the rotary angles of every row.

    Args:
        coords: [N, 4] int32 (batch, z, y, x).
        positions: [N, 3] meters, in the order of coords.
        window_shape, shift, spatial_shape: (z, y, x) in voxels, see `plan_windows`.
        batch_size: B.
        head_dim: D of the rotary tables; None for no rotary embedding.
    """
    if window_shape[0] >= spatial_shape[0]:
        shift = (0, *shift[1:])  # a window over the whole height is never shifted

    plan = plan_windows(
        coords, window_shape, shift, batch_size=batch_size, spatial_shape=spatial_shape
    )
    positions = positions[plan.order]
    rotary = None if head_dim is None else rotary_angles(positions, head_dim)
    return WindowGrid(
        plan, positions, coords[plan.order], rotary, window_shape, shift, spatial_shape, derived={}
    )
