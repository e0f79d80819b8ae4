"""Voxel features from points, without a limit on the number of either."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from stratified3d.ops import Voxels, segment_broadcast, segment_reduce, voxel_centers, voxelize

# a larger coordinate, intensity or age is as broken as NaN, and would lead to NaN
_LARGEST = 1e6
# points whose features a CPU's cache can hold from one operation to the next; medians of five calls
# of `describe` for 245,000 random points in 84,000 voxels on two cores of an AMD EPYC, in ms: all
# at once 255 to 289, 65,536 at a time 188, 32,768 120, 16,384 137, 8,192 161, 2,048 224
_POINTS_AT_ONCE = 32_768


@MODELS.register_module()
class DynamicVoxelEncoder(nn.Module):
    """Voxelize a batch of point clouds and describe every voxel by its points.

    A point's features are its columns and its offsets from the mean and the center of its voxel.
    Two layers follow (linear, layer norm, ReLU); the second also sees the voxel's maximum after the
    first. A linear layer on the maximum and mean over the voxel's points gives the voxel's features
    (PointNet, Qi et al. 2017, section 4.2; dynamic voxelization, Zhou et al. 2020).

    Args:
        voxel_size: (x, y, z) meters.
        point_cloud_range: (x_min, y_min, z_min, x_max, y_max, z_max) meters.
        in_channels: columns read from the points: x, y, z, intensity, and dt (s) or elongation
            where there are 5.
        hidden_channels: width of the two layers.
        out_channels: width of the voxel features.
        intensity_max: largest intensity, by which intensities are divided; 255 on nuScenes.
        dt_unit: what the fifth column is divided by; seconds where it is dt. A short training
            learns faster from ages near 1 than from hundredths of a second.
        relative_offsets: whether offsets are divided by half the size of a voxel, for the same
            reason, instead of being meters.
    Raises:
        ValueError: in_channels below 3, dt_unit not above 0.
    """

    offset_unit: Tensor

    def __init__(
        self,
        voxel_size: Sequence[float],
        point_cloud_range: Sequence[float],
        in_channels: int = 5,
        hidden_channels: int = 64,
        out_channels: int = 64,
        intensity_max: float = 255.0,
        dt_unit: float = 1.0,
        relative_offsets: bool = False,
    ):
        super().__init__()
        if in_channels < 3:
            raise ValueError(f'in_channels counts x, y, z at least, not {in_channels}')
        if not dt_unit > 0:
            raise ValueError(f'dt_unit is a number of seconds above 0, not {dt_unit}')
        self.voxel_size = tuple(voxel_size)
        self.point_cloud_range = tuple(point_cloud_range)
        self.in_channels = in_channels
        self.intensity_scale = 1 / intensity_max
        self.dt_unit = dt_unit
        half = torch.tensor([*voxel_size, *voxel_size], dtype=torch.float32) / 2
        unit = half if relative_offsets else torch.ones(6)
        self.register_buffer('offset_unit', unit, persistent=False)
        self.point_layer = _layer(in_channels + 6, hidden_channels)
        self.voxel_layer = _layer(2 * hidden_channels, hidden_channels)
        self.out = nn.Linear(2 * hidden_channels, out_channels)
        self.out_channels = out_channels
        self.num_dropped = 0  # points with NaN, infinite or absurd values, so far

    def forward(self, points: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the features and coordinates of all voxels that contain points.

        Args:
            points: one [P, >= in_channels] tensor per sample.
        Returns:
            feats: [N, out_channels].
            coords: [N, 4] int32, see `voxelize`.
        Raises:
            ValueError: points with too few columns.
        """
        all_points, sample = self._join_samples(points)
        all_points, sample = self._drop_invalid(all_points, sample)
        voxels = voxelize(all_points, sample, self.voxel_size, self.point_cloud_range)
        if torch.is_grad_enabled() or all_points.device.type != 'cpu':
            return self.describe(all_points, voxels), voxels.coords
        parts = [self.describe(all_points, part) for part in _parts(voxels, _POINTS_AT_ONCE)]
        return torch.cat(parts), voxels.coords

    def describe(self, points: Tensor, voxels: Voxels) -> Tensor:
        """Return the features [N, out_channels] of voxels of points [P, in_channels]."""
        sorted_points = points[voxels.point_order]  # [K, in_channels], sorted by voxel

        x = self.point_layer(self._point_features(sorted_points, voxels))  # [K, hidden]
        voxel_max = segment_reduce(x, voxels.offsets, 'max')  # [N, hidden]
        x = self._second_layer(x, voxel_max, voxels)  # [K, hidden]
        voxel_max = segment_reduce(x, voxels.offsets, 'max')
        voxel_mean = segment_reduce(x, voxels.offsets, 'mean')
        return self.out(torch.cat([voxel_max, voxel_mean], 1))

    def _join_samples(self, points: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Points of the batch [P, in_channels] in fp32, and the sample [P] int64 of each."""
        columns = []
        sample = []
        for i, x in enumerate(points):
            if x.dim() != 2 or x.shape[1] < self.in_channels:
                raise ValueError(
                    f'sample {i}: points are {list(x.shape)}, but the model reads '
                    f'{self.in_channels} columns (x, y, z, intensity, dt): see `load_dim` and '
                    '`use_dim` of the pipeline'
                )
            columns.append(x[:, : self.in_channels])
            sample.append(x.new_full((len(x),), i, dtype=torch.long))
        return torch.cat(columns).float(), torch.cat(sample)

    def _drop_invalid(self, points: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Leave out points with NaN, infinite or absurd values, with a warning at the first."""
        valid = (points.abs() <= _LARGEST).all(1).nonzero().squeeze(1)
        count = len(points) - len(valid)
        if not count:
            return points, sample
        if not self.num_dropped:
            warnings.warn(
                f'{count} points have NaN, infinite or absurd values (beyond {_LARGEST:.0e}) and '
                "are left out; further ones are counted in the voxel encoder's `num_dropped` "
                'without a warning',
                stacklevel=3,
            )
        self.num_dropped += count
        return points[valid], sample[valid]

    def _point_features(self, points: Tensor, voxels: Voxels) -> Tensor:
        """Columns scaled to about 1, and offsets from mean and center: [K, in_channels + 6]."""
        xyz = points[:, :3]
        lowest, highest = points.new_tensor(self.point_cloud_range).chunk(2)
        columns = [(xyz - (lowest + highest) / 2) / ((highest - lowest) / 2)]
        if self.in_channels > 3:
            columns.append(points[:, 3:4] * self.intensity_scale)
            columns += [points[:, 4:5] / self.dt_unit, points[:, 5:]]

        center = voxel_centers(voxels.coords, self.voxel_size, self.point_cloud_range)  # [N, 3]
        mean = segment_reduce(xyz.contiguous(), voxels.offsets, 'mean')  # [N, 3]
        from_mean = xyz - _gather_at_points(mean, voxels, points.shape[0])
        from_center = xyz - _gather_at_points(center, voxels, points.shape[0])
        offsets = torch.cat([from_mean, from_center], 1) / self.offset_unit
        return torch.cat([*columns, offsets], 1)

    def _second_layer(self, x: Tensor, voxel_max: Tensor, voxels: Voxels) -> Tensor:
        """The second layer on [x, maximum of the voxel], [K, hidden].

        The product with the maximum is computed once per voxel, not once per point.
        """
        linear, norm, activation = self.voxel_layer
        weight, bias = linear.parameters()
        point_weight, voxel_weight = weight.split(x.shape[1], 1)
        own = F.linear(x, point_weight, bias)
        shared = F.linear(voxel_max, voxel_weight)
        return activation(norm(own + _gather_at_points(shared, voxels, x.shape[0])))


def _parts(voxels: Voxels, num_points: int) -> list[Voxels]:
    """Consecutive voxels, of about so many points at a time."""
    starts = torch.arange(0, len(voxels.point_order), num_points)
    first = torch.searchsorted(voxels.offsets, starts).unique().tolist() or [0]
    parts = []
    for low, high in zip(first, [*first[1:], len(voxels.coords)]):
        offsets = voxels.offsets[low : high + 1]
        order = voxels.point_order[offsets[0] : offsets[-1]]
        parts.append(Voxels(voxels.coords[low:high], offsets - offsets[0], order))
    return parts


def _gather_at_points(values: Tensor, voxels: Voxels, num_points: int) -> Tensor:
    """Give every point the value of its voxel: [N, C] -> [K, C]."""
    return segment_broadcast(values, voxels.offsets, num_points)


def _layer(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_channels, out_channels), nn.LayerNorm(out_channels), nn.ReLU(inplace=True)
    )
