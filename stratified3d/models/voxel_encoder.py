"""Points to voxel features, without a cap on either."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from stratified3d.ops import Voxels, segment_broadcast, segment_reduce, voxel_centers, voxelize

# a coordinate, reflectance or age beyond this is as broken as NaN, and would become it
_LARGEST = 1e6


@MODELS.register_module()
class DynamicVoxelEncoder(nn.Module):
    """Voxelize a batch of point clouds and describe every voxel by its points.

    Each point is given its columns, its offset from the mean of its voxel and from the voxel's
    center; two layers follow (linear, layer norm, ReLU), the second of which also sees the voxel's
    maximum after the first, and the voxel takes maximum and mean (PointNet, Qi et al. 2017, section
    4.2; dynamic voxelization, Zhou et al. 2020).

    Args:
        voxel_size: (x, y, z) meters.
        point_cloud_range: (x_min, y_min, z_min, x_max, y_max, z_max) meters.
        in_channels: columns read from the points: x, y, z, intensity, and dt (s) or elongation
        where there are 5.
        hidden_channels, out_channels: widths of the two layers.
        intensity_max: full scale of the intensity, which is brought to the order of the other
        columns; 255 on nuScenes.
    """

    def __init__(
        self,
        voxel_size: Sequence[float],
        point_cloud_range: Sequence[float],
        in_channels: int = 5,
        hidden_channels: int = 64,
        out_channels: int = 64,
        intensity_max: float = 255.0,
    ):
        super().__init__()
        if in_channels < 3:
            raise ValueError(f'in_channels counts x, y, z at least, not {in_channels}')
        self.voxel_size, self.point_cloud_range = tuple(voxel_size), tuple(point_cloud_range)
        self.in_channels, self.intensity_scale = in_channels, 1 / intensity_max
        self.point_layer = _layer(in_channels + 6, hidden_channels)
        self.voxel_layer = _layer(2 * hidden_channels, hidden_channels)
        self.out = nn.Linear(2 * hidden_channels, out_channels)
        self.num_dropped = 0  # points with NaN, infinite or absurd values, so far

    def forward(self, points: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Points, one [P_i, >= in_channels] tensor a sample -> feats [N, out_channels], coords [N,
        4] int32.

        Raises:
            ValueError: points with too few columns.
        """
        for i, p in enumerate(points):
            if p.dim() != 2 or p.shape[1] < self.in_channels:
                raise ValueError(
                    f'sample {i}: points are {list(p.shape)}, but the model reads {self.in_channels} '
                    'columns (x, y, z, intensity, dt): see `load_dim` and `use_dim` of the pipeline'
                )
        sample = torch.cat(
            [p.new_full((len(p),), i, dtype=torch.long) for i, p in enumerate(points)]
        )
        points = torch.cat([p[:, : self.in_channels] for p in points]).float()
        finite = (points.abs() <= _LARGEST).all(1).nonzero().squeeze(1)
        if len(finite) < len(points):
            self._count_dropped(len(points) - len(finite))
            points, sample = points[finite], sample[finite]
        voxels = voxelize(points, sample, self.voxel_size, self.point_cloud_range)
        points = points[voxels.point_order]  # [K, in_channels], sorted by voxel
        x = self.point_layer(self._describe(points, voxels))  # [K, hidden]
        x = self._join(x, segment_reduce(x, voxels.offsets, 'max'), voxels)  # [K, hidden]
        x = torch.cat(
            [segment_reduce(x, voxels.offsets, 'max'), segment_reduce(x, voxels.offsets, 'mean')], 1
        )
        return self.out(x), voxels.coords

    def _join(self, x: Tensor, top: Tensor, voxels: Voxels) -> Tensor:
        """The second layer on [x, top of the voxel]: the product with `top` is taken once a voxel,
        not once a point."""
        linear, *rest = self.voxel_layer
        own, shared = linear.weight.split(x.shape[1], 1)
        x = F.linear(x, own, linear.bias)
        x = x + _spread(F.linear(top, shared), voxels, x)
        for layer in rest:
            x = layer(x)
        return x

    def _describe(self, points: Tensor, voxels: Voxels) -> Tensor:
        """[K, in_channels] -> [K, in_channels + 6]: columns brought to the order of 1, offsets from
        mean and center."""
        low, high = points.new_tensor(self.point_cloud_range).chunk(2)
        xyz = points[:, :3]
        center = voxel_centers(voxels.coords, self.voxel_size, self.point_cloud_range)  # [N, 3]
        mean = segment_reduce(xyz.contiguous(), voxels.offsets, 'mean')  # [N, 3]
        columns = [(xyz - (low + high) / 2) / ((high - low) / 2)]
        if self.in_channels > 3:
            columns += [points[:, 3:4] * self.intensity_scale, points[:, 4:]]
        return torch.cat(
            [*columns, xyz - _spread(mean, voxels, points), xyz - _spread(center, voxels, points)],
            1,
        )

    def _count_dropped(self, count: int) -> None:
        if not self.num_dropped:
            warnings.warn(
                f'{count} points hold NaN, infinite or absurd values (beyond {_LARGEST:.0e}) and are left '
                "out; further ones are counted in the voxel encoder's `num_dropped` without a warning",
                stacklevel=3,
            )
        self.num_dropped += count


def _spread(values: Tensor, voxels: Voxels, points: Tensor) -> Tensor:
    """[N, C] of the voxels -> [K, C] of their points."""
    return segment_broadcast(values, voxels.offsets, len(points))


def _layer(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_channels, out_channels), nn.LayerNorm(out_channels), nn.ReLU(inplace=True)
    )
