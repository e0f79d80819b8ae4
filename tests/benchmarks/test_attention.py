"""The attention benchmarks apart from their times: checks, refusals, counts and tables."""

import itertools
import math
import resource

import psutil
import pytest
import torch

from benchmarks.attention import complexity, ops, scaling
from benchmarks.attention.methods import check, make_inputs, methods
from benchmarks.default_config import WIDTH
from benchmarks.measure import Timing, bounded_memory, peak_memory
from benchmarks.point_clouds import take_rows, voxelize_samples
from projects.attention_zoo import OTHER_FUNCTION, SAME_FUNCTION, SetAttention
from stratified3d.ops.stratified_attention import BACKENDS

pytestmark = pytest.mark.slow

CPU, FP32 = torch.device('cpu'), torch.float32
CEILINGS = dict(copy_gb_s=10.0, matmul_gflop_s=100.0)
LIMITS = dict(bytes_ms=1.0, flops_ms=1.0)


@pytest.fixture(scope='module')
def batch():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(900, 3, generator=generator) * torch.tensor([20.0, 20, 3]) - torch.tensor(
        [10.0, 10, 3]
    )
    return voxelize_samples('random', [points])


def test_methods_are_our_backends_and_each_baseline_in_three_variants():
    found = methods(CPU, FP32, (32, 12, 12))
    names = [method.name for method in found]
    ours = {f'stratified3d {backend}' for backend in BACKENDS if backend != 'reference'}
    assert set(names) == ours | {kind.__name__ for kind in SAME_FUNCTION + OTHER_FUNCTION}
    for kind in SAME_FUNCTION + OTHER_FUNCTION:
        variants = [method for method in found if method.name == kind.__name__]
        assert len({str(method.settings) for method in variants}) == len(variants) >= 3
        default, *others = variants
        assert default.default and not any(method.default for method in others)
        assert default.settings == kind.defaults
    with pytest.raises(ValueError, match="'DSVT'; there are stratified3d"):
        methods(CPU, FP32, (32, 12, 12), ['DSVT'])


def test_method_without_enough_memory_is_refused(batch, monkeypatch):
    (method,) = methods(CPU, FP32, batch.window_shape, ['stratified3d sdpa'])
    attend = method.mixer.attend

    def greedy(*arguments):
        if len(arguments[0]) == len(batch.coords):  # not while it is checked
            torch.empty(2**40)
        return attend(*arguments)

    before = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(method.mixer, 'attend', greedy)
    row = ops.time_method(method, batch, CPU, FP32, 1, 30)
    assert row['refused'].startswith('out of memory: ') and 'both_ms' not in row
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_large_tensor_is_refused_by_bounded_memory_only():
    size = int(0.95 * psutil.virtual_memory().available) // 4
    with bounded_memory(CPU), pytest.raises(RuntimeError, match='memory'):
        torch.empty(size)
    assert len(torch.empty(size)) == size  # never touched


@pytest.mark.parametrize(
    'name', ['stratified3d sdpa', 'SSTAttention', 'SetAttention', 'SpatialReductionAttention']
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_correct_methods_pass_the_check(name, dtype):
    for method in methods(CPU, dtype, (32, 12, 12), [name]):
        assert check(method, CPU, dtype, True) is None


def test_wrong_method_is_refused(batch, monkeypatch):
    method = methods(CPU, FP32, (32, 12, 12), ['SetAttention'], tuned=False)[0]
    right = SetAttention.attend
    monkeypatch.setattr(
        SetAttention, 'attend', lambda self, q, k, v, grid: right(self, q, k * 1.01, v, grid)
    )
    row = ops.time_method(method, batch, CPU, FP32, 1, 30)
    assert (
        row['refused'].startswith('wrong, so not timed: output is off by')
        and 'forward_ms' not in row
    )
    monkeypatch.setattr(
        SetAttention,
        'attend',
        lambda self, q, k, v, grid: right(self, q, k.detach(), v, grid) + 0 * k,
    )
    assert 'gradient of k is off by' in ops.time_method(method, batch, CPU, FP32, 1, 30)['refused']


@pytest.mark.slow
def test_rows_and_tables_of_methods(batch):
    rows = [
        ops.time_method(c, batch, CPU, FP32, 1, 30)
        for c in methods(
            CPU,
            FP32,
            batch.window_shape,
            ['stratified3d sdpa', 'SSTAttention', 'FullAttention', 'VarlenAttention'],
        )
    ]
    for row in rows:
        if row['name'] == 'VarlenAttention':
            assert 'runs on CUDA' in row['refused'] and 'forward_ms' not in row
        else:
            assert (
                row['forward_ms'].median > 0 and row['both_ms'].median > 0 and row['peak_mib'] > 0
            )
    limits = ops.lower_limits(batch, CPU, FP32, CEILINGS)
    assert limits['bytes_ms'] > 0 and limits['flops_ms'] > 0
    text = ops.render(
        dict(
            ceilings=CEILINGS,
            rows=rows,
            limits={batch.name: limits},
        )
    )
    same, other = text.index('the same function'), text.index('another function')
    assert same < text.index('SSTAttention (lengths (') < other < text.index('FullAttention (')
    assert (
        text[text.index('every variant') :].count('; default)') == 3
    )  # one setting of each baseline


@pytest.mark.parametrize('second', [20.0, 4000.0])
def test_method_is_slow_if_its_second_forward_pass_is(batch, monkeypatch, second):
    method = methods(CPU, FP32, batch.window_shape, ['FullAttention'], tuned=False)[0]
    times = itertools.chain([5000.0, second], itertools.repeat(30.0))
    monkeypatch.setattr(ops, 'timed', lambda *args, **kwargs: Timing(*[next(times)] * 3))
    row = ops.time_method(method, batch, CPU, FP32, 1, limit=1)
    assert row['first_ms'].median == 5000
    if second < 1000:
        assert row['forward_ms'].median == 30 == row['both_ms'].median and 'refused' not in row
    else:
        assert row['forward_ms'].median == second and 'both_ms' not in row
        assert row['refused'] == 'one forward pass takes over 1 s'
    text = ops.render(dict(ceilings=CEILINGS, rows=[row], limits={batch.name: LIMITS}))
    assert 'the first call takes 5.00 s' in text


def test_parameters_inside_an_attention_get_their_gradient(batch):
    method = methods(CPU, FP32, batch.window_shape, ['LinformerAttention'], tuned=False)[0]
    gradients = []
    method.mixer.projection.register_hook(gradients.append)
    row = ops.time_method(method, batch, CPU, FP32, 1, 30)
    assert 'both_ms' in row and len(gradients) >= 2  # of the warm-up and of the run


def test_take_rows_keeps_the_density(batch):
    n = len(batch.coords)
    larger = take_rows(batch, 5 * n + 7)
    assert len(larger.coords) == 5 * n + 7 == len(larger.coords.unique(dim=0))
    plans = [c.prepare(WIDTH, CPU).plan for c in (batch, take_rows(batch, 5 * n))]
    sizes = [float((p.window_end - p.window_start).double().mean()) for p in plans]
    assert abs(sizes[1] / sizes[0] - 1) < 1e-9
    apart = larger.positions[:, 1] / 0.3 - larger.coords[:, 2]
    assert float(apart.max() - apart.min()) < 0.01  # still 0.3 m a voxel
    assert len(take_rows(batch, 100).coords) == 100


def test_exponent_is_the_slope_of_logarithms():
    rows = [1000, 2000, 4000, 8000]
    assert math.isclose(scaling.exponent(rows, [3e-3 * n**1.5 for n in rows]), 1.5)
    assert scaling.exponent(rows[:2], [1.0, 2.0]) is None


def test_forecast_extrapolates_the_last_two_sizes():
    series = [dict(rows=n, both_ms=Timing(t, t, t)) for n, t in ((1000, 1e3), (2000, 4e3))]
    assert math.isclose(scaling._forecast(series, 4000), 16)
    assert math.isclose(scaling._forecast(series[:1], 3000), 3)


def test_peak_memory_counts_what_is_allocated_at_once():
    assert abs(peak_memory(lambda: torch.ones(1 << 20) + torch.ones(1 << 20), CPU) - 12) < 0.1


@pytest.mark.parametrize('backend', ['numba', 'sdpa'])
def test_peak_memory_of_a_backward_pass_has_the_gradients(batch, backend):
    method = methods(CPU, FP32, batch.window_shape, [f'stratified3d {backend}'])[0]
    grid = batch.prepare(WIDTH, CPU)
    inputs = make_inputs(grid, CPU, FP32)
    out = method.attend(inputs, grid)
    gradient = torch.ones_like(out)
    peak = peak_memory(lambda: torch.autograd.grad(out, inputs, gradient), CPU)
    assert peak * 2**20 >= sum(x.nbytes for x in inputs)


@pytest.mark.parametrize('tokens', [196, pytest.param(4096, marks=pytest.mark.slow)])
def test_complexity_formulas_equal_the_count_of_torch(tokens):
    result = complexity.run([tokens])
    for name, counts in result['counts'].items():
        assert counts[tokens] == complexity.count_by_torch(name, tokens)
    assert result['without_projections']['full'][tokens] == 4 * tokens**2 * complexity.C


def test_claims_follow_the_counts_of_layers():
    result = complexity.run([196])
    assert all('does not hold' in line for line in complexity.check_claims(result))
    ours = f'stratified ({complexity.STRATA})'
    for part in ('counts', 'without_projections'):
        result[part][ours][196] = int(0.6 * result[part]['full'][196])
    assert all(': holds; it is 0.60x' in line for line in complexity.check_claims(result))


def test_point_network_flops_equal_those_of_its_layers():
    neighborhoods, points = [(8, 4, (3, 5))], [(10, (6, 7, 2))]
    x, y = torch.zeros(1, 3, 8, 4), torch.zeros(1, 6, 10)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        torch.nn.Conv2d(3, 5, 1)(x)
        torch.nn.Sequential(torch.nn.Conv1d(6, 7, 1), torch.nn.Conv1d(7, 2, 1))(y)
    assert complexity.point_network_flops(neighborhoods, points) == counter.get_total_flops()


def test_readme_of_the_zoo_lists_every_baseline(root):
    text = (root / 'projects/attention_zoo/README.md').read_text()
    for kind in SAME_FUNCTION + OTHER_FUNCTION:
        assert text.count(f'| `{kind.__name__}` |') == 1
        assert kind.__doc__ and set(kind.defaults)
