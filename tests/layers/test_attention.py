import itertools
import math

import pytest
import torch

from stratified3d.layers.attention import FUSIONS, MixerContext, StratifiedAttention
from stratified3d.layers.strata import SELECTIONS
from stratified3d.layers.window_grid import build_window_grid
from stratified3d.testing import random_coords, relative_error

SHAPE = (4, 20, 20)


def setting(sizes=(60, 0, 35), channels=24, heads=2, seed=0, window=(4, 5, 5)):
    coords = random_coords(sizes, SHAPE, seed)
    positions = coords[:, [3, 2, 1]].float() * 0.3
    grid = build_window_grid(
        coords,
        positions,
        window,
        (0, 0, 0),
        batch_size=len(sizes),
        spatial_shape=SHAPE,
        head_dim=channels // heads,
    )
    torch.manual_seed(seed)
    return torch.randn(len(coords), channels), grid


COMBINATIONS = list(itertools.product(SELECTIONS, FUSIONS, [True, False]))


@pytest.mark.parametrize('selection, fusion, rotary', COMBINATIONS)
def test_every_parameter_receives_a_gradient(selection, fusion, rotary):
    x, grid = setting()
    module = StratifiedAttention(
        MixerContext(24, 2, use_rotary=rotary), num_strata=8, selection=selection, fusion=fusion
    )
    if fusion == 'gated':
        torch.nn.init.ones_(module.gate)  # from zero only the gate itself learns in the first step
    out, strata = module(x, grid)
    assert out.shape == x.shape and strata.feats.shape == (3, 8, 24)
    loss = (out * torch.randn_like(out)).sum()
    for scores in strata.scores:  # 'topk' learns from a loss of its own
        loss = loss + scores.logits.square().sum()
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize('selection, fusion, rotary', COMBINATIONS)
def test_backends_agree(selection, fusion, rotary):
    x, grid = setting()
    module = StratifiedAttention(
        MixerContext(24, 2, use_rotary=rotary), num_strata=8, selection=selection, fusion=fusion
    ).eval()
    outs = []
    for backend in ('reference', 'sdpa'):
        module.backend = backend
        outs.append(module(x, grid)[0])
    assert relative_error(outs[1], outs[0]) < 1e-5


@pytest.mark.parametrize('fusion', ['joint', 'gated'])
def test_it_starts_as_window_attention(fusion):
    x, grid = setting()
    module = StratifiedAttention(MixerContext(24, 2), num_strata=8, fusion=fusion)
    local = StratifiedAttention(MixerContext(24, 2), num_strata=0)
    local.load_state_dict({k: v for k, v in module.state_dict().items() if k in local.state_dict()})
    with torch.no_grad():
        near, far = local(x, grid)[0], module(x, grid)[0]
        difference = float((far - near).norm() / near.norm())
    assert difference < 0.05 if fusion == 'joint' else difference == 0
    if fusion == 'joint':
        assert difference > 0
        with torch.no_grad():
            module.strata_offset.fill_(3.0)
            assert float((module(x, grid)[0] - near).norm() / near.norm()) > 0.2


@pytest.mark.parametrize('mixing', [False, True])
def test_separate_fusion_equals_its_equation(mixing):
    x, grid = setting(sizes=(50,))
    context = MixerContext(24, 2, use_rotary=False)
    module = StratifiedAttention(
        context, num_strata=5, selection='learned', fusion='separate', token_mixing=mixing
    )
    local = StratifiedAttention(context, num_strata=0)
    local.qkv = module.qkv
    torch.nn.init.eye_(local.out.weight)
    torch.nn.init.zeros_(local.out.bias)

    def attend(q, k, v):
        heads = (rows.unflatten(1, (2, 12)).transpose(0, 1) for rows in (q, k, v))
        q, k, v = heads
        weights = (q @ k.transpose(1, 2) / math.sqrt(12)).softmax(-1)
        return (weights @ v).transpose(0, 1).flatten(1)

    with torch.no_grad():
        q, k, v = module.far_qkv(x).chunk(3, 1)
        tokens = module.selection.tokens
        tokens = tokens + module.strata_out(attend(module.strata_query(tokens), k, v))
        if mixing:
            present = torch.ones(1, 5, dtype=torch.bool)
            tokens = module.token_mixing(tokens[None], present)[0]
        far = attend(q, *module.strata_kv(tokens).chunk(2, 1))
        expected = module.out(torch.cat([local(x, grid)[0], far], 1))
        out, strata = module(x, grid)
    assert relative_error(out, expected) < 1e-5
    assert relative_error(strata.feats[0], tokens) < 1e-5


def test_separate_tokens_are_found_by_what_they_are_far_away():
    """Most of a query's match with an equal key survives 50 m; in joint fusion it does not."""
    q = torch.randn(200, 1, 32)
    places = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[40.3, 29.6, 2.2]])
    matches = {}
    for fusion in ('joint', 'separate'):
        module = StratifiedAttention(MixerContext(32, 1), num_strata=4, fusion=fusion)
        tables = (module._far_rotary(place.expand(200, 3)) for place in places)
        here, there = (module._rotate(q, table) for table in tables)
        matches[fusion] = float(((here * there).sum(-1) / (q * q).sum(-1)).mean())
    assert matches['separate'] > 0.6 > 2 * abs(matches['joint'])


def test_without_a_bias_a_token_weighs_as_a_voxel():
    x, grid = setting()
    module, free = (
        StratifiedAttention(MixerContext(24, 2), num_strata=8),
        StratifiedAttention(MixerContext(24, 2), num_strata=8, strata_offset=None),
    )
    free.load_state_dict({k: v for k, v in module.state_dict().items() if k != 'strata_offset'})
    with torch.no_grad():
        module.strata_offset.fill_(math.log(8))
        assert relative_error(free(x, grid)[0], module(x, grid)[0]) < 1e-6
    assert 'strata_offset' not in dict(free.named_parameters())


def test_a_voxel_far_away_is_felt_through_the_strata_only():
    x, grid = setting(sizes=(90,))
    plan = grid.plan
    module, local = (
        StratifiedAttention(MixerContext(24, 2), num_strata=8),
        StratifiedAttention(MixerContext(24, 2), num_strata=0),
    )
    source = int(plan.order[0])
    other = plan.order[plan.window_start != 0]
    changed = x.clone()
    changed[source] += 1
    with torch.no_grad():
        assert (module(changed, grid)[0] - module(x, grid)[0])[other].abs().max() > 0
        assert torch.equal(local(changed, grid)[0][other], local(x, grid)[0][other])


def test_samples_do_not_see_each_other():
    x, grid = setting(sizes=(40, 50))
    module = StratifiedAttention(MixerContext(24, 2), num_strata=8)
    first = grid.plan.order[grid.plan.sample == 0]
    second = grid.plan.order[grid.plan.sample == 1]
    changed = x.clone()
    changed[first] = 0
    with torch.no_grad():
        assert torch.equal(module(changed, grid)[0][second], module(x, grid)[0][second])


def test_order_of_the_voxels_does_not_matter():
    coords = random_coords((60, 30), SHAPE)
    permutation = torch.randperm(len(coords))
    module = StratifiedAttention(MixerContext(24, 2), num_strata=0)
    x = torch.randn(len(coords), 24)
    outs = []
    for c, f in ((coords, x), (coords[permutation], x[permutation])):
        grid = build_window_grid(
            c,
            c[:, [3, 2, 1]].float(),
            (4, 5, 5),
            (0, 0, 0),
            batch_size=2,
            spatial_shape=SHAPE,
            head_dim=12,
        )
        outs.append(module(f, grid)[0])
    assert relative_error(outs[1], outs[0][permutation]) < 1e-5


def test_random_selection_follows_the_seed_and_is_quiet_in_evaluation():
    x, grid = setting()
    module = StratifiedAttention(MixerContext(24, 2), num_strata=8, selection='random')
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(module(x, grid)[0])
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    module.eval()
    assert torch.equal(module(x, grid)[0], module(x, grid)[0])


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(num_heads=5), '5 heads do not divide 24 channels'),
        (dict(num_heads=0), '0 heads do not divide 24 channels'),
        (dict(num_heads=8), 'rotary embedding needs heads of width 6 or more, not 3'),
        (dict(num_strata=-1), r'num_strata is 0 \(off\) or more, not -1'),
        (dict(selection='fps'), "selection is one of pool, .*, not 'fps'"),
        (dict(fusion='sum'), "fusion is one of joint, gated, separate, not 'sum'"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        heads = arguments.pop('num_heads', 2)
        StratifiedAttention(MixerContext(24, heads), **arguments)
