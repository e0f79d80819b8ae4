"""Windows that choose where and how large their keys are: VSA."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.attention_zoo.cells import Cells, average, group_cells, window_cells
from projects.attention_zoo.groups import Groups, pad_groups
from projects.attention_zoo.keys.points import attend_points, interpolate
from projects.attention_zoo.mixer import Baseline
from projects.attention_zoo.orders import window_index
from projects.attention_zoo.partitions import fold_columns
from stratified3d.layers.window_grid import WindowGrid

_LENGTHS = (16, 32, 64, 128, 256, 512, 1024)


class Plan(NamedTuple):
    """columns: of voxels, inside layers of windows; label: [W], of each window among the columns;
    window: [N], of each row."""

    windows: Cells
    columns: Cells
    label: Tensor
    window: Tensor
    groups: Groups


class VariedWindowAttention(Baseline):
    """Each head of a window attends to `points`² points of a rectangle that it moves and scales.

    The mean query of the window predicts the rectangle. Keys and values of a point are interpolated
    between the four columns of voxels around it, those of the window's layer; the weights of empty
    columns go to the others, and points among four empty ones do not count. One more key is the
    mean of the window, so that there always is one. Keys are rotated at the positions of columns.

    VSA (Zhang et al. 2022, section 3.2). It starts with the window itself, as there.
    """

    defaults = dict(points=7)
    variants = (dict(points=5), dict(points=10))
    takes_rotated = False
    points: int

    def build(self) -> None:
        self.check_at_least(1, 'points')
        self.predict = nn.Linear(self.num_heads * self.head_dim, 4 * self.num_heads)
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)

    def prepare(self, grid: WindowGrid) -> Plan:
        head_dim = self.head_dim if self.use_rotary else None
        windows = window_cells(grid, head_dim)
        layer = fold_columns(grid.plan.sample, window_index(grid)[0])
        place = F.pad(grid.coords[:, 2:], (1, 0))  # (0, y, x)
        columns = group_cells(grid, place, layer, head_dim)
        label = layer[windows.order[windows.offsets[:-1]]]
        groups = pad_groups(windows.rows, windows.rows, windows.sample, _LENGTHS)
        return Plan(windows, columns, label, windows.members, groups)

    def place_points(self, means: Tensor, plan: Plan, grid: WindowGrid) -> Tensor:
        """Return the points (y, x) of every window, [W, H, P, 2], from its mean query [W, H D]."""
        wide = torch.promote_types(means.dtype, torch.float32)
        predicted = self.predict(means).to(wide).view(len(means), self.num_heads, 1, 4)
        moved, scaled = predicted.split(2, -1)
        shape = predicted.new_tensor(grid.window_shape[1:])
        corner = plan.windows.places[:, None, None, 2:] * shape - shape.new_tensor(grid.shift[1:])
        step = (torch.arange(self.points, device=means.device, dtype=wide) + 0.5) / self.points
        base = torch.cartesian_prod(step, step) - 0.5  # [P, 2], of a window's length
        return corner + (shape - 1) / 2 + (base * (1 + scaled) + moved) * shape

    def attend(self, q: Tensor, k: Tensor, v: Tensor, grid: WindowGrid) -> Tensor:
        plan = self.prepared(grid)
        if not len(q):
            return q * 1
        points = self.place_points(average(q, plan.windows.rows).flatten(1), plan, grid)
        weights, corners = interpolate(points, plan.columns, plan.label)
        keys = self._sample(k, plan, weights, corners, rotated=True)
        values = self._sample(v, plan, weights, corners, rotated=False)

        exists = F.pad(weights.sum(-1) > 0, (0, 1), value=True)  # [W, H, P + 1]
        q = self.rotate(q, grid.rotary)
        return attend_points(q, keys, values, exists, plan.window, plan.groups)

    def _sample(
        self, x: Tensor, plan: Plan, weights: Tensor, corners: Tensor, rotated: bool
    ) -> Tensor:
        """Interpolate x [N, H, D] at the points, and append the means: [W, H, P + 1, D]."""
        table, mean = average(x, plan.columns.rows), average(x, plan.windows.rows)
        if rotated:
            table = self.rotate(table, plan.columns.rotary)
            mean = self.rotate(mean, plan.windows.rotary)
        head = torch.arange(self.num_heads, device=x.device)[:, None, None]
        found = table[corners, head]  # [W, H, P, 4, D]
        sampled = (weights.to(x.dtype).unsqueeze(-1) * found).sum(-2)
        return torch.cat([sampled, mean.unsqueeze(2)], 2)
