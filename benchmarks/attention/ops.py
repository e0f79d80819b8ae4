"""`benchmark.py ops`: every attention on the same tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.attention.methods import (
    HEADS,
    STRATA,
    WIDTH,
    Method,
    check,
    make_inputs,
    methods,
)
from benchmarks.measure import bounded_memory, ceilings, peak_memory, timed
from benchmarks.point_clouds import Cloud
from benchmarks.report import number, table
from stratified3d.layers.attention import WindowGrid

GROUPS = dict(
    ours='ours',
    same='the same function: one softmax over window and strata',
    other='another function: their times, no ratio',
)


def time_method(
    method: Method,
    cloud: Cloud,
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    limit: float,
    memory: bool = True,
) -> dict[str, Any]:
    """One row of results; 'refused' says why there are no times, or no times of the backward pass.

    limit: seconds; where one forward pass takes longer, it is the only one.
    """
    with bounded_memory(device):
        return _time_contender(method, cloud, device, dtype, runs, limit, memory)


def _time_contender(
    method: Method,
    cloud: Cloud,
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    limit: float,
    memory: bool,
) -> dict[str, Any]:
    row: dict[str, Any] = dict(
        name=method.name,
        group=method.group,
        settings=method.settings,
        default=method.default,
        cloud=cloud.name,
        rows=len(cloud.coords),
    )
    torch.compiler.reset()  # what was compiled for others counts towards a limit
    grid = cloud.prepare(WIDTH, device)
    inputs = make_inputs(grid, device, dtype)
    gradients = method.reason(inputs[0]) is None
    if not gradients:
        row['refused'] = method.reason(inputs[0])
        inputs = [x.detach() for x in inputs]
        if method.reason(inputs[0]):
            return row
    wrong = check(method, device, dtype, gradients)
    if wrong:
        return row | dict(refused=f'wrong, so not timed: {wrong}')
    try:

        def forward() -> None:
            with torch.no_grad():
                method.attend(inputs, grid)

        def both() -> None:
            out = method.attend(inputs, grid)
            torch.autograd.grad(
                out, inputs[: 3 if method.group == 'other' else None], torch.ones_like(out)
            )

        first = timed(forward, device, 1, 0)
        row['plan_ms'], row['padding'] = _time_plan(method, grid, device, runs)
        short = first.median > 1e3 * limit
        row['forward_ms'] = first if short else timed(forward, device, runs)
        if gradients and not short:
            row['both_ms'] = timed(both, device, runs)
        elif gradients:
            row['refused'] = f'one forward pass takes over {limit:g} s'
        if memory and not short:
            row['peak_mib'] = peak_memory(both if gradients else forward, device)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and 'memory' not in str(error):
            raise
        row['refused'] = f'out of memory: {" ".join(str(error).split())[:100]}'
    return row


def _time_plan(
    method: Method, grid: WindowGrid, device: torch.device, runs: int
) -> tuple[Any, float | None]:
    """Milliseconds to prepare the grid anew (taken once a stage, apart from attention), and what of
    it is padding; None for those that prepare nothing."""
    if not grid.derived:
        return None, None
    ((key, plan),) = grid.derived.items()
    details = key[2 + len(method.mixer.settings) :]
    parts = plan if isinstance(plan, tuple) and not hasattr(plan, 'padding') else (plan,)
    padding = next((p.padding for p in parts if hasattr(p, 'padding')), None)
    return timed(lambda: method.mixer.prepare(grid, *details), device, min(runs, 3)), padding


def lower_limits(
    cloud: Cloud, device: torch.device, dtype: torch.dtype, ceiling: dict[str, float]
) -> dict[str, float]:
    """Milliseconds below which stratified attention's forward pass cannot fall: each number read or
    written once, each product of the equation done once, at the device's ceilings."""
    plan = cloud.prepare(WIDTH, device).plan
    n, batch, size = (
        len(cloud.coords),
        cloud.batch_size,
        torch.empty((), dtype=dtype).element_size(),
    )
    pairs = float((plan.window_end - plan.window_start).double().sum()) + n * STRATA
    moved = (4 * n + 2 * batch * STRATA) * HEADS * WIDTH * size
    return dict(
        pairs=pairs,
        bytes_ms=moved / ceiling['copy_gb_s'] / 1e6,
        flops_ms=4 * HEADS * WIDTH * pairs / ceiling['matmul_gflop_s'] / 1e6,
    )


def run(
    clouds: list[Cloud],
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    only: list[str],
    limit: float,
) -> Iterator[dict[str, Any]]:
    """All methods in all settings; the results so far after each cloud."""
    ceiling, rows, limits = ceilings(device, dtype), [], {}
    for cloud in clouds:
        limits[cloud.name] = lower_limits(cloud, device, dtype, ceiling)
        field = methods(device, dtype, cloud.window_shape, only)
        for method in tqdm(field, desc=cloud.name):
            rows.append(time_method(method, cloud, device, dtype, runs, limit))
        yield dict(
            heads=HEADS, width=WIDTH, strata=STRATA, ceilings=ceiling, limits=limits, rows=rows
        )


def render(result: dict[str, Any]) -> str:
    """Tables of every cloud: the fastest setting of each baseline, then all of them."""
    parts = [
        f'H = {HEADS}, D = {WIDTH}, {STRATA} strata. Ceilings measured in this run: copy '
        f'{result["ceilings"]["copy_gb_s"]:.0f} GB/s, matrix product {result["ceilings"]["matmul_gflop_s"]:,.0f} '
        'GFLOP/s. Median milliseconds; plan: taken once a stage, in no other column.'
    ]
    for cloud, limit in result['limits'].items():
        rows = [row for row in result['rows'] if row['cloud'] == cloud]
        parts.append(
            f'## {cloud}: {rows[0]["rows"]:,} rows\n\nLimit of a forward pass of ours: '
            f'{number(limit["bytes_ms"])} ms to move the numbers, {number(limit["flops_ms"])} ms to multiply.'
        )
        for group, title in GROUPS.items():
            best = {}
            for row in (row for row in rows if row['group'] == group):
                held = best.get(row['name'])
                if held is None or _speed(row) < _speed(held):
                    best[row['name']] = row
            if best:
                parts.append(f'### {title}\n\n{_table(sorted(best.values(), key=_speed))}')
        parts.append(f'### every setting\n\n{_table(rows)}')
    return '\n\n'.join(parts)


def _speed(row: dict[str, Any]) -> tuple[float, float]:
    return tuple(
        row[key].median if row.get(key) else float('inf') for key in ('both_ms', 'forward_ms')
    )


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [['attention', 'forward', 'forward + backward', 'plan', 'peak MiB', 'padding', 'note']]
    for row in rows:
        settings = ', '.join(f'{name} {value}' for name, value in row['settings'].items())
        lines.append(
            [
                f'{row["name"]}'
                + (f' ({settings}{"; its authors" if row["default"] else ""})' if settings else ''),
                *(
                    number(row[key].median if row.get(key) else None)
                    for key in ('forward_ms', 'both_ms', 'plan_ms')
                ),
                number(row.get('peak_mib')),
                '-' if row.get('padding') is None else f'{row["padding"]:.0%}',
                row.get('refused', ''),
            ]
        )
    return table(lines)
