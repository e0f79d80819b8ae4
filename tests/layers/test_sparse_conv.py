import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stratified3d.layers.sparse_conv import SparseConv, SparseConvTensor, dense_bev
from stratified3d.testing import random_coords, relative_error


@pytest.fixture(autouse=True)
def two_threads():
    """spconv's own CPU convolution goes wrong with more than one thread, so one thread would prove
    nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def cloud(sizes, shape, channels, seed):
    coords = random_coords(sizes, shape, seed)
    generator = torch.Generator().manual_seed(seed)
    feats = torch.randn(len(coords), channels, generator=generator, requires_grad=True)
    return SparseConvTensor(feats, coords, list(shape), len(sizes))


def to_dense(x):
    """[B, C, Z, Y, X]"""
    volume = dense_bev(x).unflatten(1, (x.spatial_shape[0], x.features.shape[1]))
    return volume.transpose(1, 2)


def dense_weight(conv):
    return conv.conv.weight.permute(0, 4, 1, 2, 3)  # [O, z, y, x, I] -> [O, I, z, y, x]


def at(volume, indices):
    b, z, y, x = indices.long().unbind(1)
    return volume[b, :, z, y, x]


def compare(out, truth, inputs):
    """Values and gradients by a random weighting."""
    assert relative_error(out, truth) < 2e-6
    weight = torch.randn_like(truth)
    ours = torch.autograd.grad((out * weight).sum(), inputs, retain_graph=True)
    theirs = torch.autograd.grad((truth * weight).sum(), inputs)
    for a, b in zip(ours, theirs):
        assert relative_error(a, b) < 1e-5


SHAPES = [
    ((300, 200), (5, 20, 23)),
    ((1,), (3, 3, 3)),
    ((0, 80, 0), (1, 17, 9)),
    ((700,), (8, 10, 10)),
]


@pytest.mark.parametrize('sizes, shape', SHAPES)
@pytest.mark.parametrize('kernel', [3, (1, 3, 5), 1])
@pytest.mark.parametrize('seed', range(5))
def test_submanifold_equals_dense_convolution_on_the_active_set(sizes, shape, kernel, seed):
    torch.manual_seed(seed)
    x = cloud(sizes, shape, 6, seed)
    conv = SparseConv(6, 4, kernel, key='a')
    nn.init.normal_(conv.conv.bias)
    out = conv(x)
    assert torch.equal(out.indices, x.indices) and out.spatial_shape == x.spatial_shape
    padding = [k // 2 for k in conv.kernel_size]
    dense = F.conv3d(to_dense(x), dense_weight(conv), conv.conv.bias, padding=padding)
    compare(out.features, at(dense, out.indices), [x.features, *conv.parameters()])


@pytest.mark.parametrize('sizes, shape', SHAPES[:1] + SHAPES[2:])
@pytest.mark.parametrize(
    'kernel, stride, padding', [((1, 2, 2), (1, 2, 2), 0), (3, 2, 1), (3, 1, 1)]
)
@pytest.mark.parametrize('seed', range(3))
def test_strided_equals_dense_convolution_wherever_an_input_reaches(
    sizes, shape, kernel, stride, padding, seed
):
    torch.manual_seed(seed)
    x = cloud(sizes, shape, 5, seed)
    conv = SparseConv(5, 7, kernel, stride=stride, padding=padding, kind='strided', bias=False)
    out = conv(x)
    dense = F.conv3d(to_dense(x), dense_weight(conv), stride=conv.stride, padding=conv.padding)
    assert tuple(out.spatial_shape) == dense.shape[2:]
    ones = torch.ones_like(dense_weight(conv)[:1, :1])
    reached = F.conv3d(
        to_dense(x.replace_feature(torch.ones_like(x.features[:, :1]))),
        ones,
        stride=conv.stride,
        padding=conv.padding,
    )
    assert sorted(out.indices.tolist()) == [
        [b, *zyx] for b, _, *zyx in (reached > 0.5).nonzero().tolist()
    ]
    compare(out.features, at(dense, out.indices), [x.features, *conv.parameters()])


@pytest.mark.parametrize('seed', range(3))
def test_inverse_equals_dense_transposed_convolution_on_the_old_set(seed):
    torch.manual_seed(seed)
    x = cloud((200, 120), (4, 12, 14), 5, seed)
    down = SparseConv(5, 6, (2, 2, 2), stride=2, kind='strided', key='down', bias=False)
    up = SparseConv(6, 3, (2, 2, 2), kind='inverse', key='down')
    small = down(x)
    out = up(small)
    assert torch.equal(out.indices, x.indices) and out.spatial_shape == x.spatial_shape
    dense = F.conv_transpose3d(
        to_dense(small), dense_weight(up).transpose(0, 1), up.conv.bias, stride=2
    )
    compare(
        out.features, at(dense, out.indices), [x.features, *up.parameters(), *down.parameters()]
    )


def test_the_map_holds_every_voxel_at_its_place():
    x = cloud((30, 0, 12), (3, 5, 6), 4, 0)
    bev = dense_bev(x)
    assert bev.shape == (3, 12, 5, 6) and bev.is_contiguous(memory_format=torch.channels_last)
    for row, (b, z, y, xx) in zip(x.features, x.indices.tolist()):
        assert torch.equal(bev[b, 4 * z : 4 * z + 4, y, xx], row)
    assert int((bev != 0).sum()) == x.features.numel()


def test_many_clouds_with_two_threads():
    torch.manual_seed(0)
    conv = SparseConv(8, 8, 3, key='a', bias=False)
    for seed in range(30):
        x = cloud((1500,), (6, 40, 40), 8, seed)
        dense = F.conv3d(to_dense(x), dense_weight(conv), padding=1)
        assert relative_error(conv(x).features, at(dense, x.indices)) < 2e-6


def test_no_voxels_keep_the_graph():
    x = cloud((0, 0), (4, 6, 6), 5, 0)
    conv = SparseConv(5, 5, 3, key='a')
    down = SparseConv(5, 4, 2, stride=2, kind='strided')
    out = down(conv(x))
    assert out.features.shape == (0, 4) and out.spatial_shape == [2, 3, 3]
    out.features.sum().backward()  # distributed training waits for a gradient of every parameter
    assert all(
        p.grad is not None and not p.grad.any() for p in [*conv.parameters(), *down.parameters()]
    )


def test_bf16_and_large_values_survive():
    x = cloud((100,), (4, 8, 8), 4, 0)
    conv = SparseConv(4, 4, 3, key='a')
    out = conv(x.replace_feature(x.features.bfloat16()))
    assert out.features.dtype == torch.bfloat16
    assert conv(x.replace_feature(x.features * 1e5)).features.isfinite().all()


def test_rulebooks_are_shared_and_weights_load_as_saved():
    x = cloud((50,), (4, 8, 8), 4, 0)
    first, second = SparseConv(4, 4, 3, key='a'), SparseConv(4, 4, 3, key='a')
    book = first(x).indice_dict['a']
    assert second(first(x)).indice_dict['a'] is book
    second.load_state_dict(
        {k: v.clone() for k, v in first.state_dict().items()}
    )  # a plain dict: no version number
    assert torch.equal(second.conv.weight, first.conv.weight)


def test_backward_inside_autocast():
    x = cloud((60,), (4, 8, 8), 4, 0)
    conv = SparseConv(4, 4, 3, key='a')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        conv(x).features.square().sum().backward()
    assert conv.conv.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    'second', [dict(kernel_size=(3, 1, 5)), dict(kernel_size=1), dict(kind='strided')]
)
def test_sparse_conv_of_another_kind_cannot_share_a_key(second):
    x = cloud((50,), (4, 8, 8), 4, 0)
    SparseConv(4, 4, 3, key='a')(x)
    with pytest.raises(ValueError, match="key 'a' .* another convolution"):
        SparseConv(4, 4, key='a', **second)(x)


def test_sparse_conv_names_bad_settings():
    with pytest.raises(ValueError, match="kind .* not 'dense'"):
        SparseConv(4, 4, kind='dense')
    with pytest.raises(ValueError, match='odd kernel'):
        SparseConv(4, 4, 2)
    with pytest.raises(ValueError, match="'inverse' .* needs the key"):
        SparseConv(4, 4, 2, kind='inverse')
    with pytest.raises(ValueError, match="precision .* not 'bf16'"):
        SparseConv(4, 4, precision='bf16')
    with pytest.raises(ValueError, match="key 'down'"):
        SparseConv(4, 4, 2, kind='inverse', key='down')(cloud((5,), (4, 4, 4), 4, 0))
    x = cloud((50,), (4, 8, 8), 4, 0)
    small = SparseConv(4, 4, 2, stride=2, kind='strided', key='a')(x)
    with pytest.raises(ValueError, match="key 'a' .* other voxels"):
        SparseConv(4, 4, 3, key='a')(small)
