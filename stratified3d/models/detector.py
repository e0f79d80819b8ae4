"""The detector: points to boxes through the stratified encoder and a head."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from mmdet3d.models.detectors import Base3DDetector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor


@MODELS.register_module()
class StratifiedCenterPoint(Base3DDetector):
    """voxel encoder -> stratified encoder -> bird's-eye-view backbone -> head (center or
    TransFusion).

    Range and voxel size are given once, here, and handed to every part that needs them; so are
    widths and stride that follow from the part before.

    Args:
        voxel_size: (x, y, z) meters.
        point_cloud_range: (x_min, y_min, z_min, x_max, y_max, z_max) meters.
        voxel_encoder, encoder, backbone, head: configs of the parts.
        bev_dtype: of the convolutions on the bird's-eye-view map: 'fp32', 'bf16', or 'auto',
        which is bf16 where
            the device has matrix units for it (CUDA from compute capability 8, CPUs with AMX). An
            autocast that is on around the model stays on.
        data_preprocessor, init_cfg: as in mmdet3d.
    """

    def __init__(
        self,
        voxel_size: Sequence[float],
        point_cloud_range: Sequence[float],
        voxel_encoder: dict,
        encoder: dict,
        backbone: dict,
        head: dict,
        bev_dtype: str = 'fp32',
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if bev_dtype not in ('fp32', 'bf16', 'auto'):
            raise ValueError(f"bev_dtype is 'fp32', 'bf16' or 'auto', not {bev_dtype!r}")
        self.bev_dtype = bev_dtype
        grid = dict(voxel_size=voxel_size, point_cloud_range=point_cloud_range)
        self.voxel_encoder = MODELS.build({**grid, **voxel_encoder})
        self.encoder = MODELS.build(
            {**grid, 'in_channels': self.voxel_encoder.out.out_features, **encoder}
        )
        self.backbone = MODELS.build({'in_channels': self.encoder.out_channels, **backbone})
        full, now = self.encoder.spatial_shape, self.encoder.out_shape
        if full[1] // now[1] != full[2] // now[2]:
            raise ValueError(
                f'the encoder shrinks y and x differently, {full} to {now} (z, y, x): a cell of the map '
                'would not be square'
            )
        stride = full[2] // now[2] * self.backbone.stride
        self.head = MODELS.build(
            {**grid, 'in_channels': self.backbone.out_channels, 'stride': stride, **head}
        )
        # a quarter less time on a CPU; the encoder's map has this layout already
        self.backbone.to(memory_format=torch.channels_last)
        self.head.to(memory_format=torch.channels_last)

    def extract_feat(self, batch_inputs_dict: dict) -> tuple[tuple[Tensor], Tensor]:
        """Points of the batch -> the backbone's maps, and the coords [N, 4] of its voxels."""
        points = batch_inputs_dict['points']
        feats, coords = self.voxel_encoder(points)
        # the batch is as large as its list of clouds: the last of them may be empty
        bev = self.encoder(feats, coords, len(points))
        with self._map_autocast(bev.device):
            return self.backbone(bev), coords

    def _map_autocast(self, device: torch.device) -> AbstractContextManager:
        if self.bev_dtype == 'bf16' or self.bev_dtype == 'auto' and has_fast_bf16(device):
            return torch.autocast(device.type, torch.bfloat16)
        return nullcontext()

    def _head_outputs(self, maps: tuple[Tensor]) -> tuple[list[dict]]:
        with self._map_autocast(maps[0].device):
            return self.head(maps)

    def loss(
        self, batch_inputs_dict: dict, batch_data_samples: list[Det3DDataSample], **kwargs
    ) -> dict[str, Tensor]:
        maps, _ = self.extract_feat(batch_inputs_dict)
        targets = [sample.gt_instances_3d for sample in batch_data_samples]
        return self.head.loss_by_feat(self._head_outputs(maps), targets)

    def predict(
        self, batch_inputs_dict: dict, batch_data_samples: list[Det3DDataSample], **kwargs
    ) -> list[Det3DDataSample]:
        maps, coords = self.extract_feat(batch_inputs_dict)
        with self._map_autocast(maps[0].device):
            results = self.head.predict(maps, batch_data_samples)
        # nothing was seen, so nothing is detected, whatever the head makes of an empty map
        voxels = torch.bincount(coords[:, 0], minlength=len(results)).tolist()
        results = [result if count else result[:0] for result, count in zip(results, voxels)]
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(
        self,
        batch_inputs_dict: dict,
        batch_data_samples: list[Det3DDataSample] | None = None,
        **kwargs,
    ) -> tuple[list[dict]]:
        return self._head_outputs(self.extract_feat(batch_inputs_dict)[0])


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has matrix units for bfloat16: CUDA from compute capability 8, CPUs with
    AMX."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == 'cpu' and bool(torch.cpu.get_capabilities().get('amx_bf16'))
