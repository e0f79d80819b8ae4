"""Tokens of earlier frames as keys of a mixer: weights, dates, places and gradients."""

import math

import pytest
import torch

from stratified3d.layers.attention import MixerContext, StratifiedAttention
from stratified3d.layers.strata_memory import PastTokens, TokenMemory
from stratified3d.layers.window_grid import build_window_grid
from stratified3d.testing import random_coords

GRID = (4, 16, 16)
SIZES = (60, 0, 35)


def make_grid(sizes=SIZES, offset=0.0):
    coords = random_coords(sizes, GRID)
    positions = coords[:, [3, 2, 1]].float() * 0.5 + offset
    return build_window_grid(
        coords,
        positions,
        (4, 8, 8),
        (0, 0, 0),
        batch_size=len(sizes),
        spatial_shape=GRID,
        head_dim=12,
    )


def make_mixer(backend='reference', **settings):
    torch.manual_seed(0)
    settings = {**dict(num_strata=6, backend=backend, memory=dict(frames=2)), **settings}
    mixer = StratifiedAttention(MixerContext(24, 2), **settings)
    with torch.no_grad():
        mixer.out.weight.normal_()
        if mixer.fusion == 'gated':
            mixer.gate.fill_(0.7)
        if mixer.memory is not None:
            mixer.memory.age.weight.normal_()
    return mixer


def make_past(batch=3, count=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    feats = torch.randn(batch, count, 24, generator=generator)
    positions = torch.rand(batch, count, 3, generator=generator) * 8
    present = torch.rand(batch, count, generator=generator) > 0.3
    ages = torch.rand(batch, count, generator=generator) + 0.05
    return PastTokens(feats, positions, present, ages)


def rows(sizes=SIZES):
    return torch.randn(sum(sizes), 24, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize('fusion', ['joint', 'gated'])
@pytest.mark.parametrize('backend', ['sdpa', 'numba'])
def test_backends_agree_with_the_reference(fusion, backend):
    results = []
    for name in ('reference', backend):
        mixer, x = make_mixer(name, fusion=fusion), rows().requires_grad_()
        mixed, _ = mixer(x, make_grid(), None, make_past())
        mixed.square().sum().backward()
        grads = [p.grad for p in mixer.parameters()]
        assert all(grad is not None for grad in grads)
        results.append([mixed, x.grad, *grads])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def repeat_tokens(mixer, x):
    """The mixer's own tokens, as if an earlier frame had left the same."""
    strata = mixer(x, make_grid())[1]
    return PastTokens(*strata[:3], torch.zeros(strata.present.shape))


@pytest.mark.parametrize('offset', [-1.0, 0.0, 2.0])
def test_repeated_tokens_add_to_the_weight_of_the_present_ones(offset):
    mixer, x = make_mixer(), rows()
    with torch.no_grad():
        mixer.memory.offset.fill_(offset)
    past = repeat_tokens(mixer, x)
    alone, _ = mixer(x, make_grid())
    remembered, _ = mixer(x, make_grid(), None, past)
    with torch.no_grad():
        mixer.strata_offset += math.log(1 + math.exp(offset))
    expected, _ = mixer(x, make_grid())
    torch.testing.assert_close(remembered, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone, expected, rtol=1e-3, atol=1e-3)


def test_repeated_tokens_change_no_mean_of_a_gated_mixer():
    mixer, x = make_mixer(fusion='gated'), rows()
    remembered, _ = mixer(x, make_grid(), None, repeat_tokens(mixer, x))
    torch.testing.assert_close(remembered, mixer(x, make_grid())[0], rtol=1e-4, atol=1e-4)


def test_all_frames_together_start_with_the_weight_of_one():
    for frames in (1, 4):
        memory = TokenMemory(24, 2, frames, offset=0.5)
        total = frames * memory.offset.exp()
        torch.testing.assert_close(total, torch.full((2,), math.exp(0.5)))


def test_only_differences_of_place_count():
    mixer, x, past = make_mixer(strata_offset=0.0), rows(), make_past()
    shift = torch.tensor([3.3, -40.0, 1.7])
    mixed, _ = mixer(x, make_grid(), None, past)
    moved = past._replace(positions=past.positions + shift)
    together, _ = mixer(x, make_grid(offset=shift), None, moved)
    torch.testing.assert_close(together, mixed, rtol=1e-3, atol=1e-3)
    apart, _ = mixer(x, make_grid(), None, moved)
    assert (apart - mixed).abs().max() > 0.05


def test_ages_date_the_tokens_and_age_zero_is_now():
    mixer, past = make_mixer(), make_past()
    now = past._replace(ages=torch.zeros_like(past.ages))
    assert torch.equal(mixer.memory(now), past.feats)
    dated = mixer.memory(past)
    assert (dated - past.feats).abs().amax(-1).min() > 0.01
    later, _ = mixer(rows(), make_grid(), None, past)
    assert not torch.allclose(later, mixer(rows(), make_grid(), None, now)[0], atol=1e-3)


@pytest.mark.parametrize('fusion', ['joint', 'gated'])
def test_absent_tokens_change_nothing(fusion):
    mixer, x = make_mixer(fusion=fusion), rows()
    past = make_past()
    past = past._replace(
        feats=past.feats * 1e3, present=torch.zeros_like(past.present), positions=past.positions - 9
    )
    alone, strata = mixer(x, make_grid())
    mixed, again = mixer(x, make_grid(), None, past)
    torch.testing.assert_close(mixed, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(strata.feats, again.feats)


def test_without_memory_nothing_is_added():
    plain = make_mixer(memory=None)
    none = make_mixer(memory=dict(frames=0))
    assert plain.state_dict().keys() == none.state_dict().keys()
    with_memory = make_mixer()
    extra = with_memory.state_dict().keys() - plain.state_dict().keys()
    assert extra == {'memory.age.weight', 'memory.offset'}
    with pytest.raises(ValueError, match='no memory'):
        plain(rows(), make_grid(), None, make_past())


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(memory=dict(frames=-1)), 'not -1'),
        (dict(memory=dict(frames=2.5)), 'not 2.5'),
        (dict(memory=dict(frames=2), num_strata=0), 'num_strata is 0'),
    ],
)
def test_impossible_memories_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_mixer(**settings)


def test_gradients_reach_dates_and_offset_even_without_any_past():
    mixer, past = make_mixer(), make_past()
    past = past._replace(present=torch.zeros_like(past.present))
    mixer(rows(), make_grid(), None, past)[0].sum().backward()
    for parameter in mixer.memory.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
