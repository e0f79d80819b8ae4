"""What only the numba backend has; that it computes what the reference does is tested with all
backends in test_stratified_attention.py."""

import multiprocessing
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratified3d import ops
from stratified3d.ops.stratified_attention.cpu import launch
from stratified3d.testing import random_coords, relative_error


def make_inputs(sizes, window_shape, width, strata, seed=0, spatial_shape=(4, 64, 64)):
    plan = ops.plan_windows(
        random_coords(sizes, spatial_shape, seed), window_shape, batch_size=len(sizes)
    )
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(sum(sizes), 2, width, generator=generator) for _ in range(3)]
    tokens = [torch.randn(len(sizes), strata, 2, width, generator=generator) for _ in range(2)]
    return [x.requires_grad_() for x in (*rows, *tokens)], plan


def run(inputs, plan, backend):
    """Output and gradients."""
    q, k, v, strata_k, strata_v = inputs
    out = ops.stratified_attention(q, k, v, plan, strata_k, strata_v, backend=backend)
    return [out, *torch.autograd.grad(out.square().sum(), inputs)]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 120), min_size=1, max_size=3),
    window=st.integers(1, 40),
    width=st.integers(1, 40),
    strata=st.integers(0, 20),
    seed=st.integers(0, 1000),
)
def test_any_shape_equals_the_reference(sizes, window, width, strata, seed):
    inputs, plan = make_inputs(sizes, (4, window, window), width, strata, seed)
    if not strata:
        inputs = inputs[:3]
    tokens = inputs[3:] or (None, None)
    results = []
    for backend in ('numba', 'reference'):
        out = ops.stratified_attention(*inputs[:3], plan, *tokens, backend=backend)
        grads = torch.autograd.grad(out.square().sum(), inputs, allow_unused=True)
        grads = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads)]
        results.append([out, *grads])
    for got, expected in zip(*results):
        assert relative_error(got, expected) < 1e-5


def test_a_long_window_equals_the_reference():
    inputs, plan = make_inputs([3000], (4, 64, 64), 16, 3)
    assert int(plan.window_end[0]) == 3000
    for got, expected in zip(run(inputs, plan, 'numba'), run(inputs, plan, 'reference')):
        assert relative_error(got, expected) < 1e-5


def test_results_do_not_depend_on_the_number_of_threads():
    inputs, plan = make_inputs([2500, 0, 1000], (4, 8, 8), 32, 16)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(run(inputs, plan, 'numba'))
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*results):
        assert torch.equal(one, three)


@pytest.mark.parametrize('scale', [1e-3, 1.0, 30.0, 1e4])
def test_weights_of_extreme_logits_are_those_of_the_reference(scale):
    """The exponential function is a polynomial here; its error does not depend on the logits."""
    inputs, plan = make_inputs([300], (4, 16, 16), 8, 5)
    with torch.no_grad():
        inputs[0] *= scale
        inputs[2].fill_(1.0)
        inputs[4].fill_(1.0)
        out, exact = (
            ops.stratified_attention(*inputs[:3], plan, *inputs[3:], backend=backend)
            for backend in ('numba', 'reference')
        )
    assert float((out - 1).abs().max()) < 1e-6, 'weights add up to one'
    assert float((out - exact).abs().max()) < 1e-6


def _square_all(connection):
    results = [0] * 8
    launch._run_all(lambda i: results.__setitem__(i, i * i), 8)
    connection.send(results)


def test_a_forked_process_has_threads_of_its_own():
    """A fork copies no threads, so work given to those of its parent would never be done."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context('fork').Process(
        target=_square_all, args=(theirs,), daemon=True
    )
    try:
        launch._run_all(lambda i: None, 8)
        child.start()
        assert ours.poll(20), 'the child waits for threads that it does not have'
        assert ours.recv() == [i * i for i in range(8)]
    finally:
        torch.set_num_threads(before)
        child.kill()


def test_backend_is_the_default_on_a_cpu_and_refuses_fp64():
    q = torch.zeros(1, 1, 8)
    assert ops.choose_backend(None, q) == 'numba'
    assert ops.choose_backend(None, q.double()) == 'sdpa'
    assert 'float64' in ops.unsupported_reason('numba', q.double())


def test_compiled_functions_take_a_backend_that_can_be_traced():
    inputs, plan = make_inputs([40], (4, 8, 8), 8, 3)
    q, k, v, strata_k, strata_v = (x.detach() for x in inputs)

    def attend(q, k, v, strata_k, strata_v):
        return ops.stratified_attention(q, k, v, plan, strata_k, strata_v)

    compiled = torch.compile(attend, backend='eager')
    torch.testing.assert_close(
        compiled(q, k, v, strata_k, strata_v), attend(q, k, v, strata_k, strata_v)
    )


def test_ops_import_without_the_compiler():
    """It takes a second, which no command that compiles nothing should wait for."""
    code = 'import sys, stratified3d.ops; sys.exit("torch._dynamo" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True)
