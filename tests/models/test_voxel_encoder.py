import pytest
import torch

from stratified3d.models import voxel_encoder
from stratified3d.models.voxel_encoder import DynamicVoxelEncoder

RANGE, SIZE = (-4.0, -4.0, -2.0, 4.0, 4.0, 2.0), (0.5, 0.5, 1.0)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return DynamicVoxelEncoder(SIZE, RANGE, hidden_channels=8, out_channels=6)


def points(count, seed=0):
    torch.manual_seed(seed)
    return torch.randn(count, 5) * torch.tensor([2.0, 2, 1, 50, 0.1])


def test_voxel_features_do_not_depend_on_the_rest_of_the_batch(encoder):
    samples = [points(300, 1), points(0), points(200, 2)]
    feats, coords = encoder(samples)
    for i in (0, 2):
        alone, alone_coords = encoder(samples[i : i + 1])
        in_sample = coords[:, 0] == i
        assert torch.equal(coords[in_sample][:, 1:], alone_coords[:, 1:])
        torch.testing.assert_close(feats[in_sample], alone)
    assert not (coords[:, 0] == 1).any()


def test_voxel_features_do_not_depend_on_the_order_of_points(encoder):
    sample = points(400)
    feats, coords = encoder([sample])
    shuffled, same = encoder([sample[torch.randperm(400)]])
    assert torch.equal(coords, same)
    torch.testing.assert_close(shuffled, feats, atol=1e-5, rtol=1e-5)


def test_columns_beyond_in_channels_are_ignored(encoder):
    sample = points(100)
    wide = torch.cat([sample, torch.full((100, 2), torch.nan)], 1)
    torch.testing.assert_close(encoder([wide])[0], encoder([sample])[0])
    assert not encoder.num_dropped


@pytest.mark.parametrize('columns', [3, 4, 5, 7])
def test_encoder_reads_any_number_of_columns_from_three(columns):
    encoder = DynamicVoxelEncoder(SIZE, RANGE, in_channels=columns, hidden_channels=8)
    feats, coords = encoder([torch.randn(50, columns)])
    assert feats.shape == (len(coords), 64)


def test_units_of_inputs_are_a_matter_of_the_first_weights(encoder):
    torch.manual_seed(0)
    scaled = DynamicVoxelEncoder(
        SIZE, RANGE, hidden_channels=8, out_channels=6, dt_unit=0.1, relative_offsets=True
    )
    sample = points(300)
    assert not torch.allclose(scaled([sample])[0], encoder([sample])[0])
    with torch.no_grad():
        weight = scaled.point_layer[0].weight
        weight[:, 4] *= 0.1  # dt
        weight[:, 5:] *= torch.tensor(SIZE * 2) / 2  # two offsets
    torch.testing.assert_close(scaled([sample])[0], encoder([sample])[0])


def test_unit_of_dt_is_above_zero():
    with pytest.raises(ValueError, match='dt_unit'):
        DynamicVoxelEncoder(SIZE, RANGE, dt_unit=0)


def test_voxel_encoder_gradients_reach_every_parameter(encoder):
    feats, _ = encoder([points(300)])
    (feats * torch.randn_like(feats)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in encoder.parameters())


@pytest.mark.parametrize('count', [0, 1])
def test_voxel_encoder_of_no_point_and_of_one(encoder, count):
    feats, coords = encoder([torch.zeros(count, 5)])
    assert feats.shape == (count, 6) and coords.shape == (count, 4)
    feats.sum().backward()


@pytest.mark.parametrize('at_once', [1, 7, 60, 10_000])
def test_detection_describes_voxels_in_parts(encoder, monkeypatch, at_once):
    """One voxel has more points than a part, and there are more voxels than parts."""
    monkeypatch.setattr(voxel_encoder, '_POINTS_AT_ONCE', at_once)
    samples = [torch.cat([points(300), points(90) * 0.01]), points(0), points(40, 1)]
    feats, coords = encoder(samples)
    with torch.no_grad():
        parts, places = encoder(samples)
    assert torch.equal(places, coords) and len(coords) > 100
    torch.testing.assert_close(parts, feats.detach(), atol=1e-6, rtol=0)
