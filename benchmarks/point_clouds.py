"""Point clouds and voxels that benchmarks run on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.default_config import POINT_CLOUD_RANGE, VOXEL_SIZE, WINDOW_SHAPE
from stratified3d.datasets.io.point_files import read_points
from stratified3d.layers.window_grid import WindowGrid, build_window_grid
from stratified3d.ops import grid_shape, voxel_centers, voxelize
from stratified3d.simulation.frame import simulate_frame


class Voxelization(NamedTuple):
    """voxel_size (x, y, z) and point_cloud_range in meters; window_shape (z, y, x) in voxels."""

    voxel_size: tuple[float, float, float]
    point_cloud_range: tuple[float, float, float, float, float, float]
    window_shape: tuple[int, int, int]


NUSCENES = Voxelization(VOXEL_SIZE, POINT_CLOUD_RANGE, WINDOW_SHAPE)
# of detectors on Waymo, in a frame whose origin is the LiDAR's, 1.84 m above ground
WAYMO = Voxelization((0.32, 0.32, 0.1875), (-74.88, -74.88, -4.0, 74.88, 74.88, 2.0), (32, 12, 12))


class VoxelBatch(NamedTuple):
    """Voxels of one or several samples.

    coords [N, 4] int32 (batch, z, y, x); positions [N, 3] in meters; spatial_shape and window_shape
    (z, y, x) in voxels.
    """

    name: str
    coords: Tensor
    positions: Tensor
    batch_size: int
    spatial_shape: tuple[int, int, int]
    window_shape: tuple[int, int, int]

    def prepare(self, head_dim: int, device: torch.device) -> WindowGrid:
        """Its windows without a shift."""
        return build_window_grid(
            self.coords.to(device),
            self.positions.to(device),
            self.window_shape,
            (0, 0, 0),
            batch_size=self.batch_size,
            spatial_shape=self.spatial_shape,
            head_dim=head_dim,
        )


def voxelize_samples(
    name: str, samples: Sequence[Tensor], voxelization: Voxelization = NUSCENES
) -> VoxelBatch:
    """Voxels of samples, each given as points [P, 3 or more]."""
    voxel_size, limits, window_shape = voxelization
    points = torch.cat([sample[:, :3] for sample in samples])
    batch_index = torch.cat([torch.full((len(sample),), b) for b, sample in enumerate(samples)])
    coords = voxelize(points, batch_index, voxel_size, limits).coords
    return VoxelBatch(
        name,
        coords,
        voxel_centers(coords, voxel_size, limits),
        len(samples),
        grid_shape(voxel_size, limits),
        window_shape,
    )


def simulate_points(sweeps: int, seed: int = 0) -> Tensor:
    """[P, 5] points of a simulated frame."""
    return torch.from_numpy(simulate_frame(seed, sweeps=sweeps)['points'])


class BenchmarkFrame(NamedTuple):
    """points [P, 5]: x, y, z (m), intensity (0 to 255), dt (s)."""

    name: str
    points: Tensor


def frames_for_model(points: Path | None, quick: bool) -> list[BenchmarkFrame]:
    """A real sweep if its file is given (without the sweeps before it), and a simulated frame of
    ten sweeps."""
    frames = []
    if points is not None:
        sweep = torch.from_numpy(read_points(points))
        sweep = torch.cat([sweep, sweep.new_zeros(len(sweep), 1)], 1)
        frames.append(BenchmarkFrame(f'real, one sweep, {points.name[:40]}', sweep))
    if quick:
        frames.append(BenchmarkFrame('simulated, one sweep', simulate_points(1)))
    else:
        frames.append(BenchmarkFrame('simulated, 10 sweeps', simulate_points(10)))
    return frames


def batches_for_ops(points: Path | None, quick: bool) -> list[VoxelBatch]:
    """A real sweep if its file is given, a simulated frame of ten sweeps, and 100,000 rows as on
    Waymo."""
    batches = []
    if points is not None:
        sweep = torch.from_numpy(read_points(points))
        batches.append(voxelize_samples(f'real sweep {points.name[:40]}', [sweep]))
    if quick:
        batch = voxelize_samples('simulated sweep, 2,000 rows', [simulate_points(1)])
        return [*batches, take_rows(batch, 2000)]

    batches.append(voxelize_samples('simulated, 10 sweeps', [simulate_points(10)]))
    samples = [simulate_points(10, seed) for seed in (1, 2)]
    waymo_like = voxelize_samples('Waymo-like, 100,000 rows', samples, WAYMO)
    return [*batches, take_rows(waymo_like, 100000)]


def take_rows(batch: VoxelBatch, rows: int) -> VoxelBatch:
    """A batch of that many rows at the same density, on a larger or smaller area.

    The area grows along x and y alike, as a longer range does, so that strips and lines become
    longer: copies of all rows lie side by side, whole windows apart, and fill a square. Of the last
    copy, or of a single one, it takes the square corner that has enough rows.
    """
    num_rows = len(batch.coords)
    copies = -(-rows // num_rows)
    copy = torch.arange(copies).repeat_interleave(num_rows)[:rows]
    corner = batch.coords[:, 2:].long().amax(1).argsort(stable=True)
    order = corner.repeat(copies)[:rows]

    depth, *sizes = batch.spatial_shape
    places = _square_places(copies)  # [copies, 2] (y, x)
    steps = [-(-size // n) * n for size, n in zip(sizes, batch.window_shape[1:])]
    moved = places[copy] * torch.tensor(steps)  # [rows, 2] voxels

    coords = batch.coords[order].clone()
    coords[:, 2:] += moved.int()
    positions = batch.positions[order].clone()
    positions[:, :2] += moved.flip(1) * _voxel_length(batch)
    height, width = (
        int(count) * step for count, step in zip(places.amax(0) + 1, steps, strict=True)
    )
    return batch._replace(coords=coords, positions=positions, spatial_shape=(depth, height, width))


def _square_places(count: int) -> Tensor:
    """The first cells (y, x) of a field that grows as a square, one row and column at a time."""
    side = math.isqrt(max(0, count - 1)) + 1
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    return places[places.amax(1).argsort(stable=True)][:count]


def thin_rows(batch: VoxelBatch, rows: int) -> VoxelBatch:
    """A batch with that many of the rows, drawn at random: the same area at a lower density."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(batch.coords), generator=generator)[:rows].sort().values
    return batch._replace(coords=batch.coords[chosen], positions=batch.positions[chosen])


def _voxel_length(batch: VoxelBatch) -> Tensor:
    """Meters of a voxel along x and y, [2]."""
    voxels = batch.coords[:, [3, 2]]
    meters = batch.positions[:, :2]
    return (meters.amax(0) - meters.amin(0)) / (voxels.amax(0) - voxels.amin(0)).clamp(min=1)
