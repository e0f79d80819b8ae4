import pytest
import torch
from mmdet3d.registry import MODELS

from stratified3d.testing import random_coords, relative_error

RANGE = (-12.8, -12.8, -2.0, 12.8, 12.8, 2.0)
GRID = (8, 64, 64)


@pytest.fixture
def encoder(small_config):
    def make(**settings):
        torch.manual_seed(0)
        return MODELS.build(
            {
                **small_config['encoder'],
                'voxel_size': (0.4, 0.4, 0.5),
                'point_cloud_range': RANGE,
                'in_channels': 8,
                **settings,
            }
        )

    return make


def cloud(sizes=(200, 0, 150)):
    torch.manual_seed(1)
    return torch.randn(sum(sizes), 8, requires_grad=True), random_coords(sizes, GRID), len(sizes)


@pytest.mark.parametrize(
    'settings',
    [
        {},
        dict(mixer=dict(num_strata=0)),
        dict(mixer=dict(fusion='gated')),
        dict(mixer=dict(selection='first', carry_tokens=False)),
        dict(shifted=False),
        dict(use_rotary=False),
        dict(use_conv=False, stem_depth=0),
        dict(num_heads=1),
        dict(ffn_ratio=1),
    ],
)
def test_backends_agree_in_output_and_gradients(encoder, settings):
    results = []
    for backend in ('reference', 'sdpa'):
        feats, coords, batch_size = cloud()
        mixer = dict(backend=backend, **settings.get('mixer', {}))
        model = encoder(**{**settings, 'mixer': mixer})
        out = model(feats, coords, batch_size)
        assert out.shape == (3, 16, 64, 64)
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        results.append(
            [out, feats.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
        )
    assert len(results[0]) == len(results[1])
    for a, b in zip(*results):
        assert relative_error(b, a) < 1e-4


def test_the_map_is_zero_where_no_voxel_is(encoder):
    feats, coords, batch_size = cloud()
    out = encoder()(feats, coords, batch_size)
    occupied = torch.zeros(3, 64, 64, dtype=torch.bool)
    occupied[coords[:, 0].long(), coords[:, 2].long(), coords[:, 3].long()] = True
    assert torch.equal((out != 0).any(1), occupied)


def test_the_order_of_samples_does_not_matter(encoder):
    model = encoder()
    feats, coords, _ = cloud((100, 120))
    swapped = coords.clone()
    swapped[:, 0] = 1 - swapped[:, 0]
    with torch.no_grad():
        assert relative_error(model(feats, swapped, 2).flip(0), model(feats, coords, 2)) < 1e-5


@pytest.mark.parametrize('selection', ['pool', 'first'])
def test_the_order_a_strided_convolution_leaves_does_not_matter(encoder, selection, monkeypatch):
    """spconv numbers the outputs of a strided convolution differently on each device; the strata
    are chunks of rows."""
    from stratified3d.layers import sparse_conv

    feats, coords, batch_size = cloud()
    model = encoder(mixer=dict(num_strata=8, selection=selection))
    for stage in model.stages:
        for block in stage.blocks:
            torch.nn.init.constant_(block.mixer.strata_offset, 3.0)
    truth = model(feats, coords, batch_size)
    made = sparse_conv.SparseConv._make_rulebook

    def shuffled(self, x):
        book = made(self, x)
        if self.kind != 'strided':
            return book
        order = torch.randperm(len(book.out_indices))
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        return book._replace(
            out_indices=book.out_indices[order], target=[place[t] for t in book.target]
        )

    monkeypatch.setattr(sparse_conv.SparseConv, '_make_rulebook', shuffled)
    assert relative_error(model(feats, coords, batch_size), truth) < 1e-5


def test_two_scales(encoder):
    model = encoder(
        stages=[
            dict(depth=1, window_shape=(8, 8, 8), stride=(4, 2, 2)),
            dict(depth=1, window_shape=(2, 8, 8), stride=(1, 1, 1)),
        ]
    )
    feats, coords, batch_size = cloud()
    assert model.out_shape == (2, 32, 32) and model.out_channels == 32
    assert model(feats, coords, batch_size).shape == (3, 32, 32, 32)


def test_checkpointing_changes_nothing(encoder):
    grads = []
    for with_cp in (False, True):
        feats, coords, batch_size = cloud()
        model = encoder(with_cp=with_cp)
        model(feats, coords, batch_size).square().sum().backward()
        grads.append([feats.grad, *(p.grad for p in model.parameters())])
    assert all(relative_error(b, a) < 1e-6 for a, b in zip(*grads))


@pytest.mark.parametrize('name', ['num_heads', 'channels', 'use_rotary'])
def test_mixer_cannot_set_what_belongs_to_the_encoder(encoder, name):
    with pytest.raises(ValueError, match=f'mixer: {name} belong'):
        encoder(mixer={name: 1})
