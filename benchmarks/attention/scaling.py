"""`benchmark.py scaling`: time and memory over the number of rows, and the exponents of both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.attention.methods import methods
from benchmarks.attention.ops import time_method
from benchmarks.point_clouds import batches_for_ops, take_rows
from benchmarks.report import number, table

ROWS = (10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 640_000, 1_000_000)
MEASURES = ('forward_ms', 'both_ms', 'peak_mib')
PANELS = 5  # of the picture, side by side


def exponent(rows: list[int], values: list[float]) -> float | None:
    """Least-squares slope of log value over log rows; None with fewer than three points."""
    if len(rows) < 3 or min(values) <= 0:
        return None
    x = torch.tensor(rows, dtype=torch.float64).log()
    y = torch.tensor(values, dtype=torch.float64).log()
    x_centered = x - x.mean()
    return float((x_centered * (y - y.mean())).sum() / x_centered.square().sum())


def run(
    sizes: list[int],
    points: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    only: list[str],
    limit: float,
    quick: bool,
) -> dict[str, Any]:
    """Time every method with its default settings on a larger and larger area of one density.

    Args:
        limit: seconds; a method stops where its last two sizes predict that it takes longer.
    """
    base = batches_for_ops(points, quick)[0]
    results = []
    chosen = methods(device, dtype, base.window_shape, only, tuned=False)
    for method in tqdm(chosen, desc='scaling'):
        series: list[dict[str, Any]] = []
        for size in sizes:
            seconds = _forecast(series, size) if series else 0.0
            if seconds > limit:
                series[-1]['stopped'] = f'{size:,} rows would take about {seconds:.0f} s'
                break
            row = time_method(method, take_rows(base, size), device, dtype, runs, limit)
            series.append(row)
            if _is_last(row):
                break
        results += series
    return dict(point_cloud=base.name, rows=results, exponents=fit(results))


def _is_last(row: dict[str, Any]) -> bool:
    """Whether the method failed on these rows or was too slow for a backward pass."""
    if 'forward_ms' not in row:
        return True
    return 'both_ms' not in row and 'over' in row.get('refused', '')


def _forecast(series: list[dict[str, Any]], size: int) -> float:
    """Seconds that the next size will take, at the exponent of the last two (at least 1)."""
    last = series[-1]
    spent = [last[key].median for key in ('forward_ms', 'both_ms') if key in last]
    milliseconds = max(spent, default=math.inf)
    power = 1.0
    if len(series) > 1:
        before = series[-2]
        key = 'both_ms' if 'both_ms' in last and 'both_ms' in before else 'forward_ms'
        slower = math.log(last[key].median / before[key].median)
        larger = math.log(last['rows'] / before['rows'])
        power = max(1.0, slower / larger)
    return milliseconds * (size / last['rows']) ** power / 1e3


def fit(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Exponents of the times and the memory of every method."""
    exponents: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(row['name'] for row in rows):
        series = [row for row in rows if row['name'] == name]
        exponents[name] = {}
        for key in MEASURES:
            measured = [row for row in series if row.get(key)]
            sizes = [row['rows'] for row in measured]
            values = [_value(row[key]) for row in measured]
            exponents[name][key] = exponent(sizes, values)
    return exponents


def _value(measured: Any) -> float:
    """The median of a timing, or a plain number."""
    return getattr(measured, 'median', measured)


def render(result: dict[str, Any]) -> str:
    """Exponents, then milliseconds of forward and backward pass (forward alone where there is no
    backward pass)."""
    exponents = [['attention', 'forward', 'forward + backward', 'memory']]
    for name, values in result['exponents'].items():
        exponents.append([name, *(number(values[key]) for key in MEASURES)])

    sizes = sorted({row['rows'] for row in result['rows']})
    times = [['attention', *(f'{size:,}' for size in sizes), 'note']]
    for name in result['exponents']:
        series = [row for row in result['rows'] if row['name'] == name]
        times.append(_row_of_times(name, series, sizes))
    return (
        f'Rows of "{result["point_cloud"]}", repeated side by side along x and y.\n\n'
        f'## Exponents: value ~ rows^e\n\n{table(exponents)}\n\n'
        f'## Median milliseconds\n\n{table(times)}'
    )


def _row_of_times(name: str, series: list[dict[str, Any]], sizes: list[int]) -> list[str]:
    by_size = {row['rows']: row for row in series}
    cells = []
    for size in sizes:
        row = by_size.get(size, {})
        time = row.get('both_ms') or row.get('forward_ms')
        cells.append(number(time.median if time else None))

    notes = {row[key] for row in series for key in ('refused', 'stopped') if row.get(key)}
    return [name, *cells, '; '.join(sorted(notes))]


def draw(result: dict[str, Any], path: Path) -> None:
    """Plot the time per row over rows, one panel per method with all others in gray.

    A level curve is linear in the rows; the title has the exponents of time and memory.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    curves = {name: _times_per_row(result['rows'], name) for name in result['exponents']}
    names = [name for name, (sizes, _) in curves.items() if sizes]
    lines = max(1, -(-len(names) // PANELS))
    figure, axes = pyplot.subplots(
        lines,
        PANELS,
        figsize=(2.2 * PANELS, 1.7 * lines + 0.5),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout='constrained',
    )
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()

    for axis, name in zip(axes.flat, names):
        for curve in curves.values():
            axis.loglog(*curve, color='0.85', linewidth=0.7)
        axis.loglog(*curves[name], color='tab:blue', marker='.', linewidth=2)
        axis.grid(True, alpha=0.3)
        powers = result['exponents'][name]
        time, memory = (number(powers[key]) for key in ('both_ms', 'peak_mib'))
        if powers['both_ms'] is None:
            time = f'{number(powers["forward_ms"])} (forward)'
        title = name.removesuffix('Attention')
        axis.set_title(f'{title}\ntime {time}, memory {memory}', fontsize=8)

    figure.supxlabel('rows', fontsize=9)
    figure.supylabel('microseconds per row, forward + backward (or forward)', fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _times_per_row(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Sizes, and microseconds per row: of both passes where any size has both."""
    series = [row for row in rows if row['name'] == name]
    key = 'both_ms' if any(row.get('both_ms') for row in series) else 'forward_ms'
    measured = [row for row in series if row.get(key)]
    sizes = [row['rows'] for row in measured]
    return sizes, [1e3 * _value(row[key]) / row['rows'] for row in measured]
