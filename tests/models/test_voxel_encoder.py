import pytest
import torch

from stratified3d.models.voxel_encoder import DynamicVoxelEncoder

RANGE, SIZE = (-4.0, -4.0, -2.0, 4.0, 4.0, 2.0), (0.5, 0.5, 1.0)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return DynamicVoxelEncoder(SIZE, RANGE, hidden_channels=8, out_channels=6)


def points(count, seed=0):
    torch.manual_seed(seed)
    return torch.randn(count, 5) * torch.tensor([2.0, 2, 1, 50, 0.1])


def test_a_sample_is_described_as_if_it_were_alone(encoder):
    clouds = [points(300, 1), points(0), points(200, 2)]
    feats, coords = encoder(clouds)
    for i in (0, 2):
        alone, alone_coords = encoder(clouds[i : i + 1])
        mine = coords[:, 0] == i
        assert torch.equal(coords[mine][:, 1:], alone_coords[:, 1:])
        torch.testing.assert_close(feats[mine], alone)
    assert not (coords[:, 0] == 1).any()


def test_the_order_of_points_does_not_matter(encoder):
    cloud = points(400)
    feats, coords = encoder([cloud])
    shuffled, same = encoder([cloud[torch.randperm(400)]])
    assert torch.equal(coords, same)
    torch.testing.assert_close(shuffled, feats, atol=1e-5, rtol=1e-5)


def test_more_columns_than_it_reads_are_ignored(encoder):
    cloud = points(100)
    wide = torch.cat([cloud, torch.full((100, 2), torch.nan)], 1)
    torch.testing.assert_close(encoder([wide])[0], encoder([cloud])[0])
    assert not encoder.num_dropped


@pytest.mark.parametrize('columns', [3, 4, 5, 7])
def test_any_number_of_columns(columns):
    encoder = DynamicVoxelEncoder(SIZE, RANGE, in_channels=columns, hidden_channels=8)
    feats, coords = encoder([torch.randn(50, columns)])
    assert feats.shape == (len(coords), 64)


def test_gradients_reach_every_parameter(encoder):
    feats, _ = encoder([points(300)])
    (feats * torch.randn_like(feats)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in encoder.parameters())


@pytest.mark.parametrize('count', [0, 1])
def test_no_point_and_one(encoder, count):
    feats, coords = encoder([torch.zeros(count, 5)])
    assert feats.shape == (count, 6) and coords.shape == (count, 4)
    feats.sum().backward()
