"""Functions of a GPU in plain torch beside the same functions on the CPU.

Some take another path there, so that a GPU is not compared with itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stratified3d import ops
from stratified3d.testing import exact_products, random_coords, relative_error

TOLERANCE = 2e-5
SEGMENTS = (5000, 0, 1, 700, 0)  # rows; long ones are summed in parts
RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)  # meters
SPATIAL_SHAPE = (8, 40, 40)


def check_segments(device: str) -> str:
    """Sum, mean, maximum and softmax of segments, with gradients."""
    offsets = torch.tensor([0, *SEGMENTS]).cumsum(0)
    values = _random(sum(SEGMENTS), 8)
    calls: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, offsets: ops.segment_reduce(x, offsets, 'sum'),
        lambda x, offsets: ops.segment_reduce(x, offsets, 'mean'),
        lambda x, offsets: ops.segment_reduce(x, offsets, 'max'),
        ops.segment_softmax,
    ]
    return _compare(device, calls, values, offsets)


def check_pooling(device: str) -> str:
    """Strata tokens and their places, with the gradient of the features."""
    offsets = torch.tensor([0, *SEGMENTS], dtype=torch.int32).cumsum(0)
    feats = _random(sum(SEGMENTS), 20)

    def pool(x: Tensor, offsets: Tensor) -> Tensor:
        tokens, places, _ = ops.pool_strata(x[:, :16], x[:, 16:19], x[:, 19:], offsets, 16)
        return torch.cat([tokens, places], -1)

    return _compare(device, [pool], feats, offsets)


def check_planning(device: str) -> str:
    """Voxels and windows are the same, bit by bit."""
    points = _random(20_000, 3) * 20
    sample = torch.arange(len(points)) % 3
    coords = random_coords((900, 0, 600), SPATIAL_SHAPE)

    def plan(device: str) -> list[Tensor]:
        size = (0.4, 0.4, 0.5)
        voxels = ops.voxelize(points.to(device), sample.to(device), size, RANGE)
        centers = ops.voxel_centers(voxels.coords, size, RANGE)
        windows = ops.plan_windows(
            coords.to(device), (8, 12, 12), batch_size=3, spatial_shape=SPATIAL_SHAPE
        )
        return [*voxels, *windows, centers]

    found, expected = plan(device), plan('cpu')
    *integers, centers = found
    for i, (value, wanted) in enumerate(zip(integers, expected)):
        assert torch.equal(value.cpu(), wanted), f'tensor {i} of voxels and windows differs'
    error = relative_error(centers.cpu(), expected[-1])
    assert error <= TOLERANCE, f'centers of voxels differ by {error:.1e}'
    return f'{len(centers)} voxels'


def check_nms(device: str) -> str:
    """Both kinds of NMS keep the same boxes."""
    boxes = _random(400, 5) * torch.tensor([8.0, 8.0, 0.5, 0.3, 3.0])
    boxes[:, 2:4] = boxes[:, 2:4].abs() + torch.tensor([4.0, 1.8])
    scores = torch.rand(400, generator=torch.Generator().manual_seed(1))

    def keep(device: str) -> list[Tensor]:
        on_device = boxes.to(device), scores.to(device)
        return [
            ops.rotated_nms(*on_device, 0.2),
            ops.circle_nms(on_device[0][:, :2], on_device[1], 2.0),
        ]

    for name, value, wanted in zip(('rotated', 'circle'), keep(device), keep('cpu')):
        assert torch.equal(value.cpu(), wanted), f'{name} NMS keeps other boxes'
    return f'{len(boxes)} boxes'


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _compare(
    device: str, calls: list[Callable[[Tensor, Tensor], Tensor]], values: Tensor, offsets: Tensor
) -> str:
    """Outputs and gradients of calls with (values, offsets)."""
    largest = 0.0
    for i, call in enumerate(calls):
        with exact_products():
            found = _with_gradient(call, values.to(device), offsets.to(device))
            expected = _with_gradient(call, values, offsets)
        for what, value, wanted in zip(('output', 'gradient'), found, expected):
            error = relative_error(value.cpu(), wanted)
            assert error <= TOLERANCE, f'{what} of function {i} is off by {error:.1e}'
            largest = max(largest, error)
    return f'largest error {largest:.1e}'


def _with_gradient(
    call: Callable[[Tensor, Tensor], Tensor], values: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    values = values.detach().clone().requires_grad_()
    out = call(values, offsets)
    weight = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
    (grad,) = torch.autograd.grad((out * weight).sum(), values)
    return out.detach(), grad
