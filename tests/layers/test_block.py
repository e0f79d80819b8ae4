import pytest
import torch

from stratified3d.layers.attention import MixerContext, StratifiedAttention
from stratified3d.layers.block import StratifiedStage
from stratified3d.layers.sparse_conv import SparseConvTensor
from stratified3d.layers.window_grid import build_window_grid
from stratified3d.testing import random_coords, relative_error

SHAPE = (4, 16, 16)


def stage(depth=3, carry_tokens=True, seed=0, **settings):
    torch.manual_seed(seed)
    return StratifiedStage(
        16,
        depth,
        lambda i: StratifiedAttention(
            MixerContext(16, 2, block=i), num_strata=6, carry_tokens=carry_tokens
        ),
        (4, 5, 6),
        head_dim=8,
        **settings,
    )


def cloud(sizes=(50, 0, 20)):
    coords = random_coords(sizes, SHAPE)
    torch.manual_seed(1)
    x = SparseConvTensor(
        torch.randn(len(coords), 16, requires_grad=True), coords, list(SHAPE), len(sizes)
    )
    return x, coords[:, [3, 2, 1]].float()


@pytest.mark.parametrize('carry_tokens', [True, False])
@pytest.mark.parametrize('use_conv', [True, False])
def test_gradients_reach_every_parameter(carry_tokens, use_conv):
    x, positions = cloud()
    module = stage(carry_tokens=carry_tokens, use_conv=use_conv)
    out = module(*module.order_voxels(x, positions)).features
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize('selection', ['pool', 'random', 'topk'])
def test_checkpointing_changes_no_gradient(selection):
    results = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        module = StratifiedStage(
            16,
            2,
            lambda i: StratifiedAttention(
                MixerContext(16, 2, block=i), num_strata=6, selection=selection
            ),
            (4, 5, 6),
            head_dim=8,
            with_cp=with_cp,
        )
        x, positions = cloud()
        torch.manual_seed(5)
        scores = []
        out = module(*module.order_voxels(x, positions), scores).features
        logits = sum(score.logits.square().sum() for score in scores)
        (out.square().sum() + logits).backward()
        results.append([out, x.features.grad, *(p.grad for p in module.parameters())])
    for a, b in zip(*results):
        assert relative_error(b, a) < 1e-6


def test_shifted_windows_reach_across_borders():
    """A voxel just across a window's border is felt in the second block only if its windows are
    shifted."""
    coords = torch.tensor(
        [[0, 0, 4, 4], [0, 0, 4, 5], [0, 0, 12, 12]], dtype=torch.int32
    )  # border between x 4 and 5
    feats = torch.randn(3, 16)
    for shifted in (True, False):
        torch.manual_seed(0)
        module = StratifiedStage(
            16,
            2,
            lambda i: StratifiedAttention(MixerContext(16, 2), num_strata=0),
            (4, 5, 5),
            shifted=shifted,
            head_dim=8,
            use_conv=False,
        )
        outs = []
        for change in (0, 1):
            moved = feats.clone()
            moved[1] += change
            x = SparseConvTensor(moved, coords, list(SHAPE), 1)
            outs.append(module(*module.order_voxels(x, coords[:, [3, 2, 1]].float())).features)
        felt = (outs[0] - outs[1]).abs().amax(1) > 0
        assert felt.tolist() == [shifted, True, False]


@pytest.mark.parametrize(
    'fusion, selection, carry_tokens',
    [
        ('joint', 'pool', True),
        ('gated', 'pool', False),
        ('joint', 'first', False),
        ('joint', 'farthest', False),
    ],
)
def test_stage_equals_blocks_that_permute_rows_themselves(fusion, selection, carry_tokens):
    """Blocks on voxels in window order against the same blocks that move them to and fro.

    Without `carry_tokens` the shifted blocks create tokens from their own rows, whose order must
    be the same, too.
    """
    torch.manual_seed(0)
    module = StratifiedStage(
        16,
        3,
        lambda i: StratifiedAttention(
            MixerContext(16, 2, block=i),
            num_strata=6,
            selection=selection,
            fusion=fusion,
            carry_tokens=carry_tokens,
        ),
        (2, 5, 6),
        head_dim=8,
    )
    x, positions = cloud()
    weight = torch.randn(70, 16)
    moved, grids = module.order_voxels(x, positions)
    assert [grid.is_sorted for grid in grids] == [True, False]
    out = module(moved, grids)
    plain = [
        build_window_grid(
            x.indices, positions, (2, 5, 6), shift, batch_size=3, spatial_shape=SHAPE, head_dim=8
        )
        for shift in ((0, 0, 0), (1, 2, 3))
    ]
    order = plain[0].plan.order
    assert torch.equal(out.indices, x.indices[order])
    truth, strata = x, None
    for i, block in enumerate(module.blocks):
        truth, strata = block(truth, plain[i % 2], strata if carry_tokens else None)
    assert all(torch.equal(a.coords, b.coords) for a, b in zip(grids, plain))
    inputs = [x.features, *module.parameters()]
    found = torch.autograd.grad((out.features * weight[order]).sum(), inputs)
    for a, b in zip(
        (out.features, *found),
        (truth.features[order], *torch.autograd.grad((truth.features * weight).sum(), inputs)),
    ):
        assert relative_error(a, b) < 1e-5


def test_one_voxel_and_none():
    for sizes in ((1,), (0,), (0, 0)):
        x, positions = cloud(sizes)
        module = stage()
        assert module(*module.order_voxels(x, positions)).features.shape == (sum(sizes), 16)
