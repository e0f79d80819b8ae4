"""Sparse convolutions of a GPU beside those of the CPU, with the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stratified3d.testing import random_coords, relative_error

if TYPE_CHECKING:
    from stratified3d.layers.sparse_conv import SparseConv, SparseConvTensor

SPATIAL_SHAPE = (8, 40, 40)
SIZES = (900, 0, 600)  # voxels per sample
CHANNELS = 32
# tensor cores may compute fp32 products in TF32, and spconv computes bf16 voxels in fp32
TOLERANCES = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}


def check_convolutions(device: str, dtype: torch.dtype) -> str:
    """Outputs and gradients of the three kinds of convolution in a row."""
    coords = random_coords(SIZES, SPATIAL_SHAPE)
    feats = torch.randn(len(coords), CHANNELS, generator=torch.Generator().manual_seed(0))
    expected = _run(coords, feats, 'cpu', torch.float32)
    found = _run(coords, feats, device, dtype)
    errors = {
        name: relative_error(found[name].cpu().float(), wanted) for name, wanted in expected.items()
    }
    wrong = [f'{name} {error:.1e}' for name, error in errors.items()]
    tolerance = TOLERANCES[dtype]
    is_right = all(error <= tolerance for error in errors.values())
    assert is_right, f'errors, at most {tolerance:g} is rounding: {", ".join(wrong)}'
    return f'largest error {max(errors.values()):.1e}'


def _run(coords: Tensor, feats: Tensor, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs and gradients by name; rows of voxels in an order that every device shares."""
    from stratified3d.layers.sparse_conv import SparseConvTensor

    layers = _make_layers(dtype)
    layers.to(device)
    feats = feats.to(device, dtype, copy=True).requires_grad_()
    voxels = SparseConvTensor(feats, coords.to(device), list(SPATIAL_SHAPE), len(SIZES))
    results = {}
    for name, layer in layers.items():
        voxels = layer(voxels)
        results[name] = _sorted_rows(voxels)
    # every row has a weight of its own, so that rows that are swapped show
    weight = torch.linspace(0.5, 1.5, len(feats), device=device).unsqueeze(1)
    (voxels.features.float() * weight).square().sum().backward()
    assert feats.grad is not None
    gradients = {'gradient of the voxels': feats.grad}
    for name, parameter in layers.named_parameters():
        assert parameter.grad is not None
        gradients[f'gradient of {name}'] = parameter.grad
    # their size depends on the number of voxels, the error is to be relative
    scaled = {name: value.float() / len(feats) ** 0.5 for name, value in gradients.items()}
    return {name: value.detach() for name, value in (results | scaled).items()}


def _make_layers(dtype: torch.dtype) -> torch.nn.ModuleDict:
    """A submanifold convolution, a strided one and its inverse, with the same weights each time."""
    from stratified3d.layers.sparse_conv import SparseConv

    precision = 'fp16' if dtype == torch.float16 else 'fp32'
    torch.manual_seed(0)

    def layer(**settings) -> SparseConv:
        return SparseConv(CHANNELS, CHANNELS, 3, precision=precision, **settings)

    layers = dict(
        submanifold=layer(key='a'),
        strided=layer(kind='strided', stride=2, padding=1, key='b'),
        inverse=layer(kind='inverse', key='b'),
    )
    return torch.nn.ModuleDict(layers)


def _sorted_rows(voxels: SparseConvTensor) -> Tensor:
    """Features in the order of the voxels' coordinates."""
    b, z, y, x = voxels.indices.long().unbind(1)
    size_z, size_y, size_x = voxels.spatial_shape
    return voxels.features[torch.argsort(((b * size_z + z) * size_y + y) * size_x + x)]
