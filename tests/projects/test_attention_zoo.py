"""Every mixer against one dense masked softmax or its own equation: outputs and all gradients."""

import re
import subprocess
import sys

import pytest
import torch

from projects.attention_zoo import OTHER_FUNCTION, SAME_FUNCTION
from projects.attention_zoo.equations import equation, same, windows
from projects.attention_zoo.keys import sampled as sampled_module
from projects.attention_zoo.layouts import varlen
from projects.attention_zoo.layouts.flex import FlexAttention
from projects.attention_zoo.layouts.varlen import VarlenAttention
from stratified3d.layers.attention import MixerContext, StratifiedAttention
from stratified3d.layers.window_grid import build_window_grid
from stratified3d.testing import TOLERANCES, random_coords, relative_error

SHAPE = (6, 11, 13)
WINDOW = (4, 5, 6)
# voxels of every sample
SIZES = {
    'plain': (90, 60),
    'no_voxel': (0,),
    'one_voxel': (1,),
    'empty_between': (60, 0, 33),
    'empty_ends': (0, 57, 0),
    'dense': (220,),
}
HEADS, WIDTH = 3, 12
OTHER_BY_NAME = {kind.__name__: kind for kind in OTHER_FUNCTION}


def setting(case, shift=(0, 0, 0), rotary=True):
    sizes = SIZES[case]
    coords = random_coords(sizes, SHAPE)
    grid = build_window_grid(
        coords,
        coords[:, [3, 2, 1]].double() / 4,
        WINDOW,
        shift,
        batch_size=len(sizes),
        spatial_shape=SHAPE,
        head_dim=WIDTH if rotary else None,
    )
    generator = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(
            len(coords), HEADS, WIDTH, generator=generator, dtype=torch.float64
        ).requires_grad_()
        for _ in range(3)
    )
    return grid, q, k, v


def compare(out, expected, inputs, tolerance=1e-11):
    """Compare the outputs and the gradient of every input."""
    assert out.shape == expected.shape and relative_error(out, expected) < tolerance
    if not out.requires_grad:  # FlexAttention, on a CPU
        return
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    grads = [
        torch.autograd.grad(o, inputs, weight, allow_unused=True, retain_graph=True)
        for o in (out, expected)
    ]
    for a, b, x in zip(*grads, inputs):
        a, b = (torch.zeros_like(x) if g is None else g for g in (a, b))
        assert relative_error(a, b) < tolerance


# besides `variants`: settings that matter for samples of a hundred voxels
SMALL = dict(
    FullAttention=[dict(queries_at_once=7)],
    SetAttention=[dict(set_size=1), dict(set_size=5)],
    EqualGroupAttention=[dict(group_size=1), dict(group_size=7)],
    PerformerAttention=[dict(num_features=30)],
    SpatialReductionAttention=[dict(reduction=1), dict(reduction=3)],
    LinformerAttention=[dict(rank=5, length=length) for length in (7, 60, 400)],
    CrossShapedAttention=[dict(width=3)],
    LongShortAttention=[dict(interval=2)],
    DilatedAttention=[dict(kernel=3, dilation=(2, 2, 3))],
    SampledWindowAttention=[dict(part=0.4)],  # not one of so many
    SlidingAttention=[dict(reach=5, num_global=3), dict(reach=1, num_global=0)],
    ScanAttention=[dict(chunk=1), dict(chunk=7)],
    RoutedAttention=[dict(region=7, topk=3)],
    ProxyAttention=[dict(regions=1), dict(regions=2)],
    LatentAttention=[dict(regions=2)],
    FactorizedAttention=[dict(window=2, dilation=3, regions=2)],
)


def settings_of(kinds, more=None):
    return [
        pytest.param(kind, settings, id=f'{kind.__name__}-{i}')
        for kind in kinds
        for i, settings in enumerate([{}, *kind.variants, *(more or {}).get(kind.__name__, [])])
    ]


def make(kind, block=0, rotary=True, **settings):
    torch.manual_seed(0)
    if kind is FlexAttention:
        # compiling takes longer than all other tests together
        settings['compiled'] = False
    if issubclass(kind, StratifiedAttention):
        return kind(MixerContext(HEADS * WIDTH, HEADS, rotary), num_strata=5, **settings).double()
    return kind(MixerContext(HEADS * WIDTH, HEADS, rotary, WINDOW, block), **settings).double()


@pytest.fixture
def varlen_on_a_cpu(monkeypatch):
    """Replace torch's kernel, which needs a GPU, by its equation, sequence by sequence."""

    def parts(where, lse=None):
        for a, b, c, d in zip(*(x.tolist() for o in where[:2] for x in (o[:-1], o[1:]))):
            if a < b:
                yield slice(a, b), slice(c, d)

    def forward(q, k, v, where, scale):
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:2]).T.contiguous()
        for rows, keys in parts(where):
            logits = torch.einsum('ihd,jhd->hij', q[rows], k[keys]) * scale
            lse[:, rows] = logits.logsumexp(-1)
            out[rows] = torch.einsum('hij,jhd->ihd', logits.softmax(-1), v[keys])
        return out, lse

    def backward(grad, q, k, v, out, lse, where, scale):
        grads = [torch.zeros_like(x) for x in (q, k, v)]
        for rows, keys in parts(where):
            logits = torch.einsum('ihd,jhd->hij', q[rows], k[keys]) * scale
            p = (logits - lse[:, rows].unsqueeze(-1)).exp()
            dp = torch.einsum('ihd,jhd->hij', grad[rows], v[keys])
            mean = (grad[rows] * out[rows]).sum(-1).T.unsqueeze(-1)
            ds = p * (dp - mean) * scale
            grads[0][rows] += torch.einsum('hij,jhd->ihd', ds, k[keys])
            grads[1][keys] += torch.einsum('hij,ihd->jhd', ds, q[rows])
            grads[2][keys] += torch.einsum('hij,ihd->jhd', p, grad[rows])
        return tuple(grads)

    monkeypatch.setattr(varlen, '_forward', forward)
    monkeypatch.setattr(varlen, '_backward', backward)
    monkeypatch.setattr(VarlenAttention, 'unsupported_reason', lambda self, q: None)


@pytest.mark.parametrize('case', SIZES)
@pytest.mark.parametrize('kind, settings', settings_of(SAME_FUNCTION))
@pytest.mark.parametrize('absent', [False, True])
def test_mixers_of_the_same_function_equal_one_softmax_over_window_and_strata(
    kind, settings, case, absent, varlen_on_a_cpu
):
    grid, q, k, v = setting(case, shift=(0, 2, 3))
    batch = len(grid.plan.batch_offsets) - 1
    generator = torch.Generator().manual_seed(2)
    strata = [
        torch.randn(batch, 5, HEADS, WIDTH, generator=generator, dtype=torch.float64)
        for _ in range(2)
    ]
    bias = torch.randn(batch, 5, HEADS, generator=generator, dtype=torch.float64)
    if absent:
        bias[0, 2:] = -torch.inf
    inputs = [q, k, v, *(x.requires_grad_() for x in (*strata, bias))]
    if kind is FlexAttention:  # it has no backward pass on a CPU
        inputs = [x.detach() for x in inputs]
    baseline = make(kind, **settings)
    for x in (inputs, inputs[:3]):
        args = (*x[:3], grid, *x[3:])
        compare(baseline.attend(*args), equation(baseline, *args), x)


@pytest.mark.parametrize('case', SIZES)
@pytest.mark.parametrize('kind, settings', settings_of(OTHER_FUNCTION, SMALL))
def test_mixers_of_other_functions_equal_their_equation(kind, settings, case):
    for block, shift in enumerate([(0, 0, 0), (1, 2, 3)]):
        grid, q, k, v = setting(case, shift, rotary=block == 1)
        baseline = make(kind, block, rotary=block == 1, **settings)
        for table in getattr(baseline, 'tables', []):
            table.data.mul_(20)
        inputs = [q, k, v]
        for name, parameter in baseline.named_parameters():
            if name.split('.')[0] not in ('qkv', 'out'):
                if not parameter.any():  # it starts without an effect
                    torch.nn.init.normal_(parameter, std=0.3)
                inputs.append(parameter)
        out = baseline.attend(q, k, v, grid)
        compare(out, equation(baseline, q, k, v, grid), inputs)


def test_performer_features_are_orthogonal_and_approach_softmax():
    baseline = make(OTHER_BY_NAME['PerformerAttention'], num_features=24)
    block = torch.nn.functional.normalize(baseline.features[:WIDTH], dim=1)
    assert relative_error(block @ block.T, torch.eye(WIDTH, dtype=block.dtype)) < 1e-6
    grid, q, k, v = setting('plain')
    q, k = q * 0.5, k * 0.5
    softmax = equation(make(OTHER_BY_NAME['FullAttention']), q, k, v, grid)
    errors = []
    for count in (24, 2400):
        out = make(type(baseline), num_features=count).attend(q, k, v, grid)
        errors.append(float((out - softmax).square().mean()))
    assert errors[1] < 0.1 * errors[0] and errors[1] < 0.02 * float(softmax.square().mean())


def test_sampled_window_attention_in_pieces_equals_all_at_once(monkeypatch):
    grid, q, k, v = setting('plain')
    baseline = make(OTHER_BY_NAME['SampledWindowAttention'])
    whole = baseline.attend(q, k, v, grid)
    monkeypatch.setattr(sampled_module, '_LOGITS', 1000)
    compare(baseline.attend(q, k, v, grid), whole, [q, k, v])


@pytest.mark.parametrize('kind', SAME_FUNCTION + OTHER_FUNCTION)
def test_mixers_do_not_mix_samples(kind, varlen_on_a_cpu):
    grid, q, k, v = setting('plain')
    baseline = make(kind)
    q, k, v = (x.detach() for x in (q, k, v))
    first = grid.plan.sample == 0
    out = baseline.attend(q, k, v, grid)
    k, v = (x.masked_fill(first[:, None, None], 7.0) for x in (k, v))
    assert torch.equal(baseline.attend(q, k, v, grid)[~first], out[~first])


def test_blocks_with_the_same_settings_and_phase_share_what_they_prepare():
    grid, q, k, v = setting('plain')
    kind = OTHER_BY_NAME['SetAttention']
    plans = [
        make(kind, block, **settings).prepared(grid)
        for block, settings in ((0, {}), (3, {}), (1, {}), (0, dict(set_size=9)))
    ]
    assert plans[0] is plans[1] and len({id(p) for p in plans}) == 3


def test_prepared_groups_report_their_padding():
    grid, q, k, v = setting('plain')
    sizes = torch.unique(windows(grid), dim=0, return_counts=True)[1].double()
    one = float((sizes**2).sum() / (len(sizes) * sizes.max() ** 2))
    assert abs(make(SAME_FUNCTION[0]).prepared(grid).padding - (1 - one)) < 1e-12
    assert make(OTHER_BY_NAME['FullAttention']).prepared(grid).padding == 0
    for kind in (
        'SetAttention',
        'EqualGroupAttention',
        'SampledWindowAttention',
        'LinearWindowAttention',
    ):
        assert 0 < make(OTHER_BY_NAME[kind]).prepared(grid).padding < 1
    sets = make(OTHER_BY_NAME['SetAttention'], set_size=1).prepared(grid)
    assert sets.padding == 0


@pytest.mark.parametrize('case', [case for case in SIZES if case != 'no_voxel'])
@pytest.mark.parametrize('size', [8, 32])
def test_block_mask_of_flex_attention_contains_every_block_with_a_pair(case, size):
    grid, *_ = setting(case, shift=(0, 2, 3))
    mask = make(FlexAttention, block_size=size).prepared(grid, 5)
    n, batch = len(grid.coords), len(grid.plan.batch_offsets) - 1
    far = grid.plan.sample[:, None] == torch.arange(batch).repeat_interleave(5)
    padding = mask.seq_lengths[0] - n
    near = torch.nn.functional.pad(same(windows(grid)), (0, padding))
    seen = torch.cat([near, far], 1)
    blocks = torch.nn.functional.pad(seen, (0, -seen.shape[1] % size, 0, padding))
    blocks = blocks.unflatten(1, (-1, size)).unflatten(0, (-1, size)).any(3).any(1)
    kept = mask.to_dense()[0, 0].bool()
    assert kept.shape == blocks.shape and (kept | ~blocks).all()  # none is left out
    # windows of a row of blocks are one run: a block in between may contain no pair
    assert kept.sum() <= 1.3 * blocks.sum()


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason='these two libraries compute gradients on CUDA only',
)
@pytest.mark.parametrize('kind', [VarlenAttention, FlexAttention])
def test_gpu_libraries_equal_the_reference_on_a_gpu(kind):
    coords = random_coords((700, 0, 300), (6, 40, 40)).cuda()
    grid = build_window_grid(
        coords,
        coords[:, [3, 2, 1]].float(),
        (6, 8, 8),
        (0, 4, 4),
        batch_size=3,
        spatial_shape=(6, 40, 40),
        head_dim=32,
    )
    torch.manual_seed(0)
    dtype = torch.float16 if kind is VarlenAttention else torch.float32
    inputs = [
        torch.randn(1000, 2, 32, device='cuda', dtype=dtype).requires_grad_() for _ in range(3)
    ]
    inputs += [
        torch.randn(3, 64, 2, 32, device='cuda', dtype=dtype).requires_grad_() for _ in range(2)
    ]
    inputs.append(torch.randn(3, 64, 2, device='cuda').requires_grad_())
    for settings in ({}, *kind.variants):
        results = []
        for module, wide in (
            (kind(MixerContext(64, 2), num_strata=64, **settings), dtype),
            (
                StratifiedAttention(MixerContext(64, 2), num_strata=64, backend='reference'),
                torch.float32,
            ),
        ):
            x = [t.detach().to(wide).requires_grad_() for t in inputs[:5]] + inputs[5:]
            out = module.attend(*x[:3], grid, *x[3:])
            results.append([out, *torch.autograd.grad(out, x, torch.ones_like(out) / 7)])
        for a, b in zip(*results):
            assert relative_error(a, b) < TOLERANCES[dtype] + 1e-3


# packages that a detector needs and a mixer does not
OTHER_PACKAGES = ('mmcv', 'mmdet', 'mmdet3d', 'mmengine', 'nuscenes', 'numba', 'spconv')


def python_blocks(path):
    """The ```python blocks of a page."""
    return re.findall(r'```python\n(.*?)```', path.read_text(), re.DOTALL)


def test_zoo_needs_torch_alone(root):
    """Every module but register.py is imported, and the example of the README runs."""
    folder = root / 'projects/attention_zoo'
    paths = [path.relative_to(folder).with_suffix('') for path in folder.rglob('*.py')]
    modules = [
        '.'.join(path.parts)
        for path in paths
        if path.stem not in ('__init__', 'register') and path.parts[0] != 'configs'
    ]
    example = python_blocks(folder / 'README.md')[-1]
    lines = [
        'import sys',
        f'sys.modules.update(dict.fromkeys({OTHER_PACKAGES}))',  # None: an ImportError
        *(f'import projects.attention_zoo.{module}' for module in sorted(modules)),
        example,
        'assert mixed.shape == (5000, 128) and mixed.isfinite().all()',
    ]
    result = subprocess.run(
        [sys.executable, '-c', '\n'.join(lines)], cwd=root, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize(
    'name, settings, message',
    [
        ('SwinAttention', dict(multiple=0), 'multiple .* not 0'),
        ('SSTAttention', dict(lengths=(60, 30)), r'lengths .* not \[60, 30\]'),
        ('VarlenAttention', dict(width=0), 'width .* not 0'),
        ('FlexAttention', dict(block_size=0), 'block_size .* not 0'),
        ('FullAttention', dict(queries_at_once=-1), 'queries_at_once .* not -1'),
        ('EqualGroupAttention', dict(group_size=0), 'group_size .* not 0'),
        ('PlaneAttention', dict(thickness=0), 'thickness .* not 0'),
        ('LinearWindowAttention', dict(lengths=()), r'lengths .* not \[\]'),
        ('SpatialReductionAttention', dict(reduction=0), 'reduction .* not 0'),
        ('PerformerAttention', dict(num_features=0), 'num_features .* not 0'),
        ('LinformerAttention', dict(length=0), 'length .* not 0'),
        ('CrossShapedAttention', dict(width=0), 'width .* not 0'),
        ('AxialAttention', dict(axes='xx'), "axes .* not 'xx'"),
        ('LongShortAttention', dict(interval=1), 'interval .* not 1'),
        ('DilatedAttention', dict(kernel=4), 'kernel .* not 4'),
        ('DilatedAttention', dict(dilation=8), 'dilation .* not 8'),
        ('SlidingAttention', dict(reach=0), 'reach .* not 0'),
        ('SlidingAttention', dict(num_global=-1), 'num_global .* not -1'),
        ('FocalAttention', dict(reach=0), 'reach .* not 0'),
        ('RoutedAttention', dict(region=0), 'region .* not 0'),
        ('RoutedAttention', dict(topk=0), 'topk .* not 0'),
        ('ProxyAttention', dict(regions=0), 'regions .* not 0'),
        ('FactorizedAttention', dict(dilation=1), 'dilation .* not 1'),
        ('LatentAttention', dict(num_latents=0), 'num_latents .* not 0'),
        ('ConcentratedLinearAttention', dict(kernel=2), 'kernel .* not 2'),
        ('ScanAttention', dict(chunk=0), 'chunk .* not 0'),
        ('VaryingWindowAttention', dict(ratios=(1, 2, 3, 4)), '4 or more, not 3'),
        ('VariedWindowAttention', dict(points=0), 'points .* not 0'),
        ('VaryingWindowAttention', dict(ratios=(4, 2)), r'ratios .* not \[4, 2\]'),
    ],
)
def test_settings_out_of_range_are_named(name, settings, message):
    (kind,) = (kind for kind in SAME_FUNCTION + OTHER_FUNCTION if kind.__name__ == name)
    with pytest.raises(ValueError, match=message):
        make(kind, **settings)


@pytest.mark.parametrize('kind', SAME_FUNCTION + OTHER_FUNCTION)
def test_unknown_settings_are_errors(kind):
    with pytest.raises(ValueError, match="no setting 'sise'"):
        make(kind, sise=3)
