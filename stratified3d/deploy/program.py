"""The detector from points to boxes as one module that torch.export can trace."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmcv.cnn.utils import fuse_conv_bn
from torch import Tensor, nn

from stratified3d.deploy.attention import BucketedAttention
from stratified3d.deploy.convolution import TableConv
from stratified3d.deploy.decode import decode_boxes
from stratified3d.deploy.padded import voxelize_padded
from stratified3d.layers.attention import StratifiedAttention
from stratified3d.layers.sparse_conv import SparseConv
from stratified3d.models.heads.center import StratifiedCenterHead
from stratified3d.ops import Voxels, segment_broadcast, voxel_centers, voxelize

MAX_POINTS = 1 << 24  # rows of a frame; a bound keeps products of sizes within 64 bits
SELECTIONS = ('pool', 'random', 'first', 'learned')  # of strata that can be traced
COLUMNS = 5  # of a program's points, as of `points_with_dt`
LARGEST = 1e6  # a larger value is as broken as NaN, see `DynamicVoxelEncoder`


class DetectorProgram(nn.Module):
    """A trained detector for one point cloud at a time, with the same weights.

    Args:
        model: of `init_detector`.
        bev_dtype: of the convolutions on the BEV feature map.
        capacity: voxels that are kept, the nearest to the sensor; None for all.
        is_static: whether no shape depends on the data but that of the points; needs a capacity.
    Raises:
        ValueError: parts that cannot be exported.
    """

    def __init__(
        self,
        model: Any,
        bev_dtype: torch.dtype = torch.float32,
        capacity: int | None = None,
        is_static: bool = False,
    ):
        super().__init__()
        _check_parts(model)
        model = copy.deepcopy(model).eval()
        self.voxel_encoder = model.voxel_encoder
        self.encoder = model.encoder
        self.backbone = fuse_conv_bn(model.backbone).to(bev_dtype)
        self.head = fuse_conv_bn(model.head)
        for part in (self.head.shared_conv, self.head.task_heads):
            part.to(bev_dtype)
        self.bev_dtype = bev_dtype
        self.capacity = capacity
        self.is_static = is_static
        self.memory_format = model.memory_format
        self.attentions = [_replace_attention(stage, is_static) for stage in self.encoder.stages]
        _replace_convolutions(self.encoder, is_static)
        self.requires_grad_(False)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Detect objects in points [P, COLUMNS], of which the voxel encoder reads the first ones.

        Returns:
            boxes, scores, labels and the number of detections, see `decode_boxes`, and the number
            of voxels in the frame, 0 where no point lies in the range.
        """
        bev, count = self.encode(points)
        boxes, scores, labels, found = self.detect(bev)
        return boxes, scores, labels, found * (count > 0), count

    def encode(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the BEV feature map [1, C, Y, X] and the number of voxels in the frame."""
        points, is_empty = self._with_one_inside(points)
        if self.is_static:
            return self._encode_padded(points, is_empty)
        voxels = self._voxelize(points)
        count = (~is_empty) * voxels.coords.shape[0]
        if self.capacity is not None:
            points = self._nearest(points, voxels, self.capacity)
            voxels = self._voxelize(points)
        for attention in self.attentions:
            attention.forget()
        feats = self.voxel_encoder.describe(points, voxels)
        return self.encoder(feats, voxels.coords, 1), count

    def _encode_padded(self, points: Tensor, is_empty: Tensor) -> tuple[Tensor, Tensor]:
        assert self.capacity is not None
        encoder = self.voxel_encoder
        voxels, count = voxelize_padded(
            points, self.capacity, encoder.voxel_size, encoder.point_cloud_range
        )
        for attention in self.attentions:
            attention.forget()
        feats = encoder.describe(points, voxels)
        return self.encoder(feats, voxels.coords, 2)[:1], ~is_empty * count

    def _voxelize(self, points: Tensor) -> Voxels:
        encoder = self.voxel_encoder
        sample = torch.zeros_like(points[:, 0], dtype=torch.long)
        voxels = voxelize(points, sample, encoder.voxel_size, encoder.point_cloud_range)
        for rows in (voxels.coords.shape[0], voxels.point_order.shape[0]):
            torch._check(rows > 0)
            torch._check(rows <= MAX_POINTS)
        return voxels

    def _nearest(self, points: Tensor, voxels: Voxels, capacity: int) -> Tensor:
        """Points with those of all but the nearest voxels moved out of the range."""
        encoder = self.voxel_encoder
        center = voxel_centers(voxels.coords, encoder.voxel_size, encoder.point_cloud_range)
        rank = center[:, :2].square().sum(1).argsort(stable=True).argsort()
        is_far = segment_broadcast(
            (rank >= capacity)[:, None], voxels.offsets, voxels.point_order.shape[0]
        )
        is_gone = torch.zeros_like(points[:, :1], dtype=torch.bool)
        is_gone = is_gone.index_put((voxels.point_order,), is_far)
        return torch.where(is_gone, 2 * LARGEST, points)

    def detect(self, bev: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return `decode_boxes` of a BEV feature map [1, C, Y, X]."""
        bev = bev.to(self.bev_dtype).contiguous(memory_format=self.memory_format)
        (feature_map,) = self.backbone(bev)
        return decode_boxes(self.head, feature_map, self.is_static)

    def _with_one_inside(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points without broken ones, and one in the middle of the range if all are outside.

        So no later step meets an empty frame.
        """
        lowest, highest = points.new_tensor(self.voxel_encoder.point_cloud_range).chunk(2)
        columns = points[:, : self.voxel_encoder.in_channels]
        is_valid = (columns.abs() <= LARGEST).all(1, keepdim=True)
        outside = torch.full_like(columns, 2 * LARGEST)
        columns = torch.where(is_valid, columns, outside)

        voxel_size = points.new_tensor(self.voxel_encoder.voxel_size)
        index = ((columns[:, :3] - lowest) / voxel_size).floor()
        limit = points.new_tensor(self.encoder.spatial_shape[::-1])
        is_empty = ~((index >= 0) & (index < limit)).all(1).any()
        spare = columns.new_zeros(1, columns.shape[1])
        spare[:, :3] = torch.where(is_empty, (lowest + highest) / 2, 2 * LARGEST)
        return torch.cat([columns, spare]), is_empty


def _check_parts(model: Any) -> None:
    if not isinstance(model.head, StratifiedCenterHead):
        raise ValueError(
            f'the head {type(model.head).__name__} cannot be exported: only StratifiedCenterHead'
        )
    channels = model.voxel_encoder.in_channels
    if channels > COLUMNS:
        raise ValueError(
            f'a voxel encoder of {channels} columns cannot be exported: a package has points of '
            f'{COLUMNS}, x, y, z, intensity and dt'
        )
    for stage in model.encoder.stages:
        for block in stage.blocks:
            if type(block.mixer) is not StratifiedAttention:
                raise ValueError(
                    f'the mixer {type(block.mixer).__name__} cannot be exported: only '
                    'StratifiedAttention'
                )
            chosen = block.mixer.selection
            if chosen is not None and chosen.selection not in SELECTIONS:
                raise ValueError(
                    f'strata of selection={chosen.selection!r} cannot be exported: only '
                    f'{", ".join(SELECTIONS)}'
                )


def _replace_attention(stage: Any, is_padded: bool) -> BucketedAttention:
    """Let the blocks of a stage use one `BucketedAttention`, and return it."""
    z, y, x = stage.window_shape
    attention = BucketedAttention(z * y * x, is_padded)
    for block in stage.blocks:
        block.mixer.backend = attention
    return attention


def _replace_convolutions(module: nn.Module, is_padded: bool) -> None:
    for name, child in module.named_children():
        if isinstance(child, SparseConv):
            setattr(module, name, TableConv(child, is_padded))
        else:
            _replace_convolutions(child, is_padded)
