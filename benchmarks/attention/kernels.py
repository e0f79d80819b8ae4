"""Verify the attention kernels on this GPU, then time them beside the limits of the device."""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.default_config import (
    HEADS,
    POINT_CLOUD_RANGE,
    SPATIAL_SHAPE,
    STRATA,
    VOXEL_SIZE,
    WIDTH,
    WINDOW_SHAPE,
)
from stratified3d import __version__, ops
from stratified3d.doctor.kernels import (
    CASES,
    Function,
    forward_backward,
    list_functions,
    make_inputs,
    verify,
)
from stratified3d.testing import random_coords

SHORTEST_SPAN = 1.0  # milliseconds between two events; shorter calls are repeated
SHORTEST_GRAPH = 0.2  # milliseconds of a graph's calls, as Python launches them
ROWS = (200_000, 100_000, 300_000, 1_000_000)
EXPONENT_ROWS = (100_000, 300_000, 1_000_000)
EXAMPLES = """examples:
  python -m benchmarks.attention.kernels
  python -m benchmarks.attention.kernels --out results --runs 50
"""


class TimingCase(NamedTuple):
    """name; coords [N, 4] int32 (batch, z, y, x); batch_size; window_shape (z, y, x)."""

    name: str
    coords: Tensor
    batch_size: int
    window_shape: tuple[int, int, int]


def minimum_work(
    plan: ops.WindowPlan, heads: int, width: int, strata: int, itemsize: int
) -> dict[str, tuple[int, int]]:
    """(bytes, FLOPs) that forward and backward of each function need at least.

    The README of stratified_attention derives them.
    """
    num_rows = len(plan.order)
    batch_size = len(plan.batch_offsets) - 1
    channels = heads * width
    pairs = int((plan.window_end - plan.window_start).sum())

    row_bytes = num_rows * channels * itemsize
    token_bytes = batch_size * strata * channels * itemsize
    index_bytes = 8 * num_rows
    table_bytes = 8 * num_rows * (width // 2)  # two fp32 numbers per pair of channels

    window_flops = 14 * channels * pairs
    strata_flops = 14 * channels * num_rows * strata
    rotary_flops = 6 * channels * num_rows
    return {
        'attention': (12 * row_bytes + 6 * token_bytes, window_flops + strata_flops),
        'windows': (12 * row_bytes, window_flops),
        'collect': (6 * row_bytes + 6 * token_bytes, strata_flops),
        'read': (6 * row_bytes + 6 * token_bytes, strata_flops),
        'rotate': (4 * row_bytes + 2 * table_bytes, rotary_flops),
        'permute': (4 * row_bytes + 2 * index_bytes, 0),
    }


def frame_coords(device: str) -> Tensor:
    """Voxels of one simulated frame of ten sweeps, as the default config sees it: [N, 4] int32."""
    from stratified3d.simulation.frame import simulate_frame

    points = torch.from_numpy(simulate_frame(0, sweeps=10)['points'])
    batch_index = torch.zeros(len(points), dtype=torch.int64)
    voxels = ops.voxelize(points, batch_index, VOXEL_SIZE, POINT_CLOUD_RANGE)
    return voxels.coords.to(device)


def repeat_frame(coords: Tensor, rows: int) -> tuple[Tensor, int]:
    """Copies of a frame, each a sample, that make up the rows (the last one cut), and their
    number."""
    copies = -(-rows // len(coords))
    samples = torch.arange(copies, dtype=torch.int32, device=coords.device)
    many = coords.repeat(copies, 1)
    many[:, 0] = samples.repeat_interleave(len(coords))
    return many[:rows].contiguous(), copies


def time_call(call: Callable[[], Any], runs: int) -> dict[str, float]:
    """Median milliseconds of a call: `graph`, replayed in a CUDA graph, and `eager`, launched by
    Python.

    `eager` is the time per call in a queue of calls. Short calls are repeated between two events
    until these are a millisecond apart, so that starting the clock does not count. What fits into
    the L2 cache stays there from one call to the next.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)

    eager = median_span(call, runs, _cuda_span)
    # a graph of one short call would measure its own launch
    calls = max(1, math.ceil(SHORTEST_GRAPH / eager))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return dict(graph=median_span(graph.replay, runs, _cuda_span) / calls, eager=eager)


def median_span(
    function: Callable[[], Any], runs: int, span: Callable[[Callable[[], Any], int], float]
) -> float:
    """Median milliseconds of a function over runs; `span` times several calls in a row."""
    # the first replay of a graph uploads it
    shortest = min(span(function, 1) for _ in range(3))
    repeats = math.ceil(SHORTEST_SPAN / max(shortest, 1e-3))
    return statistics.median(span(function, repeats) / repeats for _ in range(runs))


def _cuda_span(function: Callable[[], Any], repeats: int) -> float:
    begin = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def measure_ceilings(runs: int) -> dict[str, float]:
    """Bytes per second of a copy and FLOPs per second of a large bf16 product on this device."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device='cuda')
    target = torch.empty_like(source)
    side = 8192
    a, b = torch.randn(2, side, side, device='cuda', dtype=torch.bfloat16).unbind(0)
    copy = time_call(lambda: target.copy_(source), runs)
    multiply = time_call(lambda: a @ b, runs)
    return dict(
        bytes_per_second=2 * source.numel() / (copy['graph'] / 1e3),
        flops_per_second=2 * side**3 / (multiply['graph'] / 1e3),
    )


def time_case(case: TimingCase, ceilings: dict[str, float], runs: int) -> list[dict]:
    """Time the plan and every function, forward and backward in bf16, on the voxels of a case."""

    def make_plan() -> ops.WindowPlan:
        return ops.plan_windows(
            case.coords,
            case.window_shape,
            batch_size=case.batch_size,
            spatial_shape=SPATIAL_SHAPE,
        )

    plan = make_plan()
    inputs = make_inputs(plan, HEADS, WIDTH, STRATA, torch.bfloat16)
    shared = dict(case=case.name, rows=len(case.coords))
    rows = [dict(shared, function='plan', **time_call(make_plan, runs))]

    limits = minimum_work(plan, HEADS, WIDTH, STRATA, itemsize=2)
    for name, function in list_functions(inputs, plan, 'triton').items():
        size, flops = limits[name]
        seconds_to_move = size / ceilings['bytes_per_second']
        seconds_to_compute = flops / ceilings['flops_per_second']
        roofline = 1e3 * max(seconds_to_move, seconds_to_compute)

        times = _time_function(function, inputs, runs)
        rows.append(
            dict(
                shared,
                function=name,
                **times,
                roofline=roofline,
                times_roofline=times['graph'] / roofline,
                bytes=size,
                flops=flops,
            )
        )
    return rows


def _time_function(function: Function, x: dict[str, Tensor], runs: int) -> dict[str, float]:
    """Times, and peak memory relative to that of inputs, outputs and gradients."""
    inputs = [x[name] for name in function.inputs]
    grad = torch.randn_like(function.call())

    def both() -> list[Tensor]:
        return forward_backward(function.call, inputs, grad)

    results = both()
    held = sum(_num_bytes(t) for t in (*inputs, grad, *results))
    before = torch.cuda.memory_allocated() - held
    del results
    torch.cuda.reset_peak_memory_stats()
    both()
    peak = torch.cuda.max_memory_allocated() - before
    return dict(time_call(both, runs), peak_over_held=peak / held)


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def scaling_exponent(rows: Sequence[dict], key: str = 'graph') -> float:
    """Exponent of time over rows between the smallest and the largest case."""
    first = min(rows, key=lambda row: row['rows'])
    last = max(rows, key=lambda row: row['rows'])
    return math.log(last[key] / first[key]) / math.log(last['rows'] / first['rows'])


def list_cases(device: str, rows: Sequence[int], sides: Sequence[int]) -> list[TimingCase]:
    """A simulated frame, copies of it that make up so many rows, and a full plane in windows.

    Args:
        sides: of the plane's square windows, in voxels.
    """
    frame = frame_coords(device)
    cases = [TimingCase('ten sweeps', frame, 1, WINDOW_SHAPE)]
    for count in rows:
        cases.append(TimingCase(f'{count} rows', *repeat_frame(frame, count), WINDOW_SHAPE))

    # 256 x 256 voxels: windows of one length, from one row to thousands
    plane = random_coords([65536], (1, 256, 256)).to(device)
    for side in sides:
        cases.append(TimingCase(f'windows of {side * side}', plane, 1, (1, side, side)))
    return cases


def time_all(ceilings: dict[str, float], runs: int) -> tuple[list[dict], dict[str, float]]:
    """Rows of the table, and the exponent of time over rows by function."""
    rows = []
    cases = list_cases('cuda', ROWS, sides=(1, 2, 4, 8, 16, 32, 64))
    for case in tqdm(cases, desc='timing', disable=None):
        rows += time_case(case, ceilings, runs)

    exponents = {}
    for function in ('plan', 'attention', 'collect'):
        exponents[function] = scaling_exponent(
            [row for row in rows if row['function'] == function and row['rows'] in EXPONENT_ROWS]
        )
    return rows, exponents


def render(record: dict[str, Any]) -> str:
    """Ceilings, times of every function and exponents, as a table."""
    checks = len(record['verification'])
    bandwidth = record['ceilings']['bytes_per_second'] / 1e12
    compute = record['ceilings']['flops_per_second'] / 1e12
    lines = [
        f'{checks} comparisons with the reference passed; '
        f'{bandwidth:.2f} TB/s, {compute:.0f} TFLOP/s',
        f'{"case":<18}{"function":<11}{"rows":>9}{"graph ms":>10}{"eager ms":>10}'
        f'{"x roofline":>12}{"x memory":>10}',
    ]
    lines += [_render_row(row) for row in record['times']]
    exponents = ', '.join(f'{name} {value:.2f}' for name, value in record['exponents'].items())
    lines.append(f'exponents of time from 100,000 to 1,000,000 rows: {exponents}')
    return '\n'.join(lines)


def _render_row(row: dict[str, Any]) -> str:
    roofline = _two_decimals(row.get('times_roofline'))
    memory = _two_decimals(row.get('peak_over_held'))
    return (
        f'{row["case"]:<18}{row["function"]:<11}{row["rows"]:>9}{row["graph"]:>10.3f}'
        f'{row["eager"]:>10.3f}{roofline:>12}{memory:>10}'
    )


def _two_decimals(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('benchmarks/results'),
        help='results go to OUT/<device>/attention.json (default: %(default)s)',
    )
    parser.add_argument(
        '--runs', type=int, default=30, help='timed runs per median (default: %(default)s)'
    )
    args = parser.parse_args()
    if args.runs < 1:
        parser.error(f'--runs must be at least 1, not {args.runs}')
    return args


def check_device() -> str | None:
    """Why the kernels cannot be timed here, or None."""
    if not torch.cuda.is_available():
        return (
            'there is no CUDA device here; GPU times cannot be measured on another device. '
            'On a CPU, tools/benchmark.py times the whole encoder.'
        )
    q = torch.empty(1, 1, WIDTH, device='cuda', dtype=torch.bfloat16)
    reason = ops.unsupported_reason('triton', q)
    return f'the kernels cannot run: {reason}' if reason else None


def main() -> int:
    args = parse_args()
    problem = check_device()
    if problem:
        sys.exit(f'benchmark: {problem}')
    checks = verify('cuda', 'triton', list(CASES), [torch.float32, torch.float16, torch.bfloat16])
    wrong = [check for check in checks if not check['correct']]
    if wrong:
        sys.exit('benchmark: wrong results, nothing was timed:\n' + '\n'.join(map(str, wrong)))

    ceilings = measure_ceilings(args.runs)
    rows, exponents = time_all(ceilings, args.runs)
    import triton

    device = torch.cuda.get_device_name()
    versions = dict(
        stratified3d=__version__,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        triton=triton.__version__,
    )
    record = dict(
        device=device,
        versions=versions,
        ceilings=ceilings,
        exponents=exponents,
        times=rows,
        verification=checks,
    )
    folder = re.sub(r'\W+', '-', device).strip('-').lower()
    path = args.out / folder / 'attention.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + '\n')
    print(render(record))
    print(f'written: {path}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
