"""The Triton backend as torch sees it, on a GPU or under Triton's interpreter.

`test_kernels.py` runs it under the interpreter.
"""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from stratified3d import ops
from stratified3d.layers.attention import MixerContext, StratifiedAttention
from stratified3d.layers.window_grid import build_window_grid
from stratified3d.testing import TOLERANCES, poisoned_memory, random_coords, relative_error

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
REASON = ops.unsupported_reason('triton', torch.empty(1, 1, 8, device=DEVICE))
pytestmark = pytest.mark.skipif(REASON is not None, reason=f'Triton backend: {REASON}')
SHAPE = (4, 20, 20)


def make_inputs(sizes, window_shape=(4, 6, 6), heads=2, width=16, strata=5, seed=0):
    """(q, k, v), plan, (strata_q, strata_k, strata_v), bias; the bias has an absent token."""
    generator = torch.Generator().manual_seed(seed)
    plan = ops.plan_windows(
        random_coords(sizes, SHAPE, seed).to(DEVICE), window_shape, batch_size=len(sizes)
    )
    rows = torch.randn(sum(sizes), 3, heads, width, generator=generator).to(DEVICE)
    tokens = torch.randn(3, len(sizes), strata, heads, width, generator=generator).to(DEVICE)
    bias = torch.randn(len(sizes), strata, heads, generator=generator).to(DEVICE)
    bias[:, 1:2] = -torch.inf
    return rows.unbind(1), plan, tokens.unbind(0), bias


def results(backend, sizes, **shape):
    """Outputs of the three functions and the gradients of all inputs of each."""
    rows, plan, tokens, bias = make_inputs(sizes, **shape)
    (q, k, v), (sq, sk, sv) = (
        [x.detach().requires_grad_() for x in group] for group in (rows, tokens)
    )
    bias.requires_grad_()
    calls = [
        (
            ops.stratified_attention(q, k, v, plan, sk, sv, strata_bias=bias, backend=backend),
            [q, k, v, sk, sv, bias],
        ),
        (ops.collect_strata(sq, k, v, plan.batch_offsets, backend=backend), [sq, k, v]),
        (
            ops.read_strata(q, sk, sv, plan.batch_offsets, strata_bias=bias, backend=backend),
            [q, sk, sv, bias],
        ),
    ]
    found = []
    for out, inputs in calls:
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        found += [out, *torch.autograd.grad(out, inputs, weight, materialize_grads=True)]
    return found


@pytest.mark.slow
@settings(deadline=None, max_examples=5, derandomize=True)
@example(sizes=[100], heads=1, width=8, strata=3, window=(4, 20, 20))  # a window longer than a tile
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    heads=st.integers(1, 2),
    width=st.integers(1, 40),
    strata=st.integers(1, 40),
    window=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)),
)
def test_kernels_equal_the_reference_for_any_shape(sizes, heads, width, strata, window):
    shape = dict(window_shape=window, heads=heads, width=width, strata=strata)
    with poisoned_memory():
        found = results('triton', sizes, **shape)
    for value, expected in zip(found, results('reference', sizes, **shape)):
        assert relative_error(value, expected) <= TOLERANCES[torch.float32]


@settings(deadline=None, max_examples=10, derandomize=True)
@example(rows=(130,), heads=3, width=32, pairs=15)  # several tiles
@example(rows=(2, 5), heads=2, width=128, pairs=64)
@example(rows=(0,), heads=2, width=8, pairs=4)
@given(
    rows=st.lists(st.integers(1, 6), min_size=1, max_size=2),
    heads=st.integers(1, 3),
    width=st.integers(1, 40),
    pairs=st.integers(0, 20),
)
def test_rotary_kernel_equals_complex_products(rows, heads, width, pairs):
    generator = torch.Generator().manual_seed(0)
    pairs = min(pairs, width // 2)
    x = (
        torch.randn(*rows, 3, heads, width, generator=generator)
        .to(DEVICE)[..., 1, :, :]
        .requires_grad_()
    )
    tables = torch.randn(2, *rows, pairs, generator=generator).to(DEVICE).unbind(0)
    weight = torch.randn(x.shape, generator=generator).to(DEVICE)
    with poisoned_memory():
        out = torch.ops.stratified3d.rotate(x, *tables, False)
        found = [out, *torch.autograd.grad(out, x, weight)]
    # fp64 is not for the kernels
    wide = x.detach().double().requires_grad_()
    expected = ops.apply_rotary(wide, *(table.double() for table in tables))
    for value, wanted in zip(
        found, [expected, *torch.autograd.grad(expected, wide, weight.double())]
    ):
        assert relative_error(value, wanted) <= TOLERANCES[torch.float32]


def test_other_backends_rotate_without_the_kernel(monkeypatch):
    from stratified3d.ops.stratified_attention import kernels as triton

    x, tables = torch.randn(3, 1, 8, device=DEVICE), torch.randn(2, 3, 4, device=DEVICE)
    expected = ops.apply_rotary(x, *tables, backend='triton')
    monkeypatch.setattr(triton, 'rotate', lambda *_: 1 / 0)
    for backend in ('sdpa', 'reference'):
        assert relative_error(ops.apply_rotary(x, *tables, backend=backend), expected) < 1e-6
    with pytest.raises(ZeroDivisionError):
        ops.apply_rotary(x, *tables)
    monkeypatch.setenv('STRATIFIED3D_BACKEND', 'sdpa')
    assert relative_error(ops.apply_rotary(x, *tables), expected) < 1e-6


@pytest.mark.slow
def test_kernels_take_many_samples_in_one_tile():
    sizes = [3, 0, 1, 0, 0, 7, 2, 0, 5, 1, 1, 0, 30, 0]
    shape = dict(heads=1, strata=2)
    for value, expected in zip(
        results('triton', sizes, **shape), results('reference', sizes, **shape)
    ):
        assert relative_error(value, expected) <= TOLERANCES[torch.float32]


def test_weights_below_the_range_of_fp16_keep_their_gradients():
    """One row takes nearly all weight; the others' share, 2e-7 to 1e-6, is three to sixteen steps
    of fp16."""
    torch.manual_seed(0)
    rows, width = 90, 16
    k = torch.randn(rows, 1, width, device=DEVICE) * 0.1
    q = torch.zeros(1, 3, 1, width, device=DEVICE)
    q[..., 0], k[:, 0, 0], k[40, 0, 0] = 8.0, -1.0, 1.0  # logits apart by 14 to 15
    k[:, 0, 0] += torch.rand(rows, device=DEVICE) * 0.12
    tensors = [
        x.half().requires_grad_() for x in (q, k, torch.randn(rows, 1, width, device=DEVICE))
    ]
    offsets = torch.tensor([0, rows], dtype=torch.int32, device=DEVICE)
    grad = (torch.randn(q.shape, device=DEVICE) * 2000).half()
    found, expected = (
        torch.autograd.grad(
            ops.collect_strata(*inputs, offsets, scale=0.9, backend=backend),
            inputs,
            grad.to(inputs[0].dtype),
        )
        for backend, inputs in (
            ('triton', tensors),
            ('reference', [x.detach().double().requires_grad_() for x in tensors]),
        )
    )
    small = [i for i in range(rows) if i != 40]
    errors = [
        (a[small].double() - b[small]).norm() / b[small].norm()
        for a, b in zip(found[1:], expected[1:])
    ]
    assert max(errors) < 1e-3


@pytest.mark.slow
def test_results_of_kernels_repeat_bit_by_bit():
    first, second = (results('triton', (70, 0, 40), strata=6) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
@pytest.mark.parametrize('tensor', ['q', 'k', 'v', 'grad'])
def test_what_is_not_finite_stays_in_its_window_in_both_directions(tensor, value):
    (q, k, v), plan, _, _ = make_inputs((70, 40), heads=1, width=8)
    tensors = dict(q=q.clone(), k=k.clone(), v=v.clone(), grad=torch.randn_like(q))
    for row in (37, 90):
        tensors[tensor][row, :, 3] = value
    hurt = torch.zeros(len(q), dtype=torch.bool, device=DEVICE)
    for row in (37, 90):
        hurt[plan.window_start[row] : plan.window_end[row]] = True
    results = {}
    for backend in ('triton', 'reference'):
        inputs = [tensors[name].detach().requires_grad_() for name in 'qkv']
        out = ops.stratified_attention(*inputs, plan, backend=backend)
        results[backend] = [out, *torch.autograd.grad(out, inputs, tensors['grad'])]
    for found, expected in zip(results['triton'], results['reference']):
        assert found[~hurt].isfinite().all()
        assert relative_error(found[~hurt], expected[~hurt]) <= TOLERANCES[torch.float32]
        # nothing that should be hurt comes out as a number
        assert not (found.isfinite() & ~expected.isfinite()).any()


@pytest.mark.slow
def test_what_is_not_finite_stays_in_its_sample():
    rows, plan, (sq, sk, sv), bias = make_inputs((70, 0, 90))
    for tensor in (*rows, sq, sk, sv):
        tensor[0 if tensor.dim() == 4 else slice(0, 70)] = torch.nan
    (q, k, v), tokens = (
        [x.detach().requires_grad_() for x in group] for group in (rows, (sq, sk, sv))
    )
    sq, sk, sv = tokens
    outs = [
        ops.stratified_attention(q, k, v, plan, sk, sv, strata_bias=bias, backend='triton'),
        ops.read_strata(q, sk, sv, plan.batch_offsets, strata_bias=bias, backend='triton'),
        ops.collect_strata(sq, k, v, plan.batch_offsets, backend='triton'),
    ]
    assert (
        outs[0][70:].isfinite().all()
        and outs[1][70:].isfinite().all()
        and outs[2][1:].isfinite().all()
    )
    grads = torch.autograd.grad(outs, [q, k, v, *tokens], [torch.ones_like(x) for x in outs])
    assert all(g[70:].isfinite().all() for g in grads[:3]) and all(
        g[1:].isfinite().all() for g in grads[3:]
    )


def test_rows_after_the_last_sample_attend_to_their_windows_alone():
    (q, k, v), plan, (sq, sk, sv), bias = make_inputs((60, 40, 30))
    short = plan._replace(batch_offsets=plan.batch_offsets[:3])  # the last sample is no longer one
    op = torch.ops.stratified3d
    strata = (sk[:2], sv[:2], bias[:2])
    out = op.attend(
        q, k, v, short.window_start, short.window_end, short.batch_offsets, *strata, 0.25
    )[0]
    inside = ops.stratified_attention(
        q, k, v, plan, sk, sv, strata_bias=bias, scale=0.25, backend='triton'
    )
    alone = ops.stratified_attention(q, k, v, plan, scale=0.25, backend='triton')
    assert (
        relative_error(out[:100], inside[:100]) < 1e-6
        and relative_error(out[100:], alone[100:]) < 1e-6
    )
    collected = op.collect(sq[:2], k, v, short.batch_offsets, 0.25)[0]
    assert (
        relative_error(
            collected,
            ops.collect_strata(sq, k, v, plan.batch_offsets, scale=0.25, backend='triton')[:2],
        )
        < 1e-6
    )


@pytest.mark.slow
def test_operators_pass_torchs_own_check():
    (q, k, v), plan, (sq, sk, sv), bias = make_inputs((20, 0, 11), heads=1, width=8, strata=2)
    rows = [x.detach().requires_grad_() for x in (q, k, v)]
    tokens = [x.detach().requires_grad_() for x in (sq, sk, sv)]
    bias = bias.requires_grad_()
    windows, none = (plan.window_start, plan.window_end, plan.batch_offsets), (None,) * 3
    op = torch.ops.stratified3d
    for arguments in (
        (*rows, *windows, *tokens[1:], bias),
        (*rows, *windows, *none),
        (rows[0], None, None, None, None, plan.batch_offsets, *tokens[1:], None),
    ):
        torch.library.opcheck(op.attend, (*arguments, 0.3))
    torch.library.opcheck(op.collect, (tokens[0], *rows[1:], plan.batch_offsets, 0.3))
    torch.library.opcheck(
        op.rotate, (rows[0], *torch.randn(2, len(rows[0]), 4, device=DEVICE), True)
    )


def make_block_and_samples(**setting):
    pytest.importorskip('spconv')
    from stratified3d.layers.block import StratifiedBlock

    torch.manual_seed(0)
    block = StratifiedBlock(
        24,
        StratifiedAttention(MixerContext(24, 2), **dict(num_strata=4, backend='triton') | setting),
    ).to(DEVICE)
    samples = []
    for sizes in ((40, 0, 25), (30, 3, 20)):
        coords = random_coords(sizes, SHAPE).to(DEVICE)
        positions = coords[:, [3, 2, 1]].float() * 0.3
        grid = build_window_grid(
            coords, positions, (4, 5, 5), (0, 0, 0), batch_size=3, spatial_shape=SHAPE, head_dim=12
        )
        samples.append((torch.randn(len(coords), 24, device=DEVICE, requires_grad=True), grid))
    return block, samples


@pytest.mark.slow
@pytest.mark.parametrize(
    'setting',
    [{}, dict(fusion='gated'), dict(selection='topk', collect_scale=0.43, token_mixing=True)],
    ids=['joint', 'gated', 'options'],
)
def test_a_block_compiles_as_one_graph(setting):
    block, samples = make_block_and_samples(**setting)
    torch._dynamo.reset()
    compiled = torch.compile(
        block.mix, fullgraph=True, backend='inductor' if DEVICE == 'cuda' else 'aot_eager'
    )
    for x, grid in samples:  # the second one has another number of voxels
        found = []
        for function in (block.mix, compiled):
            out = function(x, grid)[0]
            found.append(
                [
                    out,
                    *torch.autograd.grad(
                        # the score that tokens are chosen by has no gradient: none, or zeros
                        out.square().sum(),
                        [x, *block.parameters()],
                        allow_unused=True,
                        materialize_grads=True,
                    ),
                ]
            )
        assert all(relative_error(b, a) < 1e-5 for a, b in zip(*found))


@pytest.mark.slow
def test_a_block_is_exported_for_any_number_of_voxels():
    block, (first, second) = make_block_and_samples()
    count = torch.export.Dim('N', min=2)
    rows = len(first[0])
    dynamic = pytree.tree_map(
        lambda t: {0: count} if isinstance(t, torch.Tensor) and len(t) == rows else None, first[1]
    )

    class Mix(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x, grid):
            return self.block.mix(x, grid)[0]

    # strict: len() of a tensor would fix its length otherwise
    program = torch.export.export(Mix(), first, dynamic_shapes=({0: count}, dynamic), strict=True)
    graphs = [
        part.graph
        for part in program.graph_module.modules()
        if isinstance(part, torch.fx.GraphModule)
    ]
    names = {str(node.target) for graph in graphs for node in graph.nodes}
    assert {'stratified3d.attend.default', 'stratified3d.collect.default'} <= names
    assert relative_error(program.module()(*second), block.mix(*second)[0]) < 1e-5


def test_a_gradient_of_a_gradient_is_refused():
    (q, k, v), plan, _, _ = make_inputs((20,), heads=1, width=8)
    q = q.detach().requires_grad_()
    (grad,) = torch.autograd.grad(
        ops.stratified_attention(q, k, v, plan, backend='triton').square().sum(),
        q,
        create_graph=True,
    )
    with pytest.raises(RuntimeError, match='stratified3d.attend_backward'):
        grad.sum().backward()
