"""Convolutions by a table of neighbors equal those of spconv's rulebook."""

import pytest
import torch

from stratified3d.deploy.convolution import TableConv, submanifold_table
from stratified3d.layers.sparse_conv import SparseConv, SparseConvTensor

SHAPE = [5, 7, 6]


def voxels(count, channels=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(SHAPE[0] * SHAPE[1] * SHAPE[2], generator=generator)[:count]
    z, y, x = cells // 42, cells // 6 % 7, cells % 6
    coords = torch.stack([torch.zeros_like(z), z, y, x], 1).int()
    feats = torch.randn(count, channels, generator=generator)
    return SparseConvTensor(feats, coords, SHAPE, 1)


def by_cell(x):
    """Features in the order of the voxels' places."""
    _, z, y, x_index = x.indices.long().unbind(1)
    return x.features[((z * 100 + y) * 100 + x_index).argsort()]


@pytest.mark.parametrize('count', [1, 2, 60, 210])
@pytest.mark.parametrize('kernel_size', [3, (1, 3, 5)])
def test_submanifold_convolution_equals_spconv(count, kernel_size):
    conv = SparseConv(8, 12, kernel_size, key='a')
    x = voxels(count)
    torch.testing.assert_close(TableConv(conv)(x).features, conv(voxels(count)).features)


@pytest.mark.parametrize('count', [1, 60, 210])
@pytest.mark.parametrize('stride', [(5, 1, 1), (5, 7, 3)])
def test_strided_convolution_equals_spconv(count, stride):
    conv = SparseConv(8, 4, stride, stride=stride, kind='strided', bias=False)
    expected, found = conv(voxels(count)), TableConv(conv)(voxels(count))
    assert list(found.spatial_shape) == list(expected.spatial_shape)
    torch.testing.assert_close(by_cell(found), by_cell(expected))


def test_convolutions_of_a_key_share_their_pairs():
    convs = [TableConv(SparseConv(8, 8, 3, key='a')) for _ in range(2)]
    x = convs[0](voxels(30))
    kept = x.indice_dict['a']
    assert convs[1](x).indice_dict['a'] is kept


def test_table_names_the_neighbor_at_each_step():
    coords = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4], [0, 0, 1, 3], [0, 1, 3, 0], [0, 1, 2, 5]])
    table = submanifold_table(coords, (2, 4, 6), (3, 3, 3))
    assert table[13].tolist() == [0, 1, 2, 3, 4]
    assert table[14].tolist() == [1, 4, -1, -1, -1]  # one step along x; rows do not wrap around
    assert table[4].tolist() == [-1, -1, -1, -1, -1]
    assert table[1 * 3 + 0].tolist() == [-1] * 5
    assert table[(0 * 3 + 0) * 3 + 1].tolist() == [2, -1, -1, -1, -1]  # one below and one behind


def test_other_convolutions_are_refused():
    with pytest.raises(ValueError, match='cannot be exported'):
        TableConv(SparseConv(8, 8, 3, stride=2, kind='strided'))
