"""How the operations of every attention grow, counted from the code and not timed.

    python -m benchmarks.attention.growth projects/attention_zoo/growth.png

A multiply-add of a matrix product or of an attention is two operations, and every number that any
other operation of torch writes is one more. The forward pass of `attend` is counted, without the
projections that all have, and apart from it the plan, which is prepared once per stage.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.attention.methods import Method, make_inputs, methods
from benchmarks.default_config import HEADS, STRATA, WIDTH, WINDOW_SHAPE
from benchmarks.point_clouds import (
    VoxelBatch,
    simulate_points,
    take_rows,
    thin_rows,
    voxelize_samples,
)
from benchmarks.report import table
from projects.attention_zoo import (
    FlexAttention,
    FullAttention,
    NestedAttention,
    VarlenAttention,
)
from stratified3d.layers.window_grid import WindowGrid

CPU = torch.device('cpu')
# torch's kernels are counted, and numba's would not be: those do not take this dtype
DTYPE = torch.float64
COPIES = (1, 4, 9)  # of a sweep, side by side: areas of one density
THINNED = 4  # times fewer rows on one area
# layouts that run on a GPU, or whose kernel torch does not count; and all pairs, which take minutes
BY_FORMULA = (VarlenAttention, NestedAttention, FlexAttention, FullAttention)


class Operations(NamedTuple):
    """Counts of a point cloud: of the attention, and of its plan."""

    attention: int
    plan: int


class Growth(NamedTuple):
    """How the operations of a method grow.

    Attributes:
        per_row: operations per row on areas that are larger and larger.
        area, density: exponents e of operations ~ rows^e, between the two largest areas and between
            two densities of one area.
        plan: the exponent of the plan over the area; None where nothing is prepared.
    """

    per_row: list[float]
    area: float
    density: float
    plan: float | None


class _Written(TorchDispatchMode):
    """Counts the numbers that operations write; views write none."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.numbers += sum(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))
        return out


def _flash_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    """Operations of torch's attention on a CPU, from the shapes [W, H, L, D]; padding counts."""
    batch, heads, length, width = q
    return 2 * batch * heads * length * k[2] * (width + v[3])


def count_calls(function: Callable[[], Any]) -> int:
    """Operations of one call."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    products = FlopCounterMode(display=False, custom_mapping={flash: _flash_flops})
    written = _Written()
    with torch.no_grad(), products, written:
        function()
    return products.get_total_flops() + written.numbers


def count(method: Method, inputs: Sequence[Tensor], grid: WindowGrid) -> Operations:
    """Operations of a method on inputs of `DTYPE` on a CPU; the grid is one that nobody used."""
    if isinstance(method.mixer, BY_FORMULA):
        return Operations(_count_by_formula(method.mixer, grid, inputs[0]), 0)
    first = count_calls(lambda: method.attend(inputs, grid))
    again = count_calls(lambda: method.attend(inputs, grid))
    return Operations(again, first - again)


def _count_by_formula(mixer: Any, grid: WindowGrid, q: Tensor) -> int:
    """Operations over all pairs, the blocks that FlexAttention touches, or windows and strata."""
    if isinstance(mixer, FullAttention):
        pairs = int(grid.plan.batch_offsets.long().diff().square().sum())
    elif isinstance(mixer, FlexAttention):
        blocks = mixer.prepare(grid, STRATA).kv_num_blocks
        pairs = int(blocks.sum()) * mixer.block_size**2
    else:
        keys = grid.plan.window_end - grid.plan.window_start
        pairs = int(keys.sum()) + len(q) * STRATA
    return 4 * pairs * q[0].numel()


def exponent(rows: Sequence[int], values: Sequence[float]) -> float:
    """The e of values ~ rows^e, from the last two sizes."""
    return math.log(values[-1] / values[-2]) / math.log(rows[-1] / rows[-2])


def measure(method: Method, areas: Sequence[VoxelBatch], densities: Sequence[VoxelBatch]) -> Growth:
    """Growth of a method over areas of one density, and over densities of one area."""
    wider, denser = ([_count_batch(method, batch) for batch in pair] for pair in (areas, densities))
    rows, dense_rows = ([len(batch.coords) for batch in pair] for pair in (areas, densities))
    counts = [operations.attention for operations in wider]
    plans = [operations.plan for operations in wider]
    return Growth(
        [operations / size for operations, size in zip(counts, rows)],
        exponent(rows, counts),
        exponent(dense_rows, [operations.attention for operations in denser]),
        exponent(rows, plans) if min(plans) > 0 else None,
    )


def _count_batch(method: Method, batch: VoxelBatch) -> Operations:
    grid = batch.prepare(WIDTH, CPU)
    return count(method, make_inputs(grid, CPU, DTYPE, gradients=False), grid)


def draw(growths: dict[str, Growth], path: Path) -> None:
    """Draw the operations per voxel: a dot for the smallest area, an arrow to the largest."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    ordered = sorted(growths, key=lambda name: -growths[name].per_row[-1])
    figure, axis = pyplot.subplots(figsize=(8, 0.24 * len(ordered) + 1), layout='constrained')
    for place, growth in enumerate(growths[name] for name in ordered):
        color = _color(growth.area)
        axis.plot(growth.per_row, [place] * len(growth.per_row), color=color, linewidth=2)
        axis.plot(growth.per_row[0], place, marker='o', color=color, markersize=6)
        axis.plot(growth.per_row[-1], place, marker='>', color=color, markersize=6)

    axis.set_yticks(range(len(ordered)), [name.removesuffix('Attention') for name in ordered])
    axis.set(
        xscale='log',
        xlabel=f'operations per voxel: one sweep (dot), {COPIES[-1]} times its area (arrow)',
    )
    axis.grid(True, axis='x', alpha=0.3)
    axis.margins(y=0.02)
    figure.savefig(path, dpi=100, pil_kwargs=dict(optimize=True))
    pyplot.close(figure)


def _color(power: float) -> str:
    """Green for linear, orange for strips, red for all pairs of cells or voxels.

    Up to 1.3 is linear: a bounded number of regions may still fill.
    """
    return 'tab:green' if power <= 1.3 else 'tab:orange' if power <= 1.6 else 'tab:red'


def render(growths: dict[str, Growth]) -> str:
    """A table, by the exponent over the area and then by operations."""
    lines = [['attention', 'operations per voxel', 'area', 'density', 'plan, area']]
    ordered = sorted(growths.items(), key=lambda item: (round(item[1].area, 1), item[1].per_row[0]))
    for name, growth in ordered:
        powers = (growth.area, growth.density, growth.plan)
        cells = ['-' if power is None else f'{power:.2f}' for power in powers]
        lines.append([name, f'{growth.per_row[0]:,.0f}', *cells])
    return table(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('picture', type=Path, help='PNG file to write')
    parser.add_argument('--only', nargs='+', default=[], metavar='NAME', help='default: all')
    args = parser.parse_args()

    sweep = voxelize_samples('simulated sweep', [simulate_points(1)])
    dense = voxelize_samples('simulated, 10 sweeps', [simulate_points(10)])
    rows = len(sweep.coords)
    areas = [take_rows(sweep, copies * rows) for copies in COPIES]
    densities = [thin_rows(dense, len(dense.coords) // THINNED), dense]
    growths = {}
    for method in tqdm(methods(CPU, DTYPE, WINDOW_SHAPE, args.only, tuned=False)):
        if method.group != 'ours' or method.name == 'stratified3d sdpa':
            growths[method.name] = measure(method, areas, densities)
    draw(growths, args.picture)
    print(
        f'H = {HEADS}, D = {WIDTH}. Operations per voxel of one sweep, {rows:,} voxels; area: '
        f'{COPIES[-2]} and {COPIES[-1]} times as many; density: {len(densities[0].coords):,} and '
        f'{len(dense.coords):,} voxels.\n\n{render(growths)}'
    )


if __name__ == '__main__':
    main()
