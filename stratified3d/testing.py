"""Shared by tests and benchmarks: random voxels, shape cases, tolerances, poisoned memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# largest `relative_error` against the reference in fp32 (fp64 for fp64) on the same rounded inputs
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}


class ShapeCase(NamedTuple):
    """A random batch.

    sizes: voxels of each sample; spatial_shape, window_shape: (z, y, x) in voxels; heads, width,
    strata: H, D, M.
    """

    sizes: tuple[int, ...]
    spatial_shape: tuple[int, int, int]
    window_shape: tuple[int, int, int]
    heads: int
    width: int
    strata: int


# odd on purpose: no voxel, one voxel, empty samples anywhere, windows of one row and of a thousand
SHAPE_CASES = {
    'plain': ShapeCase((150, 90), (4, 20, 20), (4, 6, 6), 2, 16, 8),
    'no_voxel': ShapeCase((0, 0), (4, 20, 20), (4, 6, 6), 2, 16, 8),
    'one_voxel': ShapeCase((1,), (4, 20, 20), (4, 6, 6), 1, 8, 4),
    'empty_between': ShapeCase((70, 0, 33), (1, 30, 30), (1, 7, 5), 3, 12, 5),
    'empty_ends': ShapeCase((0, 57, 0), (2, 9, 9), (2, 4, 4), 2, 24, 7),
    'windows_of_one': ShapeCase((40, 25), (1, 40, 40), (1, 1, 1), 2, 16, 3),
    'window_of_thousand': ShapeCase((1000, 3), (10, 12, 12), (10, 12, 12), 1, 8, 6),
    'no_strata': ShapeCase((64, 31), (4, 16, 16), (2, 5, 5), 2, 20, 0),
    'window_over_grid': ShapeCase((48,), (3, 7, 7), (8, 64, 64), 2, 33, 2),
    'fewer_rows_than_strata': ShapeCase((3, 60), (4, 16, 16), (4, 4, 4), 2, 16, 16),
}


def random_coords(sizes: Sequence[int], spatial_shape: Sequence[int], seed: int = 0) -> Tensor:
    """Distinct voxels in random order: [sum(sizes), 4] int32 (batch, z, y, x)."""
    generator = torch.Generator().manual_seed(seed)
    z, y, x = spatial_shape
    rows = []
    for b, size in enumerate(sizes):
        cell = torch.randperm(z * y * x, generator=generator)[:size]
        if len(cell) < size:
            raise ValueError(f'{size} distinct voxels do not fit into {tuple(spatial_shape)}')
        batch = torch.full_like(cell, b)
        rows.append(torch.stack([batch, cell // (y * x), cell // x % y, cell % x], 1))
    coords = torch.cat(rows).int()
    return coords[torch.randperm(len(coords), generator=generator)]


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest magnitude that is expected (at least 1).

    NaN anywhere gives NaN.
    """
    if value.shape != expected.shape:
        raise ValueError(f'shapes differ: {tuple(value.shape)} and {tuple(expected.shape)}')
    if not value.numel():
        return 0.0
    value = value.detach().double()
    expected = expected.detach().double()
    difference = (value - expected).abs().max()
    return float(difference / expected.abs().max().clamp(min=1))


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Within the block a GPU computes fp32 products in fp32, not in TF32."""
    backends: Any = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, value in zip(backends, before):
            backend.allow_tf32 = value


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within the block torch.empty and the like return NaN: a value never written shows."""
    mode = torch.get_deterministic_debug_mode()
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = before
        torch.set_deterministic_debug_mode(mode)
