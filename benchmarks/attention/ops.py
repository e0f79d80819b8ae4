"""`benchmark.py ops`: time every attention method on the same tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.attention.methods import Method, check, make_inputs, methods
from benchmarks.default_config import HEADS, STRATA, WIDTH
from benchmarks.measure import bounded_memory, ceilings, kernel_time, peak_memory, timed
from benchmarks.point_clouds import VoxelBatch
from benchmarks.report import number, table
from projects.attention_zoo.mixer import Configurable
from stratified3d.layers.window_grid import WindowGrid

GROUPS = dict(
    ours='ours',
    same='the same function: one softmax over window and strata',
    other='another function: their times, no ratio',
)


COLORS = dict(ours='tab:blue', same='tab:orange', other='0.6')  # of the groups, in pictures


def time_method(
    method: Method,
    batch: VoxelBatch,
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    limit: float,
) -> dict[str, Any]:
    """One row of results.

    Args:
        limit: seconds; a method whose second forward pass takes longer runs no more.
    Returns:
        Its variant and what was measured: forward_ms, both_ms, plan_ms, padding, peak_mib, and
        first_ms of a first call over the limit, which may have compiled.
        'refused' says why all of them or those of the backward pass are missing.
    """
    with bounded_memory(device):
        return _time_method(method, batch, device, dtype, runs, limit)


def _time_method(
    method: Method,
    batch: VoxelBatch,
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    limit: float,
) -> dict[str, Any]:
    row: dict[str, Any] = dict(
        name=method.name,
        group=method.group,
        settings=method.settings,
        default=method.default,
        point_cloud=batch.name,
        rows=len(batch.coords),
    )
    torch.compiler.reset()  # what was compiled for others counts towards a limit
    grid = batch.prepare(WIDTH, device)
    inputs = make_inputs(grid, device, dtype)
    reason = method.reason(inputs[0])
    if reason is not None:
        row['refused'] = reason
        inputs = [x.detach() for x in inputs]
        if method.reason(inputs[0]):
            return row

    wrong = check(method, device, dtype, gradients=reason is None)
    if wrong:
        return row | dict(refused=f'wrong, so not timed: {wrong}')
    try:
        _measure(row, method, inputs, grid, runs, limit)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and 'memory' not in str(error):
            raise
        message = ' '.join(str(error).split())
        row['refused'] = f'out of memory: {message[:100]}'
    return row


def _measure(
    row: dict[str, Any],
    method: Method,
    inputs: list[Tensor],
    grid: WindowGrid,
    runs: int,
    limit: float,
) -> None:
    """Add times and memory to a row, one by one: what was measured before a failure stays.

    Args:
        inputs: without requires_grad only the forward pass is timed.
    """
    device = inputs[0].device
    gradients = inputs[0].requires_grad
    differentiated = inputs if method.group != 'other' else [*inputs[:3], *_own_parameters(method)]

    def forward() -> None:
        with torch.no_grad():
            method.attend(inputs, grid)

    def both() -> None:
        out = method.attend(inputs, grid)
        # a form of every other block may not use all of its parameters
        torch.autograd.grad(out, differentiated, torch.ones_like(out), allow_unused=True)

    first = timed(forward, device, runs=1, warmup=0)
    row['plan_ms'], row['padding'] = _time_plan(method, grid, device, runs)
    if first.median > 1e3 * limit:
        row['first_ms'] = first  # the first call also compiles, so the second one counts
        row['forward_ms'] = timed(forward, device, runs=1, warmup=0)
        if row['forward_ms'].median > 1e3 * limit:
            if gradients:
                row['refused'] = f'one forward pass takes over {limit:g} s'
            return

    row['forward_ms'] = timed(forward, device, runs)
    row['forward_kernels_ms'] = kernel_time(forward, device)
    if gradients:
        row['both_ms'] = timed(both, device, runs)
        row['both_kernels_ms'] = kernel_time(both, device)
    row['peak_mib'] = peak_memory(both if gradients else forward, device)


def _own_parameters(method: Method) -> list[Tensor]:
    """Parameters inside the attention, without those of the projections that all have."""
    named = method.mixer.named_parameters()
    return [x for name, x in named if name.split('.')[0] not in ('qkv', 'out')]


def _time_plan(
    method: Method, grid: WindowGrid, device: torch.device, runs: int
) -> tuple[Any, float | None]:
    """Milliseconds to prepare the grid again, and the share of padding in what was prepared.

    Both are None for methods that prepare nothing. Methods prepare once per stage, apart from
    attention.
    """
    if not isinstance(method.mixer, Configurable) or not grid.derived:
        return None, None
    mixer = method.mixer
    ((key, plan),) = grid.derived.items()
    assert isinstance(key, tuple)
    details = key[2 + len(mixer.settings) :]
    parts = plan if isinstance(plan, tuple) and not hasattr(plan, 'padding') else (plan,)
    paddings = [part.padding for part in parts if hasattr(part, 'padding')]
    milliseconds = timed(lambda: mixer.prepare(grid, *details), device, min(runs, 3))
    return milliseconds, paddings[0] if paddings else None


def lower_limits(
    batch: VoxelBatch, device: torch.device, dtype: torch.dtype, ceiling: dict[str, float]
) -> dict[str, float]:
    """Milliseconds below which the forward pass of stratified attention cannot fall.

    At the ceilings of the device, each number is read or written once, and each product of the
    equation is computed once.
    """
    plan = batch.prepare(WIDTH, device).plan
    num_rows = len(batch.coords)
    num_tokens = batch.batch_size * STRATA
    channels = HEADS * WIDTH

    keys_per_row = (plan.window_end - plan.window_start).double()
    pairs = float(keys_per_row.sum()) + num_rows * STRATA
    moved = (4 * num_rows + 2 * num_tokens) * channels * dtype.itemsize  # bytes
    return dict(
        pairs=pairs,
        bytes_ms=moved / ceiling['copy_gb_s'] / 1e6,
        flops_ms=4 * channels * pairs / ceiling['matmul_gflop_s'] / 1e6,
    )


def run(
    batches: list[VoxelBatch],
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    only: list[str],
    limit: float,
) -> Iterator[dict[str, Any]]:
    """Time all methods in all variants; yields the results so far after each batch."""
    ceiling = ceilings(device, dtype)
    rows: list[dict[str, Any]] = []
    limits = {}
    for batch in batches:
        limits[batch.name] = lower_limits(batch, device, dtype, ceiling)
        chosen = methods(device, dtype, batch.window_shape, only)
        for method in tqdm(chosen, desc=batch.name):
            rows.append(time_method(method, batch, device, dtype, runs, limit))
        yield dict(
            heads=HEADS,
            width=WIDTH,
            strata=STRATA,
            ceilings=ceiling,
            limits=limits,
            rows=rows,
        )


def render(result: dict[str, Any]) -> str:
    """Tables for every point cloud: the fastest variant of each method, then all variants."""
    copy = result['ceilings']['copy_gb_s']
    matmul = result['ceilings']['matmul_gflop_s']
    parts = [
        f'H = {HEADS}, D = {WIDTH}, {STRATA} strata. Ceilings measured in this run: copy '
        f'{copy:.0f} GB/s, matrix product {matmul:,.0f} GFLOP/s. Median milliseconds; plan: '
        'prepared once per stage, not included in any other column.'
    ]
    for name, limit in result['limits'].items():
        rows = [row for row in result['rows'] if row['point_cloud'] == name]
        if not rows:  # not timed yet
            continue
        parts.append(
            f'## {name}: {rows[0]["rows"]:,} rows\n\n'
            f'Limit of our forward pass: {number(limit["bytes_ms"])} ms to move the numbers, '
            f'{number(limit["flops_ms"])} ms to multiply.'
        )
        for group, title in GROUPS.items():
            fastest = _fastest([row for row in rows if row['group'] == group])
            if fastest:
                parts.append(f'### {title}\n\n{_table(fastest)}')
        parts.append(f'### every variant\n\n{_table(rows)}')
    return '\n\n'.join(parts)


def _fastest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fastest variant of each method, the fastest method first."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = row['name']
        if name not in best or _speed(row) < _speed(best[name]):
            best[name] = row
    return sorted(best.values(), key=_speed)


def _speed(row: dict[str, Any]) -> tuple[float, float]:
    both, forward = _median(row, 'both_ms'), _median(row, 'forward_ms')
    return (
        float('inf') if both is None else both,
        float('inf') if forward is None else forward,
    )


def _median(row: dict[str, Any], key: str) -> float | None:
    return row[key].median if row.get(key) else None


def _table(rows: list[dict[str, Any]]) -> str:
    heading = ['attention', 'forward', 'forward + backward', 'plan', 'peak MiB', 'padding', 'note']
    on_gpu = any(row.get('forward_kernels_ms') is not None for row in rows)
    if on_gpu:
        heading[3:3] = ['kernels alone, forward', 'both']
    lines = [heading]
    for row in rows:
        padding = row.get('padding')
        kernels = ('forward_kernels_ms', 'both_kernels_ms') if on_gpu else ()
        lines.append(
            [
                _label(row),
                number(_median(row, 'forward_ms')),
                number(_median(row, 'both_ms')),
                *(number(row.get(key)) for key in kernels),
                number(_median(row, 'plan_ms')),
                number(row.get('peak_mib')),
                '-' if padding is None else f'{padding:.0%}',
                _note(row),
            ]
        )
    return table(lines)


def _note(row: dict[str, Any]) -> str:
    first = _median(row, 'first_ms')
    compiled = '' if first is None else f'the first call takes {number(first / 1e3)} s'
    return '; '.join(filter(None, (compiled, row.get('refused'))))


def _label(row: dict[str, Any]) -> str:
    settings = ', '.join(f'{name} {value}' for name, value in row['settings'].items())
    if not settings:
        return row['name']
    default = '; default' if row['default'] else ''
    return f'{row["name"]} ({settings}{default})'


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the time of the fastest variant of every method as bars, one panel per point cloud.

    Full bars are forward and backward pass; hatched ones are the forward pass of methods that have
    nothing else.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    clouds = list(dict.fromkeys(row['point_cloud'] for row in result['rows']))
    fastest = [_fastest([r for r in result['rows'] if r['point_cloud'] == name]) for name in clouds]
    timed_rows = [[row for row in rows if _median(row, 'forward_ms')] for rows in fastest]
    most = max((len(rows) for rows in timed_rows), default=0)
    figure, axes = pyplot.subplots(
        1,
        max(1, len(clouds)),
        figsize=(5 * max(1, len(clouds)), 0.2 * most + 1.2),
        squeeze=False,
        layout='constrained',
    )
    for axis, name, rows in zip(axes[0], clouds, timed_rows):
        for place, row in enumerate(reversed(rows)):
            both = _median(row, 'both_ms')
            axis.barh(
                place,
                both or _median(row, 'forward_ms'),
                color=COLORS[row['group']],
                alpha=1.0 if both else 0.4,
                hatch=None if both else '///',
            )
        names = [row['name'].removesuffix('Attention') for row in reversed(rows)]
        axis.set_yticks(range(len(rows)), names, fontsize=8)
        axis.set(xscale='log', xlabel='ms, forward + backward (hatched: forward)')
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(name, fontsize=9)
        axis.grid(True, axis='x', which='both', alpha=0.2)
        axis.margins(y=0.01)

    patches = [pyplot.Rectangle((0, 0), 1, 1, color=color) for color in COLORS.values()]
    labels = ['ours', 'the same function', 'another function']
    figure.legend(patches, labels, loc='outside lower center', ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
