"""Which keys a query sees, per mixer of the zoo: a picture and a table, measured from the code.

    python -m benchmarks.attention.keys_seen projects/attention_zoo/keys_seen.png

The weight of a key is the gradient of the query's output in the value of that key, so that indirect
ways (proxies, latents, states) count as well. Queries and keys are random: the picture shows who
may look where, not what a trained model looks at.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.attention.methods import Method, make_inputs, methods
from benchmarks.default_config import WIDTH, WINDOW_SHAPE
from benchmarks.point_clouds import simulate_points, voxelize_samples
from benchmarks.report import table
from stratified3d.layers.window_grid import WindowGrid

CPU = torch.device('cpu')
COLUMNS = 6
DECADES = 4  # of the weights that are drawn
VIEW = 30.0  # meters around the query
QUERIES = 5  # for the table


def drawn_methods() -> Iterator[Method]:
    """Attention inside windows, then every mixer with another function and its defaults."""
    for method in methods(CPU, torch.float32, WINDOW_SHAPE, tuned=False):
        if method.group == 'other' or method.name == 'stratified3d sdpa':
            yield method


def weigh_keys(method: Method, grid: WindowGrid, query: int) -> Tensor:
    """Return how much every row [N] counts in the output of a row, by its value alone."""
    inputs = make_inputs(grid, CPU, torch.float32, gradients=False)
    q, k, v = inputs[:3]
    values = v.requires_grad_()
    out = method.mixer.attend(q, k, values, grid)
    (grad,) = torch.autograd.grad(out[query].sum(), values)
    return grad.abs().sum((1, 2))


def middle_row(grid: WindowGrid) -> int:
    """Return a row near (4, 9) m."""
    offset = grid.positions[:, :2] - grid.positions.new_tensor((4.0, 9.0))
    return int(offset.norm(dim=1).argmin())


def measure(method: Method, grid: WindowGrid) -> tuple[float, float]:
    """Return the median number of keys that a query sees, and the median distance, in meters,
    of the farthest of them."""
    step = max(1, len(grid.coords) // QUERIES)
    counts, distances = [], []
    for query in range(step // 2, len(grid.coords), step):
        seen = weigh_keys(method, grid, query) > 0
        counts.append(float(seen.sum()))
        offset = grid.positions[seen, :2] - grid.positions[query, :2]
        distances.append(float(offset.norm(dim=1).max()))
    return float(torch.tensor(counts).median()), float(torch.tensor(distances).median())


def draw(grid: WindowGrid, chosen: list[Method], path: Path) -> None:
    """Draw the keys of one query from above, one panel per mixer."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    query = middle_row(grid)
    x, y, _ = (grid.positions - grid.positions[query]).unbind(1)
    rows = -(-len(chosen) // COLUMNS)
    figure, axes = pyplot.subplots(
        rows, COLUMNS, figsize=(2 * COLUMNS, 2.15 * rows), layout='constrained'
    )
    for axis in axes.flat:
        axis.set_axis_off()

    for axis, method in zip(axes.flat, chosen):
        weights = weigh_keys(method, grid, query)
        seen = weights > 0
        strength = (weights[seen] / weights.max()).log10()
        axis.scatter(x, y, s=0.4, color='0.82', linewidths=0)
        axis.scatter(
            x[seen], y[seen], s=1.8, c=strength, vmin=-DECADES, vmax=0, cmap='viridis', linewidths=0
        )
        axis.plot(0, 0, marker='+', color='red', markersize=6)
        axis.set(xlim=(-VIEW, VIEW), ylim=(-VIEW, VIEW), aspect='equal')
        axis.set_title(method.name.removesuffix('Attention'), fontsize=8, pad=2)

    figure.savefig(path, dpi=100, pil_kwargs=dict(optimize=True))
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('picture', type=Path, help='PNG file to write')
    args = parser.parse_args()

    batch = voxelize_samples('simulated sweep', [simulate_points(1)])
    grid = batch.prepare(WIDTH, CPU)
    chosen = list(drawn_methods())
    draw(grid, chosen, args.picture)

    lines = [['attention', 'keys', 'farthest, m']]
    for method in chosen:
        count, distance = measure(method, grid)
        lines.append([method.name, f'{count:,.0f}', f'{distance:.1f}'])
    print(f'{len(grid.coords):,} voxels; medians over {QUERIES} queries\n\n{table(lines)}')


if __name__ == '__main__':
    main()
