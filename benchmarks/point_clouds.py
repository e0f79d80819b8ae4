"""Voxel clouds that benchmarks run on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stratified3d.datasets.io.point_files import read_points
from stratified3d.layers.attention import WindowGrid, build_window_grid
from stratified3d.ops import grid_shape, voxel_centers, voxelize
from stratified3d.simulation import simulate_frame

# of the nuScenes config: voxels of 0.3 m x 0.3 m x 0.25 m in windows that span all z, and what
# stage 1 attends in
NUSCENES = ((0.3, 0.3, 0.25), (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0), (32, 12, 12))
# of detectors on Waymo, in a frame whose origin is the LiDAR's, 1.84 m above ground
WAYMO = ((0.32, 0.32, 0.1875), (-74.88, -74.88, -4.0, 74.88, 74.88, 2.0), (32, 12, 12))


class Cloud(NamedTuple):
    """coords [N, 4] int32 (batch, z, y, x); positions [N, 3] meters; spatial_shape, window_shape
    (z, y, x)."""

    name: str
    coords: Tensor
    positions: Tensor
    batch_size: int
    spatial_shape: tuple[int, int, int]
    window_shape: tuple[int, int, int]

    def prepare(self, head_dim: int, device: torch.device) -> WindowGrid:
        """Its regular windows."""
        return build_window_grid(
            self.coords.to(device),
            self.positions.to(device),
            self.window_shape,
            (0, 0, 0),
            batch_size=self.batch_size,
            spatial_shape=self.spatial_shape,
            head_dim=head_dim,
        )


def voxelized(name: str, clouds: list[Tensor], setting: tuple = NUSCENES) -> Cloud:
    """Points [P, 3 or more] of each sample as the voxels of a setting (voxel_size, range,
    window_shape)."""
    voxel_size, limits, window_shape = setting
    sample = torch.cat([torch.full((len(points),), b) for b, points in enumerate(clouds)])
    coords = voxelize(
        torch.cat([points[:, :3] for points in clouds]), sample, voxel_size, limits
    ).coords
    return Cloud(
        name,
        coords,
        voxel_centers(coords, voxel_size, limits),
        len(clouds),
        grid_shape(voxel_size, limits),
        window_shape,
    )


def simulated(sweeps: int, seed: int = 0) -> Tensor:
    """[P, 5] points of a simulated frame."""
    return torch.from_numpy(simulate_frame(seed, sweeps=sweeps)['points'])


class BenchmarkFrame(NamedTuple):
    """points [P, 5]: x, y, z (m), intensity (0 to 255), dt (s)."""

    name: str
    points: Tensor


def frames_for_model(points: Path | None, quick: bool) -> list[BenchmarkFrame]:
    """A real sweep (where a file of one is given; sweeps before it are not), and a simulated frame
    of ten sweeps."""
    frames = []
    if points is not None:
        sweep = torch.from_numpy(read_points(points))
        sweep = torch.cat([sweep, sweep.new_zeros(len(sweep), 1)], 1)
        frames.append(BenchmarkFrame(f'real, one sweep, {points.name[:40]}', sweep))
    if quick:
        return [*frames, BenchmarkFrame('simulated, one sweep', simulated(1))]
    return [*frames, BenchmarkFrame('simulated, 10 sweeps', simulated(10))]


def clouds_for_ops(points: Path | None, quick: bool) -> list[Cloud]:
    """A real sweep (where a file of one is given), simulated frames of ten sweeps, and 100,000 rows
    as on Waymo."""
    clouds = []
    if points is not None:
        clouds.append(
            voxelized(f'real sweep {points.name[:40]}', [torch.from_numpy(read_points(points))])
        )
    if quick:
        return [*clouds, take(voxelized('simulated sweep, 2,000 rows', [simulated(1)]), 2000)]
    clouds.append(voxelized('simulated, 10 sweeps', [simulated(10)]))
    return [
        *clouds,
        take(
            voxelized('Waymo-like, 100,000 rows', [simulated(10, 1), simulated(10, 2)], WAYMO),
            100000,
        ),
    ]


def take(cloud: Cloud, rows: int) -> Cloud:
    """That many rows at the cloud's own density: the first ones by y, or copies side by side along
    y where there are too few, whole windows apart."""
    coords, positions, n = cloud.coords, cloud.positions, len(cloud.coords)
    copies = -(-rows // n)
    order = coords[:, 2].long().argsort(stable=True).repeat(copies)
    copy = torch.arange(copies).repeat_interleave(n)
    step = -(-cloud.spatial_shape[1] // cloud.window_shape[1]) * cloud.window_shape[1]
    size = (positions[:, 1].max() - positions[:, 1].min()) / (
        coords[:, 2].max() - coords[:, 2].min()
    ).clamp(min=1)
    coords, positions = coords[order[:rows]].clone(), positions[order[:rows]].clone()
    coords[:, 2] += (copy[:rows] * step).int()
    positions[:, 1] += copy[:rows] * step * size
    z, y, x = cloud.spatial_shape
    return cloud._replace(coords=coords, positions=positions, spatial_shape=(z, copies * step, x))
