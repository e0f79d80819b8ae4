"""`python -m benchmarks.attention.kernels`: verify the attention kernels on this GPU, then time them
against its limits."""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from stratified3d import __version__, ops
from stratified3d.testing import (
    SHAPE_CASES,
    TOLERANCES,
    ShapeCase,
    poisoned_memory,
    random_coords,
    relative_error,
)

# the default nuScenes config: voxels and range in meters, windows of its first stage, heads, strata
VOXEL_SIZE, RANGE = (0.3, 0.3, 0.25), (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
WINDOW, SPATIAL_SHAPE = (32, 12, 12), (32, 360, 360)
HEADS, WIDTH, STRATA = 4, 32, 64
# besides the odd shapes those that are trained: other tile sizes, several tiles of tokens
CASES = SHAPE_CASES | {
    'default': ShapeCase((3000, 0, 2000), (8, 40, 40), (8, 12, 12), HEADS, WIDTH, STRATA),
    'wide': ShapeCase((900, 300), (8, 40, 40), (8, 12, 12), 2, 64, 128),
    'widest': ShapeCase((900, 300), (8, 40, 40), (8, 12, 12), 1, 128, 100),
}
SHORTEST_SPAN = 1.0  # milliseconds that are timed as one
EXAMPLES = """examples:
  python -m benchmarks.attention.kernels
  python -m benchmarks.attention.kernels --out results --runs 50
"""


def make_inputs(
    plan: ops.WindowPlan, heads: int, width: int, strata: int, dtype: torch.dtype, seed: int = 0
) -> dict[str, Tensor]:
    """Random q, k, v [N, H, D] as a layer makes them (one projection), tokens [B, M, H, D], bias
    [B, M, H]."""
    generator = torch.Generator().manual_seed(seed)
    device, n, batch = plan.order.device, len(plan.order), len(plan.batch_offsets) - 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    rows = normal(n, 3, heads, width).to(dtype).unbind(1)
    tokens = normal(3, batch, strata, heads, width).to(dtype).unbind(0)
    bias = normal(batch, strata, heads) - math.log(max(strata, 1))
    names = ('q', 'k', 'v', 'strata_q', 'strata_k', 'strata_v', 'strata_bias')
    return {name: x.detach().requires_grad_() for name, x in zip(names, (*rows, *tokens, bias))}


def functions(
    x: dict[str, Tensor], plan: ops.WindowPlan, backend: str
) -> dict[str, tuple[Callable, list[str]]]:
    """What a block calls on these inputs, and the names of the inputs that each differentiates."""
    row = torch.arange(len(plan.order), device=plan.order.device)
    turn = ops.rotary_angles(
        torch.stack([row % size for size in (97, 89, 7)], -1) * VOXEL_SIZE[0], x['q'].shape[-1]
    )
    return {
        'attention': (
            lambda: ops.stratified_attention(
                x['q'],
                x['k'],
                x['v'],
                plan,
                x['strata_k'],
                x['strata_v'],
                strata_bias=x['strata_bias'],
                backend=backend,
            ),
            ['q', 'k', 'v', 'strata_k', 'strata_v', 'strata_bias'],
        ),
        'windows': (
            lambda: ops.stratified_attention(x['q'], x['k'], x['v'], plan, backend=backend),
            ['q', 'k', 'v'],
        ),
        'collect': (
            lambda: ops.collect_strata(
                x['strata_q'], x['k'], x['v'], plan.batch_offsets, backend=backend
            ),
            ['strata_q', 'k', 'v'],
        ),
        'read': (
            lambda: ops.read_strata(
                x['q'],
                x['strata_k'],
                x['strata_v'],
                plan.batch_offsets,
                strata_bias=x['strata_bias'],
                backend=backend,
            ),
            ['q', 'strata_k', 'strata_v', 'strata_bias'],
        ),
        'rotate': (lambda: ops.apply_rotary(x['q'], *turn, backend=backend), ['q']),
        'permute': (
            lambda: (
                x['q'][plan.order]
                if backend == 'reference'
                else ops.permute_rows(x['q'], plan.order, plan.inverse)
            ),
            ['q'],
        ),
    }


def forward_backward(call: Callable, inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """The output and the gradient of every input."""
    out = call()
    if not out.requires_grad:  # no strata at all: nothing depends on anything
        return [out]
    return [out, *torch.autograd.grad(out, inputs, grad, materialize_grads=True)]


def verify(
    device: str, backend: str, cases: Sequence[str], dtypes: Sequence[torch.dtype]
) -> list[dict]:
    """Largest error of output and gradients of every function against the reference in fp32, per
    case and dtype."""
    rows = []
    for name, dtype in tqdm(
        [(c, d) for c in cases for d in dtypes], desc='verifying', disable=None
    ):
        case = CASES[name]
        coords = random_coords(case.sizes, case.spatial_shape).to(device)
        plan = ops.plan_windows(coords, case.window_shape, batch_size=len(case.sizes))
        x = make_inputs(plan, case.heads, case.width, case.strata, dtype)
        wide = {key: value.detach().float().requires_grad_() for key, value in x.items()}
        truths = functions(wide, plan, 'reference')
        for op, (call, names) in functions(x, plan, backend).items():
            grad = torch.randn_like(call())
            if (
                op == 'collect' and case.strata
            ):  # a row's share in a token is small, its error must not look small
                grad *= max(1, len(coords) // case.strata)
            truth = forward_backward(truths[op][0], [wide[key] for key in names], grad.float())
            with poisoned_memory():
                found = forward_backward(call, [x[key] for key in names], grad)
            errors = [relative_error(a, b) for a, b in zip(found, truth)]  # NaN where one holds NaN
            rows.append(
                dict(
                    function=op,
                    case=name,
                    dtype=str(dtype)[6:],
                    error=max(errors, key=lambda error: (error != error, error)),
                    right=all(error <= TOLERANCES[dtype] for error in errors),
                )
            )
    return rows


def work(
    plan: ops.WindowPlan, heads: int, width: int, strata: int, itemsize: int
) -> dict[str, tuple[int, int]]:
    """(bytes, FLOPs) that forward and backward of each function need at least; derived in the op's
    README."""
    n, batch = len(plan.order), len(plan.batch_offsets) - 1
    row, tokens = n * heads * width * itemsize, batch * strata * heads * width * itemsize
    in_windows = int((plan.window_end - plan.window_start).sum())
    return {
        'attention': (12 * row + 6 * tokens, 14 * heads * width * (in_windows + n * strata)),
        'windows': (12 * row, 14 * heads * width * in_windows),
        'collect': (6 * row + 6 * tokens, 14 * heads * width * n * strata),
        'read': (6 * row + 6 * tokens, 14 * heads * width * n * strata),
        # the tables are two fp32 numbers a pair of channels; an index is eight bytes
        'rotate': (4 * row + 2 * n * 8 * (width // 2), 6 * n * heads * width),
        'permute': (4 * row + 2 * n * 8, 0),
    }


def frame_coords(device: str) -> Tensor:
    """Voxels of one simulated frame of ten sweeps, as the default config sees it: [N, 4] int32."""
    from stratified3d.simulation import simulate_frame

    points = torch.from_numpy(simulate_frame(0, sweeps=10)['points'])
    return ops.voxelize(
        points, torch.zeros(len(points), dtype=torch.int64), VOXEL_SIZE, RANGE
    ).coords.to(device)


def repeat_frame(coords: Tensor, rows: int) -> tuple[Tensor, int]:
    """As many copies of a frame, each a sample, as make up the rows (the last one cut), and their
    number."""
    copies = -(-rows // len(coords))
    samples = torch.arange(copies, dtype=torch.int32, device=coords.device).repeat_interleave(
        len(coords)
    )
    many = coords.repeat(copies, 1)
    many[:, 0] = samples
    return many[:rows].contiguous(), copies


def time_call(call: Callable, runs: int) -> dict[str, float]:
    """Milliseconds of a call, medians: `graph` of its replays in a CUDA graph, `eager` as Python
    launches it.

    `eager` is what a queue of calls takes each. Short calls are repeated between two events until
    these are a millisecond apart, so that starting the clock does not count; what fits into the L2
    cache stays there from one to the next.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return {
        name: median_span(function, runs, _cuda_span)
        for name, function in (('graph', graph.replay), ('eager', call))
    }


def median_span(function: Callable, runs: int, span: Callable[[Callable, int], float]) -> float:
    """Median milliseconds of a function over runs; `span` takes those of several calls in a row."""
    once = max(
        min(span(function, 1) for _ in range(3)), 1e-3
    )  # the first replay of a graph uploads it
    repeats = math.ceil(SHORTEST_SPAN / once)
    return statistics.median(span(function, repeats) / repeats for _ in range(runs))


def _cuda_span(function: Callable, repeats: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def measure_ceilings(runs: int) -> dict[str, float]:
    """Bytes a second of a copy and FLOPs a second of a large bf16 product on this device."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device='cuda')
    target = torch.empty_like(source)
    a, b = torch.randn(2, 8192, 8192, device='cuda', dtype=torch.bfloat16).unbind(0)
    copy, multiply = time_call(lambda: target.copy_(source), runs), time_call(lambda: a @ b, runs)
    return dict(
        bytes_per_second=2 * source.numel() / (copy['graph'] / 1e3),
        flops_per_second=2 * 8192**3 / (multiply['graph'] / 1e3),
    )


def time_plan(
    name: str,
    coords: Tensor,
    batch: int,
    window_shape: Sequence[int],
    ceilings: dict[str, float],
    runs: int,
) -> list[dict]:
    """Plan and the functions, forward and backward in bf16, on these voxels."""

    def make_plan() -> ops.WindowPlan:
        return ops.plan_windows(coords, window_shape, batch_size=batch, spatial_shape=SPATIAL_SHAPE)

    plan = make_plan()
    x = make_inputs(plan, HEADS, WIDTH, STRATA, torch.bfloat16)
    rows = [dict(case=name, function='plan', rows=len(coords), **time_call(make_plan, runs))]
    floors = work(plan, HEADS, WIDTH, STRATA, 2)
    for op, (call, names) in functions(x, plan, 'triton').items():
        inputs = [x[key] for key in names]
        grad = torch.randn_like(call())
        found = forward_backward(call, inputs, grad)
        held = sum(t.numel() * t.element_size() for t in (*inputs, grad, *found))
        before = torch.cuda.memory_allocated() - sum(
            t.numel() * t.element_size() for t in (*inputs, grad, *found)
        )
        del found
        torch.cuda.reset_peak_memory_stats()
        forward_backward(call, inputs, grad)
        peak = torch.cuda.max_memory_allocated() - before
        times = time_call(
            lambda call=call, inputs=inputs, grad=grad: forward_backward(call, inputs, grad), runs
        )
        size, flops = floors[op]
        floor = 1e3 * max(size / ceilings['bytes_per_second'], flops / ceilings['flops_per_second'])
        rows.append(
            dict(
                case=name,
                function=op,
                rows=len(coords),
                **times,
                roofline=floor,
                times_roofline=times['graph'] / floor,
                bytes=size,
                flops=flops,
                peak_over_held=peak / held,
            )
        )
    return rows


def growth(rows: Sequence[dict], key: str = 'graph') -> float:
    """Exponent of time over rows between the smallest and the largest case."""
    first, last = min(rows, key=lambda r: r['rows']), max(rows, key=lambda r: r['rows'])
    return math.log(last[key] / first[key]) / math.log(last['rows'] / first['rows'])


def take_times(ceilings: dict[str, float], runs: int) -> tuple[list[dict], dict[str, float]]:
    """Rows of the table, and the exponents of growth by function."""
    frame = frame_coords('cuda')
    cases = [('ten sweeps', frame, 1, WINDOW)]
    cases += [
        (f'{n} rows', *repeat_frame(frame, n), WINDOW)
        for n in (200_000, 100_000, 300_000, 1_000_000)
    ]
    # a full plane of 256 x 256 voxels: windows of one length, from one row to thousands
    plane = random_coords([65536], (1, 256, 256)).cuda()
    cases += [
        (f'windows of {side * side}', plane, 1, (1, side, side))
        for side in (1, 2, 4, 8, 16, 32, 64)
    ]
    rows = []
    for case in tqdm(cases, desc='timing', disable=None):
        rows += time_plan(*case, ceilings, runs)
    large = [row for row in rows if row['rows'] in (100_000, 300_000, 1_000_000)]
    return rows, {
        op: growth([r for r in large if r['function'] == op])
        for op in ('plan', 'attention', 'collect')
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('benchmarks/results'),
        help='a folder of the device lies in it',
    )
    parser.add_argument(
        '--runs', type=int, default=30, help='timed runs of which the median is taken'
    )
    args = parser.parse_args()
    if args.runs < 1:
        parser.error(f'--runs is at least 1, not {args.runs}')
    if not torch.cuda.is_available():
        sys.exit(
            'benchmark: there is no CUDA device here; GPU times cannot be taken on another one. '
            'On a CPU, tools/benchmark.py times the whole encoder.'
        )
    reason = ops.unsupported_reason(
        'triton', torch.empty(1, 1, WIDTH, device='cuda', dtype=torch.bfloat16)
    )
    if reason:
        sys.exit(f'benchmark: the kernels cannot run: {reason}')
    checks = verify('cuda', 'triton', list(CASES), [torch.float32, torch.float16, torch.bfloat16])
    wrong = [check for check in checks if not check['right']]
    if wrong:
        sys.exit('benchmark: wrong results, nothing was timed:\n' + '\n'.join(map(str, wrong)))
    device = torch.cuda.get_device_name()
    ceilings = measure_ceilings(args.runs)
    rows, exponents = take_times(ceilings, args.runs)
    import triton

    record = dict(
        device=device,
        versions=dict(
            stratified3d=__version__,
            torch=torch.__version__,
            cuda=torch.version.cuda,
            triton=triton.__version__,
        ),
        ceilings=ceilings,
        growth=exponents,
        times=rows,
        verification=checks,
    )
    path = args.out / re.sub(r'\W+', '-', device).strip('-').lower() / 'attention.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + '\n')
    print(
        f'{len(checks)} comparisons with the reference passed; {ceilings["bytes_per_second"] / 1e12:.2f} TB/s, '
        f'{ceilings["flops_per_second"] / 1e12:.0f} TFLOP/s\n{"case":<18}{"function":<11}{"rows":>9}{"graph ms":>10}'
        f'{"eager ms":>10}{"x roofline":>12}{"x memory":>10}'
    )
    for row in rows:
        ratios = [
            f'{row[key]:.2f}' if key in row else '-' for key in ('times_roofline', 'peak_over_held')
        ]
        print(
            f'{row["case"]:<18}{row["function"]:<11}{row["rows"]:>9}{row["graph"]:>10.3f}{row["eager"]:>10.3f}'
            f'{ratios[0]:>12}{ratios[1]:>10}'
        )
    print(
        'growth from 100,000 to 1,000,000 rows: '
        + ', '.join(f'{k} {v:.2f}' for k, v in exponents.items())
    )
    print(f'written: {path}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
