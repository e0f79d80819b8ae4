"""`benchmark.py scaling`: time and memory against the number of rows, and the exponents of both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.attention.methods import methods
from benchmarks.attention.ops import time_method
from benchmarks.point_clouds import clouds_for_ops, take
from benchmarks.report import number, table

ROWS = (10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 640_000, 1_000_000)


def exponent(rows: list[int], values: list[float]) -> float | None:
    """Least-squares slope of log value over log rows; None below three points."""
    if len(rows) < 3 or min(values) <= 0:
        return None
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (rows, values))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


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
    """Everyone with its authors' settings on more and more rows of one density; who would take
    longer than `limit` seconds, as its last two sizes foretell, stops there."""
    base = clouds_for_ops(points, quick)[0]
    results = []
    for method in tqdm(
        methods(device, dtype, base.window_shape, only, tuned=False), desc='scaling'
    ):
        series: list[dict[str, Any]] = []
        for size in sizes:
            if series and _forecast(series, size) > limit:
                series[-1]['stopped'] = (
                    f'{size:,} rows would take about {_forecast(series, size):.0f} s'
                )
                break
            row = time_method(method, take(base, size), device, dtype, runs, limit)
            series.append(row)
            if 'forward_ms' not in row or (
                'refused' in row and 'both_ms' not in row and 'over' in row['refused']
            ):
                break
        results += series
    return dict(cloud=base.name, rows=results, exponents=fit(results))


def _forecast(series: list[dict[str, Any]], size: int) -> float:
    """Seconds that the next size will take, growing as it did (at least in proportion)."""
    last = series[-1]
    spent = max(
        (last[key].median for key in ('forward_ms', 'both_ms') if key in last), default=math.inf
    )
    growth = 1.0
    if len(series) > 1:
        before = series[-2]
        key = 'both_ms' if 'both_ms' in last and 'both_ms' in before else 'forward_ms'
        growth = max(
            1.0,
            math.log(last[key].median / before[key].median)
            / math.log(last['rows'] / before['rows']),
        )
    return spent * (size / last['rows']) ** growth / 1e3


def fit(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Exponents of everyone's times and memory."""
    found = {}
    for name in dict.fromkeys(row['name'] for row in rows):
        mine, found[name] = [row for row in rows if row['name'] == name], {}
        for key in ('forward_ms', 'both_ms', 'peak_mib'):
            pairs = [
                (row['rows'], getattr(row[key], 'median', row[key])) for row in mine if row.get(key)
            ]
            found[name][key] = exponent(*(list(x) for x in zip(*pairs))) if pairs else None
    return found


def render(result: dict[str, Any]) -> str:
    """Exponents, then milliseconds forward + backward (forward alone where there is no backward
    pass)."""
    names = list(result['exponents'])
    head = [['attention', 'forward', 'forward + backward', 'memory']]
    head += [
        [
            name,
            *(
                number(result['exponents'][name][key])
                for key in ('forward_ms', 'both_ms', 'peak_mib')
            ),
        ]
        for name in names
    ]
    sizes = sorted({row['rows'] for row in result['rows']})
    times = [['attention', *(f'{n:,}' for n in sizes), 'note']]
    for name in names:
        mine = {row['rows']: row for row in result['rows'] if row['name'] == name}
        cells = [mine.get(n, {}).get('both_ms') or mine.get(n, {}).get('forward_ms') for n in sizes]
        notes = {
            note
            for row in mine.values()
            for note in (row.get('refused'), row.get('stopped'))
            if note
        }
        times.append(
            [
                name,
                *(number(cell.median if cell else None) for cell in cells),
                '; '.join(sorted(notes)),
            ]
        )
    return (
        f'Rows of "{result["cloud"]}", repeated side by side.\n\n## Exponents: value ~ rows^e\n\n{table(head)}\n\n'
        f'## Median milliseconds\n\n{table(times)}'
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Time and memory over rows, both axes logarithmic."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), layout='constrained')
    for i, name in enumerate(result['exponents']):
        mine = [row for row in result['rows'] if row['name'] == name]
        style = dict(
            label=name,
            color=pyplot.get_cmap('tab20')(i % 20),
            marker='.',
            linewidth=2.5 if mine[0]['group'] == 'ours' else 1,
        )
        for axis, keys in zip(axes, (('both_ms', 'forward_ms'), ('peak_mib',))):
            points = [
                (row['rows'], getattr(value, 'median', value))
                for row in mine
                for value in [next((row[key] for key in keys if row.get(key)), None)]
                if value
            ]
            if points:
                axis.loglog(*zip(*points), **style)
    for axis, label in zip(
        axes, ('ms, forward + backward (forward where that is all)', 'peak memory, MiB')
    ):
        axis.set(xlabel='rows', ylabel=label)
        axis.grid(True, which='both', alpha=0.2)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
