"""The parts of the kernel benchmark that a CPU can check; its times need a GPU."""

import subprocess
import sys

import pytest
import torch

from benchmarks.attention import kernels
from stratified3d import ops
from stratified3d.doctor import kernels as verification
from stratified3d.testing import random_coords

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_verification_notices_a_wrong_backend(monkeypatch):
    checks = verification.verify(
        'cpu', 'sdpa', ['empty_between', 'no_strata'], [torch.float32, torch.bfloat16]
    )
    assert len(checks) == 2 * 2 * 6 and all(check['correct'] for check in checks)
    right = ops.stratified_attention
    monkeypatch.setattr(
        ops,
        'stratified_attention',
        lambda *args, backend, **kw: (
            right(*args, backend=backend, **kw) * (1.01 if backend == 'sdpa' else 1)
        ),
    )
    checks = verification.verify('cpu', 'sdpa', ['empty_between'], [torch.float32])
    assert {check['function'] for check in checks if not check['correct']} == {
        'attention',
        'windows',
    }


@pytest.mark.parametrize('name', ['permute_rows', 'apply_rotary'])
def test_verification_notices_wrong_rows(monkeypatch, name):
    right = getattr(ops, name)
    wrong = {
        'permute_rows': lambda x, order, inverse: right(x, inverse, order),
        'apply_rotary': lambda x, cos, sin, backend: right(
            x, cos, sin if backend == 'reference' else -sin
        ),
    }
    monkeypatch.setattr(ops, name, wrong[name])
    checks = verification.verify('cpu', 'sdpa', ['plain'], [torch.float32])
    assert [check['function'] for check in checks if not check['correct']] == [
        dict(permute_rows='permute', apply_rotary='rotate')[name]
    ]


def test_gradient_that_was_never_written_is_wrong(monkeypatch):
    right = verification.forward_backward
    answers = iter([lambda parts: parts, lambda parts: [*parts[:-1], parts[-1] * torch.nan]] * 6)
    monkeypatch.setattr(verification, 'forward_backward', lambda *args: next(answers)(right(*args)))
    checks = verification.verify('cpu', 'sdpa', ['plain'], [torch.float32])
    assert len(checks) == 6 and not any(check['correct'] for check in checks)
    assert all(check['error'] != check['error'] for check in checks)


@pytest.mark.slow
def test_verification_covers_the_shapes_of_training():
    checks = verification.verify('cpu', 'sdpa', ['default', 'wide', 'widest'], [torch.float32])
    assert len(checks) == 3 * 6 and all(check['correct'] for check in checks)


def test_minimum_work_counts_bytes_and_operations():
    plan = ops.plan_windows(
        random_coords([64], (1, 8, 8)), (1, 4, 4), batch_size=1
    )  # four windows of 16
    work = kernels.minimum_work(plan, heads=2, width=8, strata=3, itemsize=2)
    row = 64 * 2 * 8 * 2
    # forward reads three arrays and writes one; backward reads five and writes three
    assert work['windows'] == (12 * row, 14 * 16 * 64 * 16)
    assert (
        work['attention'][1] - work['windows'][1]
        == 14 * 16 * 64 * 3
        == work['read'][1]
        == work['collect'][1]
    )
    assert (
        work['rotate'][0] == 4 * row + 2 * 64 * 4 * 8 and work['permute'][0] == 4 * row + 2 * 64 * 8
    )


def test_repeated_frame_is_one_sample_per_copy():
    coords = random_coords([50], (1, 8, 8))
    many, copies = kernels.repeat_frame(coords, 120)
    assert copies == 3 and many[:, 0].bincount().tolist() == [50, 50, 20]
    assert torch.equal(many[50:100, 1:], coords[:, 1:])


def test_scaling_exponent_is_the_slope_on_logarithmic_axes():
    rows = [dict(rows=n, graph=3e-5 * n**1.1) for n in (100_000, 300_000, 1_000_000)]
    assert kernels.scaling_exponent(rows) == pytest.approx(1.1)


@pytest.mark.parametrize(('milliseconds', 'calls'), [(0.01, 56), (5.0, 1)])
def test_median_span_does_not_count_starting_the_clock(milliseconds, calls):
    spans = []

    def span(function, repeats):  # a clock that takes 8 microseconds to start
        spans.append(repeats)
        return 0.008 + repeats * milliseconds

    assert kernels.median_span(lambda: None, 3, span) == pytest.approx(milliseconds, rel=0.02)
    assert spans == [1] * 3 + [calls] * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason='here it runs')
@pytest.mark.slow
def test_kernel_benchmark_without_a_gpu_says_so(root):
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'benchmarks.attention.kernels'],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 1 and 'no CUDA device' in result.stderr and not result.stdout
