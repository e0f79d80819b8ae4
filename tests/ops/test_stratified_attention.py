import itertools

import pytest
import torch

from stratified3d import ops
from stratified3d.ops.stratified_attention import BACKENDS
from stratified3d.testing import (
    SHAPE_CASES,
    TOLERANCES,
    poisoned_memory,
    random_coords,
    relative_error,
)

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def runnable(dtype):
    """Backends that run here: on a GPU, or with TRITON_INTERPRET=1 (`test_kernels.py` sets it),
    Triton's too."""
    return [
        name
        for name in BACKENDS
        if not ops.unsupported_reason(name, torch.empty(1, 1, 8, dtype=dtype, device=DEVICE))
    ]


COMPARISONS = [
    pytest.param(backend, op, dtype, id=f'{backend}-{op}-{str(dtype)[6:]}')
    for op, dtype in itertools.product(['attention', 'window', 'collect', 'read'], TOLERANCES)
    for backend in runnable(dtype)
    if backend != 'reference'
]


def make_inputs(case, dtype, seed=0, bias='some_absent'):
    """Inputs of the three ops for a case, rounded to dtype, and the plan."""
    sizes, spatial_shape, window_shape, heads, width, strata = SHAPE_CASES[case]
    plan = ops.plan_windows(
        random_coords(sizes, spatial_shape, seed).to(DEVICE), window_shape, batch_size=len(sizes)
    )
    generator = torch.Generator().manual_seed(seed)
    n, b = sum(sizes), len(sizes)
    shapes = dict(
        q=(n, heads, width),
        k=(n, heads, width),
        v=(n, heads, width),
        strata_q=(b, strata, heads, width),
        strata_k=(b, strata, heads, width),
        strata_v=(b, strata, heads, width),
        strata_bias=(b, strata, heads),
    )
    inputs = {}
    for name, shape in shapes.items():
        # every second column of a wider tensor's rows: strides that are not those of a fresh tensor
        wide = torch.randn(*shape[:-1], 2 * shape[-1], generator=generator, dtype=torch.float64).to(
            DEVICE, dtype
        )
        inputs[name] = wide[..., : shape[-1]].detach().requires_grad_()
    bias_value = inputs['strata_bias'].detach().to(torch.promote_types(dtype, torch.float32))
    if bias == 'some_absent':
        bias_value[:, 1::3] = -torch.inf
    elif bias == 'all_absent':
        bias_value[:] = -torch.inf
    inputs['strata_bias'] = bias_value.requires_grad_()
    return inputs, plan


def run(op, inputs, plan, backend, wide=None):
    """Output and the gradient of every input of the op, computed in `wide` where given."""
    x = {
        name: (
            t
            if wide is None
            else t.detach().to(wide if name != 'strata_bias' else t.dtype).requires_grad_()
        )
        for name, t in inputs.items()
    }
    if op == 'attention':
        names = ['q', 'k', 'v', 'strata_k', 'strata_v', 'strata_bias']
        out = ops.stratified_attention(
            x['q'],
            x['k'],
            x['v'],
            plan,
            x['strata_k'],
            x['strata_v'],
            strata_bias=x['strata_bias'],
            backend=backend,
        )
    elif op == 'window':
        names = ['q', 'k', 'v']
        out = ops.stratified_attention(x['q'], x['k'], x['v'], plan, scale=0.7, backend=backend)
    elif op == 'collect':
        names = ['strata_q', 'k', 'v']
        out = ops.collect_strata(x['strata_q'], x['k'], x['v'], plan.batch_offsets, backend=backend)
    else:
        names = ['q', 'strata_k', 'strata_v', 'strata_bias']
        out = ops.read_strata(
            x['q'],
            x['strata_k'],
            x['strata_v'],
            plan.batch_offsets,
            strata_bias=x['strata_bias'],
            backend=backend,
        )
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    if not out.requires_grad:  # no strata at all: nothing depends on anything
        return out, {}
    grads = torch.autograd.grad(out, [x[name] for name in names], weight, allow_unused=True)
    return out, {
        name: torch.zeros_like(x[name]) if grad is None else grad
        for name, grad in zip(names, grads)
    }


@pytest.mark.parametrize('backend, op, dtype', COMPARISONS)
@pytest.mark.parametrize('case', SHAPE_CASES)
def test_fast_backends_equal_the_reference_in_output_and_every_gradient(backend, op, dtype, case):
    inputs, plan = make_inputs(case, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    expected, expected_grads = run(op, inputs, plan, 'reference', wide)
    with poisoned_memory():
        out, grads = run(op, inputs, plan, backend)
    assert out.dtype == dtype
    assert relative_error(out, expected) <= TOLERANCES[dtype]
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        assert relative_error(grad, expected_grads[name]) <= TOLERANCES[dtype], name


@pytest.mark.parametrize('backend', runnable(torch.float64))
@pytest.mark.parametrize('case', ['plain', 'empty_between', 'fewer_rows_than_strata'])
def test_every_backend_equals_one_dense_masked_softmax(backend, case):
    inputs, plan = make_inputs(case, torch.float64)
    q, k, v, sk, sv, bias = (
        inputs[n].detach() for n in ('q', 'k', 'v', 'strata_k', 'strata_v', 'strata_bias')
    )
    rows = torch.arange(len(q), device=DEVICE)
    window = (plan.window_start[:, None] <= rows) & (rows < plan.window_end[:, None])
    keys = torch.cat([k, sk.flatten(0, 1)])
    values = torch.cat([v, sv.flatten(0, 1)])
    owner = torch.arange(len(sk), device=DEVICE).repeat_interleave(sk.shape[1])
    seen = torch.cat([window, plan.sample[:, None] == owner], 1)
    logits = torch.einsum('ihd,jhd->ijh', q, keys) * q.shape[-1] ** -0.5
    logits[:, len(q) :] += bias.flatten(0, 1)
    expected = torch.einsum(
        'ijh,jhd->ihd', logits.masked_fill(~seen[..., None], -torch.inf).softmax(1), values
    )
    out = ops.stratified_attention(q, k, v, plan, sk, sv, strata_bias=bias, backend=backend)
    assert relative_error(out, expected) < 1e-12


@pytest.mark.parametrize('backend', runnable(torch.float64))
@pytest.mark.parametrize(
    'op', [pytest.param('attention', marks=pytest.mark.slow), 'collect', 'read']
)
def test_attention_backends_pass_gradcheck(backend, op):
    plan = ops.plan_windows(random_coords((7, 0, 4), (1, 4, 4)).to(DEVICE), (1, 2, 2), batch_size=3)
    generator = torch.Generator().manual_seed(3)
    q, k, v = torch.randn(3, 11, 2, 6, generator=generator, dtype=torch.float64).unbind(0)
    sq, sk, sv = torch.randn(3, 3, 3, 2, 6, generator=generator, dtype=torch.float64).unbind(0)
    bias = torch.randn(3, 3, 2, generator=generator, dtype=torch.float64)
    functions = dict(
        attention=(
            lambda q, k, v, sk, sv, b: ops.stratified_attention(
                q, k, v, plan, sk, sv, strata_bias=b, backend=backend
            ),
            (q, k, v, sk, sv, bias),
        ),
        collect=(
            lambda sq, k, v: ops.collect_strata(sq, k, v, plan.batch_offsets, backend=backend),
            (sq, k, v),
        ),
        read=(
            lambda q, sk, sv, b: ops.read_strata(
                q, sk, sv, plan.batch_offsets, strata_bias=b, backend=backend
            ),
            (q, sk, sv, bias),
        ),
    )
    function, tensors = functions[op]
    assert torch.autograd.gradcheck(
        function, [t.to(DEVICE, copy=True).requires_grad_() for t in tensors]
    )


@pytest.mark.parametrize('backend', runnable(torch.float32))
def test_absent_strata_change_nothing_and_get_no_gradient(backend):
    inputs, plan = make_inputs('plain', torch.float32, bias='all_absent')
    out, grads = run('attention', inputs, plan, backend)
    alone = ops.stratified_attention(inputs['q'], inputs['k'], inputs['v'], plan, backend=backend)
    assert relative_error(out, alone) < 1e-6
    assert not grads['strata_k'].any() and not grads['strata_v'].any()
    assert all(g.isfinite().all() for g in grads.values())
    out, grads = run('read', inputs, plan, backend)
    assert not out.any() and all(g.isfinite().all() for g in grads.values())


@pytest.mark.parametrize('backend', runnable(torch.float32))
@pytest.mark.parametrize('tensor', ['q', 'k', 'v'])
def test_nan_stays_in_its_window(backend, tensor):
    inputs, plan = make_inputs('plain', torch.float32, bias='none')
    row = 37
    with torch.no_grad():
        inputs[tensor][row] = torch.nan
    hurt = torch.zeros(len(plan.sample), dtype=torch.bool, device=DEVICE)
    hurt[plan.window_start[row] : plan.window_end[row]] = True
    out = ops.stratified_attention(
        inputs['q'],
        inputs['k'],
        inputs['v'],
        plan,
        inputs['strata_k'],
        inputs['strata_v'],
        strata_bias=inputs['strata_bias'],
        backend=backend,
    )
    assert out[~hurt].isfinite().all() and out[row].isnan().all()
    grads = torch.autograd.grad(out[~hurt].sum(), [inputs[n] for n in ('q', 'k', 'v')])
    assert all(g[~hurt].isfinite().all() for g in grads)


@pytest.mark.parametrize('backend', runnable(torch.float32))
def test_nan_in_one_sample_stays_there(backend):
    inputs, plan = make_inputs('plain', torch.float32)
    with torch.no_grad():
        inputs['k'][:10] = torch.nan  # all of sample 0
        inputs['strata_k'][0] = torch.nan
    outs = [
        ops.collect_strata(
            inputs['strata_q'], inputs['k'], inputs['v'], plan.batch_offsets, backend=backend
        )[1],
        ops.read_strata(
            inputs['q'], inputs['strata_k'], inputs['strata_v'], plan.batch_offsets, backend=backend
        )[plan.sample == 1],
    ]
    assert all(out.isfinite().all() for out in outs)


def test_large_strata_bias_keeps_its_precision_in_bf16():
    inputs, plan = make_inputs('plain', torch.bfloat16, bias='none')
    with torch.no_grad():
        inputs['strata_bias'] -= 800
    expected, _ = run('read', inputs, plan, 'reference', torch.float32)
    for backend in runnable(torch.bfloat16):
        assert (
            relative_error(run('read', inputs, plan, backend)[0], expected)
            <= TOLERANCES[torch.bfloat16]
        )


def test_collect_gives_zeros_for_infinite_queries_of_an_empty_sample():
    inputs, plan = make_inputs('empty_between', torch.float32)
    for backend in runnable(torch.float32):
        out = ops.collect_strata(
            inputs['strata_q'].detach() * torch.inf,
            inputs['k'],
            inputs['v'],
            plan.batch_offsets,
            backend=backend,
        )
        assert not out[1].any()


@pytest.mark.parametrize('backend', runnable(torch.bfloat16))
def test_autocast_lowers_all_but_the_bias(backend):
    inputs, plan = make_inputs('plain', torch.float32)
    lowered = {
        name: x if name == 'strata_bias' else x.detach().bfloat16() for name, x in inputs.items()
    }
    for op in ('attention', 'collect', 'read'):
        with torch.autocast(DEVICE, torch.bfloat16):
            # as a layer's mixed inputs may come: some lowered by a linear layer, some not
            mixed = inputs | {name: lowered[name].requires_grad_() for name in ('k', 'strata_v')}
            out, grads = run(op, mixed, plan, backend)
        assert (
            out.dtype == torch.bfloat16
            and grads[{'collect': 'strata_q'}.get(op, 'q')].dtype == torch.float32
        )
        expected = run(
            op, {name: x.detach().requires_grad_() for name, x in lowered.items()}, plan, backend
        )[0]
        assert torch.equal(out, expected)


def test_attention_of_large_logits_does_not_overflow():
    inputs, plan = make_inputs('plain', torch.float32, bias='none')
    for backend in runnable(torch.float32):
        out = ops.stratified_attention(
            inputs['q'] * 1e3,
            inputs['k'] * 1e3,
            inputs['v'],
            plan,
            inputs['strata_k'],
            inputs['strata_v'],
            strata_bias=inputs['strata_bias'],
            backend=backend,
        )
        assert out.isfinite().all() and out.abs().max() <= max(
            inputs['v'].abs().max(), inputs['strata_v'].abs().max()
        )


def test_backend_is_the_argument_or_the_environment_or_the_fastest(monkeypatch):
    q = torch.zeros(2, 1, 8, device=DEVICE)
    assert ops.choose_backend(None, q) == runnable(q.dtype)[0]
    monkeypatch.setenv('STRATIFIED3D_BACKEND', 'reference')
    assert ops.choose_backend(None, q) == 'reference' and ops.choose_backend('sdpa', q) == 'sdpa'
    assert ops.unsupported_reason('sdpa', q) is None
    assert 'none of fp64, fp32' in ops.unsupported_reason('sdpa', q.long())
    with pytest.raises(ValueError, match="'cudnn'; known are"):
        ops.choose_backend('cudnn', q)


def test_backend_may_be_an_object_with_the_three_functions():
    calls = []

    class Recording:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(BACKENDS['reference'], name)

    inputs, plan = make_inputs('plain', torch.float32)
    for op in ('attention', 'collect', 'read'):
        out, grads = run(op, inputs, plan, Recording())
        expected, expected_grads = run(op, inputs, plan, 'reference')
        assert torch.equal(out, expected)
        assert all(torch.equal(grad, expected_grads[name]) for name, grad in grads.items())
    assert calls == ['stratified_attention', 'collect_strata', 'read_strata']


def bad_calls():
    inputs, plan = make_inputs('plain', torch.float32)
    q, k, v, sk, sv, bias = (
        inputs[n].detach() for n in ('q', 'k', 'v', 'strata_k', 'strata_v', 'strata_bias')
    )
    attend, collect, read = ops.stratified_attention, ops.collect_strata, ops.read_strata
    offsets = plan.batch_offsets
    return [
        (lambda: attend(q, k[:, :1], v, plan), 'q, k, v are .* one shape'),
        (
            lambda: attend(q, k.half(), v, plan),
            'q .* torch.float32 .* k .* torch.float16',
        ),
        (lambda: attend(q[:10], k[:10], v[:10], plan), '240 rows, q has 10'),
        (
            lambda: attend(
                *(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)), plan
            ),
            'q: the last stride',
        ),
        (lambda: attend(q, k, v, plan, sk), 'come together'),
        (lambda: attend(q, k, v, plan, strata_bias=bias), 'given without'),
        (lambda: attend(q, k, v, plan, sk[:1], sv[:1]), 'with B = 2'),
        (lambda: attend(q, k, v, plan, sk.double(), sv.double()), 'share dtype'),
        (
            lambda: attend(q, k, v, plan, sk, sv, strata_bias=bias[:, :2]),
            r'strata_bias is \[B, M, H\]',
        ),
        (
            lambda: attend(q, k, v, plan._replace(window_end=plan.window_end + 999)),
            'outside rows 0 to 240',
        ),
        (
            lambda: attend(q, k, v, plan._replace(batch_offsets=offsets * 2)),
            'from 0 to 240',
        ),
        (lambda: collect(sk, k, v, offsets[:2]), r'\[B \+ 1\] = \[3\]'),
        (lambda: collect(sk, k, v, offsets.flip(0)), 'from 0 to 240, not'),
        (lambda: collect(sk.half(), k, v, offsets), 'matching k'),
        (lambda: read(q, sk, sv[:, :1], offsets), 'strata_v are'),
        (
            lambda: read(q.long(), sk.long(), sv.long(), offsets),
            'torch.int64',
        ),
        (lambda: collect(sk, k, v, offsets.float()), f'integers on {DEVICE}'),
    ]


@pytest.mark.parametrize('number', range(17))
def test_bad_calls_are_refused_before_anything_runs(number, monkeypatch):
    monkeypatch.setenv('STRATIFIED3D_CHECK', '1')  # on a GPU values are not looked at otherwise
    call, message = bad_calls()[number]
    with pytest.raises(ValueError, match=message):
        call()


def test_all_bad_calls_are_tested():
    assert len(bad_calls()) == 17
