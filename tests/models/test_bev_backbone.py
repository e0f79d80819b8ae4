import pytest
import torch

from stratified3d.models.bev_backbone import ResidualBEVBackbone


@pytest.mark.parametrize('size', [(16, 16), (15, 9), (1, 1), (7, 32)])
@pytest.mark.parametrize('strides', [(1, 2, 2), (2, 2), (1,)])
def test_output_has_the_first_stages_size(size, strides):
    stages = len(strides)
    model = ResidualBEVBackbone(
        6, channels=(8,) * stages, depths=(1, 2, 1)[:stages], strides=strides, out_channels=5
    ).eval()
    (out,) = model(torch.randn(2, 6, *size))
    expected = tuple(-(-s // strides[0]) for s in size)
    assert out.shape == (2, 5 * stages, *expected) and model.out_channels == 5 * stages
    assert model.stride == strides[0]


def test_backbone_gradients_reach_every_parameter():
    model = ResidualBEVBackbone(4, channels=(8, 8), depths=(2, 1), strides=(2, 2), out_channels=4)
    (out,) = model(torch.randn(2, 4, 12, 12))
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


def test_settings_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r'\[8, 8\], .* \[1\] .* \[1, 2\]'):
        ResidualBEVBackbone(4, channels=(8, 8), depths=(1,), strides=(1, 2))
