"""Optional settings of the strata tokens against plain dense code: outputs, gradients, refusals."""

import math

import pytest
import torch

from stratified3d.layers.attention import MixerContext, StratifiedAttention
from stratified3d.layers.strata import SELECTIONS, StrataSelection
from stratified3d.layers.token_mixing import TokenMixing
from stratified3d.layers.window_grid import build_window_grid
from stratified3d.ops import apply_rotary, rotary_angles
from stratified3d.testing import random_coords, relative_error

SHAPE = (4, 20, 20)
OPTIONS = [
    dict(collect_scale=0.43),
    dict(token_mixing=True),
    dict(selection='topk', max_per_window=1),
    dict(selection='farthest'),
    dict(selection='topk', collect_scale=0.43, token_mixing=True, strata_offset=0.0),
]


def setting(sizes, head_dim, seed=0):
    coords = random_coords(sizes, SHAPE, seed)
    positions = coords[:, [3, 2, 1]].double() * 0.3
    grid = build_window_grid(
        coords,
        positions,
        (4, 5, 5),
        (0, 0, 0),
        batch_size=len(sizes),
        spatial_shape=SHAPE,
        head_dim=head_dim,
    )
    return torch.randn(len(coords), 16, dtype=torch.float64, requires_grad=True), grid


def dense(mixer, x, grid):
    """The mixer's equations, sample by sample with one dense matrix of logits per head.

    Only the choice of the tokens is the mixer's own.
    """
    heads, width = mixer.num_heads, mixer.head_dim
    x = grid.into_windows(x)
    q, k, v = mixer.qkv(x).view(len(x), 3, heads, width).unbind(1)
    if mixer.use_rotary:
        q, k = (apply_rotary(part, *grid.rotary) for part in (q, k))
    chosen = mixer.selection(x, grid.positions, grid.plan)

    out = []
    ends = grid.plan.batch_offsets.tolist()
    for b, (start, end) in enumerate(zip(ends, ends[1:])):
        there = chosen.present[b]
        tokens, places = chosen.feats[b][there], chosen.positions[b][there]
        if not len(tokens):
            continue
        token_q = mixer.strata_query(tokens).view(-1, heads, width)
        token_q = rotate(mixer, token_q, places)
        logits = torch.einsum('mhd,nhd->hmn', token_q, k[start:end]) / math.sqrt(width)
        if mixer.collect_scale is not None:
            logits = logits * mixer.collect_scale.view(-1, 1, 1) * math.log(end - start)
        collected = torch.einsum('hmn,nhd->mhd', logits.softmax(-1), v[start:end]).flatten(1)
        tokens = tokens + mixer.strata_out(collected)
        if mixer.token_mixing is not None:
            tokens = mix(mixer, tokens, places)

        token_k, token_v = mixer.strata_kv(tokens).view(-1, 2, heads, width).unbind(1)
        token_k = rotate(mixer, token_k, places)
        rows = torch.arange(start, end)
        window = grid.plan.window_start[start:end]
        near = torch.einsum('ihd,jhd->hij', q[rows], k[rows]) / math.sqrt(width)
        near = near.masked_fill(window.unsqueeze(1) != window, -torch.inf)
        far = torch.einsum('ihd,mhd->him', q[rows], token_k) / math.sqrt(width)
        far = far + (mixer.strata_offset - math.log(mixer.num_strata)).view(-1, 1, 1)
        weights = torch.cat([near, far], 2).softmax(2)
        out.append(torch.einsum('hij,jhd->ihd', weights, torch.cat([v[rows], token_v])).flatten(1))
    return mixer.out(grid.into_voxels(torch.cat(out)))


def rotate(mixer, heads, places):
    if not mixer.use_rotary:
        return heads
    return apply_rotary(heads, *rotary_angles(places, mixer.head_dim))


def mix(mixer, tokens, places):
    """Self-attention among the tokens, one head after the other, and the feed-forward."""
    mixing, width = mixer.token_mixing, mixer.head_dim
    parts = mixing.qkv(mixing.norm(tokens)).view(len(tokens), 3, mixer.num_heads, width)
    q, k, v = parts.unbind(1)
    q, k = rotate(mixer, q, places), rotate(mixer, k, places)
    mixed = []
    for head in range(mixer.num_heads):
        logits = q[:, head] @ k[:, head].T / math.sqrt(width)
        mixed.append(logits.softmax(1) @ v[:, head])
    tokens = tokens + mixing.out(torch.cat(mixed, 1))
    return tokens + mixing.ffn(tokens)


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('rotary', [True, False])
@pytest.mark.parametrize('sizes', [(60, 0, 35), (1, 3), (90,)])
def test_options_do_what_dense_code_does(options, rotary, sizes):
    """Samples of many voxels, of fewer than there are tokens, of one and of none."""
    torch.manual_seed(0)
    context = MixerContext(16, 2, use_rotary=rotary)
    mixer = StratifiedAttention(context, num_strata=6, **options).double()
    x, grid = setting(sizes, head_dim=8)
    weight = torch.randn_like(x)
    found = []
    for run in (lambda: mixer(x, grid)[0], lambda: dense(mixer, x, grid)):
        out = run()
        learned = [p for name, p in mixer.named_parameters() if 'selection' not in name]
        grads = torch.autograd.grad((out * weight).sum(), [x, *learned])
        found.append([out, *grads])
    for a, b in zip(*found):
        assert relative_error(a, b) < 1e-7  # the bias is fp32


@pytest.mark.parametrize('num_heads', [1, 4])
def test_token_mixing_is_a_transformer_layer(num_heads):
    """Without positions it is torch's own layer; absent tokens are ignored and change nothing."""
    torch.manual_seed(0)
    mixing = TokenMixing(16, num_heads)
    layer = torch.nn.TransformerEncoderLayer(
        16, num_heads, 32, dropout=0.0, activation='gelu', batch_first=True, norm_first=True
    )
    pairs = [
        (layer.norm1, mixing.norm),
        (layer.self_attn.out_proj, mixing.out),
        (layer.norm2, mixing.ffn[0]),
        (layer.linear1, mixing.ffn[1]),
        (layer.linear2, mixing.ffn[3]),
    ]
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(mixing.qkv.weight)
        layer.self_attn.in_proj_bias.copy_(mixing.qkv.bias)

    feats = torch.randn(3, 5, 16)
    present = torch.tensor([[True] * 5, [True, False, True, False, False], [False] * 5])
    expected = layer(feats[:2], src_key_padding_mask=~present[:2])
    out = mixing(feats, present)
    torch.testing.assert_close(out[:2][present[:2]], expected[present[:2]])
    assert out.isfinite().all()
    poisoned = torch.where(present.unsqueeze(-1), feats, 1e4)
    torch.testing.assert_close(mixing(poisoned, present)[present], out[present])


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_samples_stay_apart_with_options(options):
    torch.manual_seed(0)
    mixer = StratifiedAttention(MixerContext(16, 2), num_strata=6, **options).double()
    x, grid = setting((40, 50), head_dim=8)
    first = grid.plan.order[grid.plan.sample == 0]
    second = grid.plan.order[grid.plan.sample == 1]
    changed = x.detach().clone()
    changed[first] = 0
    with torch.no_grad():
        assert torch.equal(mixer(changed, grid)[0][second], mixer(x, grid)[0][second])


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('sizes', [(0, 0), (0,), (0, 2)])
def test_options_without_voxels_still_reach_every_parameter(options, sizes):
    """A gradient for every parameter, zero or not: distributed training waits for all of them."""
    mixer = StratifiedAttention(MixerContext(16, 2), num_strata=6, **options).double()
    x, grid = setting(sizes, head_dim=8)
    out, strata = mixer(x, grid)
    loss = out.sum() + sum(scores.logits.sum() for scores in strata.scores)
    loss.backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_default_parameters_are_those_of_released_weights():
    names = set(StratifiedAttention(MixerContext(16, 2)).state_dict())
    added = [
        set(StratifiedAttention(MixerContext(16, 2), **options).state_dict()) - names
        for options in (dict(collect_scale=0.43), dict(token_mixing=True))
    ]
    assert added[0] == {'collect_scale'}
    assert all(name.startswith('token_mixing.') for name in added[1])
    assert not any('collect' in name or 'mixing' in name for name in names)


@pytest.mark.parametrize(
    'settings, key',
    [
        (dict(collect_scale=0.0), 'collect_scale'),
        (dict(collect_scale=float('nan')), 'nan'),
        (dict(selection='topk', max_per_window=0), 'max_per_window is at least 1, not 0'),
        (dict(selection='topk', objectness_weight=0.0), 'objectness_weight is above 0, not 0'),
        (dict(max_per_window=3), "max_per_window=3 has no effect with selection='pool'"),
        (dict(selection='farthest', objectness_weight=0.5), 'objectness_weight=0.5 has no effect'),
        (dict(fusion='gated', strata_offset=0.0), 'strata_offset=0.0 has no effect'),
        (dict(fusion='gated', strata_offset=None), 'strata_offset=None has no effect'),
        *(
            (dict(num_strata=0, **{name: value}), f'{name}=.* has no effect with num_strata=0')
            for name, value in dict(
                selection='first',
                max_per_window=2,
                objectness_weight=1.0,
                fusion='gated',
                carry_tokens=False,
                strata_offset=0.0,
                collect_scale=0.4,
                token_mixing=True,
            ).items()
        ),
    ],
)
def test_settings_without_effect_are_refused(settings, key):
    with pytest.raises(ValueError, match=key):
        StratifiedAttention(MixerContext(16, 2), **settings)


def test_topk_tells_close_scores_apart_under_autocast():
    """Scores of 1 + k / 10000 are all 1 in bf16; the best rows are the last ones."""
    choose = StrataSelection(16, num_strata=4, selection='topk', max_per_window=100)
    with torch.no_grad():
        choose.score.weight.fill_(1 / 16)
        choose.score.bias.zero_()
    _, grid = setting((30,), head_dim=8)
    feats = (1 + torch.arange(30.0) / 10000).unsqueeze(1).expand(30, 16)
    with torch.autocast('cpu', torch.bfloat16):
        strata = choose(feats, grid.positions, grid.plan)
    assert strata.feats[0, :, 0].tolist() == feats[[29, 28, 27, 26], 0].tolist()
    assert strata.scores[0].logits.dtype == torch.float32


@pytest.mark.parametrize('selection', SELECTIONS)
def test_only_topk_hands_out_scores(selection):
    mixers = [
        StratifiedAttention(
            MixerContext(16, 2, block=block), num_strata=4, selection=selection, carry_tokens=carry
        ).double()
        for carry in (True, False)
        for block in (0, 1)
    ]
    x, grid = setting((30, 20), head_dim=8)
    counts = []
    for first, second in (mixers[:2], mixers[2:]):
        _, strata = first(x, grid)
        counts.append(len(second(x, grid, strata)[1].scores))
    assert counts == ([1, 2] if selection == 'topk' else [0, 0])
    if selection == 'topk':
        scores = strata.scores[0]
        assert torch.equal(scores.positions, grid.positions)
        assert torch.equal(scores.sample, grid.plan.sample) and scores.weight == 1
