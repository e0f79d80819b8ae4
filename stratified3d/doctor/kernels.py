"""Compare the outputs and gradients of the attention kernels with the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stratified3d import ops
from stratified3d.testing import (
    SHAPE_CASES,
    TOLERANCES,
    ShapeCase,
    exact_products,
    poisoned_memory,
    random_coords,
    relative_error,
)

# besides the odd shapes, and before them, those that are trained: other tile sizes, several tiles
# of tokens
CASES = {
    'default': ShapeCase((3000, 0, 2000), (8, 40, 40), (8, 12, 12), 4, 32, 64),
    'wide': ShapeCase((900, 300), (8, 40, 40), (8, 12, 12), 2, 64, 128),
    'widest': ShapeCase((900, 300), (8, 40, 40), (8, 12, 12), 1, 128, 100),
    **SHAPE_CASES,
}


class Function(NamedTuple):
    """call: a function on given inputs; inputs: names of those that it differentiates."""

    call: Callable[[], Tensor]
    inputs: list[str]


def make_inputs(
    plan: ops.WindowPlan, heads: int, width: int, strata: int, dtype: torch.dtype, seed: int = 0
) -> dict[str, Tensor]:
    """Random inputs of all functions, by name.

    Returns:
        q, k, v [N, H, D], views of one projection as in a layer; strata_q, strata_k, strata_v
        [B, M, H, D]; strata_bias [B, M, H] in fp32.
    """
    device = plan.order.device
    generator = torch.Generator(device).manual_seed(seed)
    num_rows = len(plan.order)
    batch_size = len(plan.batch_offsets) - 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    q, k, v = normal(num_rows, 3, heads, width).to(dtype).unbind(1)
    tokens = normal(3, batch_size, strata, heads, width).to(dtype)
    bias = normal(batch_size, strata, heads) - math.log(max(strata, 1))
    inputs = dict(
        q=q,
        k=k,
        v=v,
        strata_q=tokens[0],
        strata_k=tokens[1],
        strata_v=tokens[2],
        strata_bias=bias,
    )
    return {name: x.detach().requires_grad_() for name, x in inputs.items()}


def list_functions(x: dict[str, Tensor], plan: ops.WindowPlan, backend: str) -> dict[str, Function]:
    """What a block calls on the inputs x, by name."""
    q, k, v = x['q'], x['k'], x['v']
    strata_k, strata_v = x['strata_k'], x['strata_v']
    bias = x['strata_bias']
    offsets = plan.batch_offsets
    cos, sin = _rotary_tables(len(q), q.shape[-1], q.device)

    def attend() -> Tensor:
        return ops.stratified_attention(
            q, k, v, plan, strata_k, strata_v, strata_bias=bias, backend=backend
        )

    def attend_in_windows() -> Tensor:
        return ops.stratified_attention(q, k, v, plan, backend=backend)

    def collect() -> Tensor:
        return ops.collect_strata(x['strata_q'], k, v, offsets, backend=backend)

    def read() -> Tensor:
        return ops.read_strata(q, strata_k, strata_v, offsets, strata_bias=bias, backend=backend)

    def rotate() -> Tensor:
        return ops.apply_rotary(q, cos, sin, backend=backend)

    def permute() -> Tensor:
        if backend == 'reference':
            return q[plan.order]
        return ops.permute_rows(q, plan.order, plan.inverse)

    return {
        'attention': Function(attend, ['q', 'k', 'v', 'strata_k', 'strata_v', 'strata_bias']),
        'windows': Function(attend_in_windows, ['q', 'k', 'v']),
        'collect': Function(collect, ['strata_q', 'k', 'v']),
        'read': Function(read, ['q', 'strata_k', 'strata_v', 'strata_bias']),
        'rotate': Function(rotate, ['q']),
        'permute': Function(permute, ['q']),
    }


def _rotary_tables(num_rows: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    row = torch.arange(num_rows, device=device)
    positions = torch.stack([row % size for size in (97, 89, 7)], -1) * 0.3
    return ops.rotary_angles(positions, width)


def forward_backward(
    call: Callable[[], Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> list[Tensor]:
    """The output and the gradient of every input."""
    out = call()
    if not out.requires_grad:  # no strata at all: nothing depends on anything
        return [out]
    return [out, *torch.autograd.grad(out, inputs, grad, materialize_grads=True)]


def verify(
    device: str, backend: str, cases: Sequence[str], dtypes: Sequence[torch.dtype]
) -> list[dict]:
    """Compare every function with the reference in fp32, per case and dtype.

    Args:
        cases: keys of `CASES`.
    Returns:
        One dict per comparison: function, case, dtype, error (the largest of output and gradients,
        NaN where one of them contains NaN) and correct (all of them within `TOLERANCES`).
    """
    rows = []
    for case in cases:
        for dtype in dtypes:
            rows += _verify_case(case, device, backend, dtype)
    return rows


def _verify_case(name: str, device: str, backend: str, dtype: torch.dtype) -> list[dict]:
    case = CASES[name]
    coords = random_coords(case.sizes, case.spatial_shape).to(device)
    plan = ops.plan_windows(coords, case.window_shape, batch_size=len(case.sizes))
    x = make_inputs(plan, case.heads, case.width, case.strata, dtype)
    x_fp32 = {key: value.detach().float().requires_grad_() for key, value in x.items()}
    functions = list_functions(x, plan, backend)
    references = list_functions(x_fp32, plan, 'reference')

    rows = []
    for function, (call, names) in functions.items():
        grad = torch.randn_like(call())
        if function == 'collect' and case.strata:
            # a row's share in a token is small, its error must not look small
            grad *= max(1, len(coords) // case.strata)

        inputs_fp32 = [x_fp32[key] for key in names]
        with exact_products():
            expected = forward_backward(references[function].call, inputs_fp32, grad.float())
        with poisoned_memory():
            results = forward_backward(call, [x[key] for key in names], grad)
        rows.append(
            dict(
                function=function,
                case=name,
                dtype=str(dtype).removeprefix('torch.'),
                **_compare(results, expected, TOLERANCES[dtype]),
            )
        )
    return rows


def _compare(
    results: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float
) -> dict[str, float | bool]:
    errors = [relative_error(value, wanted) for value, wanted in zip(results, expected)]
    largest = max(errors, key=lambda error: (math.isnan(error), error))
    return dict(error=largest, correct=all(error <= tolerance for error in errors))
