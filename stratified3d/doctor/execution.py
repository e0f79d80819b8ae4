"""How the attention runs on a GPU: without waiting, within a CUDA graph, and compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from stratified3d import ops
from stratified3d.doctor.checks import SkippedCheck
from stratified3d.doctor.kernels import forward_backward, list_functions, make_inputs
from stratified3d.testing import TOLERANCES, random_coords, relative_error

SIZES = (3000, 0, 2000)  # voxels per sample
SPATIAL_SHAPE = (8, 40, 40)
WINDOW_SHAPE = (8, 12, 12)
HEADS, WIDTH, STRATA = 4, 32, 64


def check_no_wait(device: str) -> str:
    """Plan, attention, tokens and rotation, forward and backward, never wait for the device."""
    _require_cuda(device)
    coords = random_coords(SIZES, SPATIAL_SHAPE).to(device)
    inputs = make_inputs(_plan(coords), HEADS, WIDTH, STRATA, torch.bfloat16)
    _forward_backward_all(coords, inputs)  # compiles the kernels
    with no_waiting():
        _forward_backward_all(coords, inputs)
    return 'forward and backward'


def check_graph(device: str) -> str:
    """A captured plan and attention give, replayed, what they give outside the graph."""
    _require_cuda(device)
    first, second = (random_coords(SIZES, SPATIAL_SHAPE, seed).to(device) for seed in (0, 1))
    inputs = _detached_inputs(first)
    coords = first.clone()  # read by the graph

    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            _forward(coords, inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = _forward(coords, inputs)

        largest = 0.0
        for other in (first, second):
            coords.copy_(other)
            graph.replay()
            for found, expected in zip(outputs, _forward(other, inputs)):
                largest = _expect_near(found, expected, 1e-5, largest)
    return f'two replays, largest error {largest:.1e}'


def check_compile(device: str) -> str:
    """torch.compile of each function in one graph gives the same outputs and gradients."""
    _require_triton(device, torch.float32)
    coords = random_coords(SIZES, SPATIAL_SHAPE).to(device)
    plan = _plan(coords)
    x = make_inputs(plan, HEADS, WIDTH, STRATA, torch.float32)
    compiler = 'inductor' if device.startswith('cuda') else 'aot_eager'
    largest = 0.0
    for call, names in list_functions(x, plan, 'triton').values():
        inputs = [x[name] for name in names]
        largest = max(largest, _error_of_compiled(call, inputs, compiler))
    return f'{compiler}, largest error {largest:.1e}'


def _error_of_compiled(call: Callable[[], Tensor], inputs: list[Tensor], compiler: str) -> float:
    """Largest error of output and gradients of a call that is compiled."""
    compiled = torch.compile(call, fullgraph=True, backend=compiler)
    grad = torch.randn_like(call())
    expected = forward_backward(call, inputs, grad)
    found = forward_backward(compiled, inputs, grad)
    largest = 0.0
    for value, wanted in zip(found, expected):
        largest = _expect_near(value, wanted, TOLERANCES[torch.float32], largest)
    return largest


def check_long_addresses(device: str) -> str:
    """Rows beyond 2^31 elements are read and written where they are."""
    _require_cuda(device)
    heads, width, rows = 16, 128, 1_100_000
    needed = 3 * rows * heads * width * 2
    free = torch.cuda.mem_get_info(device)[0]
    if free < needed:
        raise SkippedCheck(f'needs {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free')
    q = torch.randn(rows, heads, width, device=device, dtype=torch.bfloat16)
    row = torch.arange(rows, device=device, dtype=torch.int32)
    offsets = torch.tensor([0, rows], device=device, dtype=torch.int32)
    plan = ops.WindowPlan(row.long(), row.long(), row, row + 1, torch.zeros_like(row), offsets)
    # in windows of one row every row finds its own value
    assert torch.equal(ops.stratified_attention(q, q, q, plan), q), 'rows are mixed up'
    return f'{rows:,} rows of {heads} x {width}'


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Within the block an operation that waits for the GPU raises an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


def _require_cuda(device: str) -> None:
    if not device.startswith('cuda'):
        raise SkippedCheck('needs a CUDA device')
    _require_triton(device, torch.bfloat16)


def _require_triton(device: str, dtype: torch.dtype) -> None:
    reason = ops.unsupported_reason('triton', torch.empty(1, 1, WIDTH, dtype=dtype, device=device))
    if reason:
        raise SkippedCheck(reason)


def _plan(coords: Tensor) -> ops.WindowPlan:
    return ops.plan_windows(
        coords, WINDOW_SHAPE, batch_size=len(SIZES), spatial_shape=SPATIAL_SHAPE
    )


def _forward_backward_all(coords: Tensor, inputs: dict[str, Tensor]) -> None:
    for call, names in list_functions(inputs, _plan(coords), 'triton').values():
        out = call()
        torch.autograd.grad(out, [inputs[name] for name in names], torch.ones_like(out))


def _detached_inputs(coords: Tensor) -> dict[str, Tensor]:
    x = make_inputs(_plan(coords), HEADS, WIDTH, STRATA, torch.bfloat16)
    return {name: value.detach() for name, value in x.items()}


def _forward(coords: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    functions = list_functions(inputs, _plan(coords), 'triton')
    return [function.call() for function in functions.values()]


def _expect_near(value: Tensor, expected: Tensor, tolerance: float, largest: float) -> float:
    """The larger of an error and the largest one before; raises where it is not tolerable."""
    error = relative_error(value, expected)
    assert error <= tolerance, f'error {error:.1e}, at most {tolerance:.0e} is rounding'
    return max(largest, error)
