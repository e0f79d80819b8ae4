"""The detector: points to boxes through the stratified encoder and a head."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmdet3d.models.detectors import Base3DDetector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from torch import Tensor

from stratified3d.models.bev_format import fast_memory_format, has_fast_bf16
from stratified3d.models.clips import has_clips, oldest_age, split_clip
from stratified3d.models.contracts import BEVBackbone, Encoder, Head, VoxelEncoder, build_part
from stratified3d.models.objectness import objectness_loss
from stratified3d.models.streaming import (
    RememberedFrame,
    StreamLimits,
    StreamState,
    check_fits,
    check_pose,
    classify_frame,
    frames_before,
    next_state,
    recall,
    remember,
)


@MODELS.register_module()
class StratifiedCenterPoint(Base3DDetector):
    """Voxel encoder, stratified encoder, BEV backbone and head (CenterPoint or TransFusion).

    Range and voxel size are given once, here, and handed to every part that needs them; so are
    widths and strides that follow from the part before. `contracts` says what a part must have.

    Args:
        voxel_size: (x, y, z) meters.
        point_cloud_range: (x_min, y_min, z_min, x_max, y_max, z_max) meters.
        voxel_encoder, encoder, backbone, head: configs of the parts.
        bev_dtype: of the convolutions on the BEV feature map: 'fp32', 'bf16', or 'auto', which is
            bf16 where the device multiplies that faster (CUDA from compute capability 8, CPUs with
            AMX or AVX-512's bf16 products). An autocast that is on around the model stays on.
        data_preprocessor, init_cfg: as in mmdet3d.
    Raises:
        ValueError: parts that do not fit each other, and what the parts refuse.
    """

    voxel_encoder: VoxelEncoder
    encoder: Encoder
    backbone: BEVBackbone
    head: Head

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
        self.has_warned_of_sweeps = False

        grid = dict(voxel_size=voxel_size, point_cloud_range=point_cloud_range)
        self.voxel_encoder = build_part('voxel_encoder', voxel_encoder, **grid)
        channels = self.voxel_encoder.out_channels
        self.encoder = build_part('encoder', encoder, in_channels=channels, **grid)
        channels = self.encoder.out_channels
        self.backbone = build_part('backbone', backbone, in_channels=channels)
        channels = self.backbone.out_channels
        stride = _bev_stride(self.encoder) * self.backbone.stride
        self.head = build_part('head', head, in_channels=channels, stride=stride, **grid)

        self.memory_format = fast_memory_format()
        dense_parts: list[Any] = [self.backbone, self.head]
        for part in dense_parts:
            part.to(memory_format=self.memory_format)

    @property
    def memory_frames(self) -> int:
        """K, the earlier frames whose tokens the encoder attends to; 0 without memory."""
        return getattr(self.encoder, 'memory_frames', 0)

    def extract_feat(
        self,
        batch_inputs_dict: dict,
        scores: list | None = None,
        batch_data_samples: Sequence[Det3DDataSample] | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the backbone's feature maps and the coords [N, 4] of the voxels.

        With memory, samples from `PackClip` are clips: their earlier sweeps fill the memory, the
        oldest first and without gradient, and the feature maps are those of the keyframe. Without
        clips the memory is empty, as at the first frame of a stream; in training that is an error,
        and the first points of earlier sweeps are warned of.

        Args:
            batch_inputs_dict: points, one [P, C] per sample.
            scores: handed to the encoder for the keyframe; it must take it then.
            batch_data_samples: the samples, which may be clips.
        """
        points = batch_inputs_dict['points']
        memory: tuple[RememberedFrame, ...] = ()
        poses = torch.eye(4, dtype=torch.float64).expand(len(points), 4, 4)
        times = torch.zeros(len(points), dtype=torch.float64)
        if self.memory_frames and (self.training or has_clips(batch_data_samples)):
            *earlier, keyframe = split_clip(points, batch_data_samples)
            points = keyframe.points
            for frame in earlier:
                with torch.no_grad():
                    *_, new = self._encode(frame.points, memory, frame.poses, frame.times)
                memory = (new, *memory)[: self.memory_frames]
            # older torch would reuse what autocast cast without gradient: pytorch PR 165068
            torch.clear_autocast_cache()
        elif self.memory_frames:
            self._warn_of_stacked_sweeps(points)
        bev, coords, _ = self._encode(points, memory, poses, times, scores)
        return self._run_backbone(bev), coords

    def _warn_of_stacked_sweeps(self, points: Sequence[Tensor]) -> None:
        """Warn once of earlier sweeps that are not taken apart, as they were in training."""
        if self.has_warned_of_sweeps:
            return
        age = oldest_age(points)
        if age > 0:
            self.has_warned_of_sweeps = True
            warnings.warn(
                f'points of earlier sweeps (ages up to {age:.3g} s) are taken for one frame, and '
                "the detector's memory stays empty: end the pipelines of validation and test with "
                'dict(type="PackClip", frames=...), or give it the points of one sweep',
                stacklevel=3,
            )

    def _encode(
        self,
        points: Sequence[Tensor],
        memory: Sequence[RememberedFrame],
        poses: Tensor,
        times: Tensor,
        scores: list | None = None,
    ) -> tuple[Tensor, Tensor, RememberedFrame]:
        """BEV feature map, coords [N, 4] of the voxels, and what to remember of B frames."""
        feats, coords = self.voxel_encoder(points)
        # the last samples of the batch may be empty, so it is counted by its point clouds
        batch = len(points)
        asked = {} if scores is None else {'scores': scores}
        if not self.memory_frames:
            bev = self.encoder(feats, coords, batch, **asked)
            return bev, coords, remember((), poses, times)
        past = recall(memory, poses, times, feats.device)
        encode = self.encoder.encode  # type: ignore[attr-defined]
        bev, tokens = encode(feats, coords, batch, past, **asked)
        return bev, coords, remember(tokens, poses, times)

    def _run_backbone(self, bev: Tensor) -> tuple[Tensor, ...]:
        bev = bev.contiguous(memory_format=self.memory_format)
        with self._bev_autocast(bev.device):
            return self.backbone(bev)

    def _bev_autocast(self, device: torch.device) -> AbstractContextManager:
        """Run the dense part in bfloat16 where `bev_dtype` says so."""
        use_bf16 = self.bev_dtype == 'bf16'
        if self.bev_dtype == 'auto':
            use_bf16 = has_fast_bf16(device)
        return torch.autocast(device.type, torch.bfloat16) if use_bf16 else nullcontext()

    def _head_outputs(self, feature_maps: tuple[Tensor, ...]) -> tuple[list[dict]]:
        with self._bev_autocast(feature_maps[0].device):
            return self.head(feature_maps)

    def loss(
        self, batch_inputs_dict: dict, batch_data_samples: list[Det3DDataSample], **kwargs
    ) -> dict[str, Tensor]:
        """Return the named losses of a batch, see `Base3DDetector.loss`.

        They are the head's, and loss_objectness if the encoder chooses strata tokens by a score.
        """
        gt_instances = [sample.gt_instances_3d for sample in batch_data_samples]
        scores: list | None = [] if getattr(self.encoder, 'scores_voxels', False) else None
        feature_maps, _ = self.extract_feat(batch_inputs_dict, scores, batch_data_samples)
        losses = self.head.loss_by_feat(self._head_outputs(feature_maps), gt_instances)
        if scores is not None:
            losses['loss_objectness'] = objectness_loss(scores, gt_instances)
        return losses

    def predict(
        self, batch_inputs_dict: dict, batch_data_samples: list[Det3DDataSample], **kwargs
    ) -> list[Det3DDataSample]:
        """Add `pred_instances_3d` to the samples of a batch, see `Base3DDetector.predict`."""
        feature_maps, coords = self.extract_feat(batch_inputs_dict, None, batch_data_samples)
        return self._predict_boxes(feature_maps, coords, batch_data_samples)

    def _predict_boxes(
        self,
        feature_maps: tuple[Tensor, ...],
        coords: Tensor,
        batch_data_samples: list[Det3DDataSample],
    ) -> list[Det3DDataSample]:
        with self._bev_autocast(feature_maps[0].device):
            results = self.head.predict(feature_maps, batch_data_samples)

        # a sample without voxels has no detections, whatever the head makes of an empty map
        voxels = torch.bincount(coords[:, 0], minlength=len(results)).tolist()
        results = [result if count else result[:0] for result, count in zip(results, voxels)]
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(
        self,
        batch_inputs_dict: dict,
        batch_data_samples: list[Det3DDataSample] | None = None,
        **kwargs,
    ) -> tuple[list[dict]]:
        feature_maps, _ = self.extract_feat(batch_inputs_dict, None, batch_data_samples)
        return self._head_outputs(feature_maps)

    @torch.no_grad()
    def stream(
        self,
        points: Tensor,
        pose: Any,
        timestamp: float,
        state: StreamState | None = None,
        *,
        scene: str | None = None,
        limits: StreamLimits | None = None,
    ) -> tuple[Det3DDataSample, StreamState]:
        """Detect objects in the next frame of a stream; every frame is encoded once.

        Args:
            points: [P, C] of one sweep, as in a batch, with ages of 0; on the model's device.
            pose: [4, 4] from the frame of the points to a fixed one, for instance the map's.
            timestamp: seconds, of the same clock and precision in all frames (float64).
            state: what the frame before returned; None starts a stream.
            scene: a name; another one than before starts the stream again.
            limits: when it does so by itself, see `StreamLimits` and `StreamState.event`.
        Returns:
            The sample with `pred_instances_3d`, and the state for the next frame. A late frame is
            detected in with the frames before it in time, and leaves the state as it was.
        Raises:
            ValueError: a pose that is not rigid, a time that is not finite, another model's state;
                for a detector with memory, points of several sweeps.
        """
        pose = check_pose(pose)
        if not math.isfinite(timestamp):
            raise ValueError(f'timestamp is a number of seconds, not {timestamp}')
        age = oldest_age([points]) if self.memory_frames else 0.0
        if age > 0:
            raise ValueError(
                'points of a stream are of one sweep, with ages (column 4) of 0, not up to '
                f'{age:.3g} s: hand over every sweep by itself; of one sweep, set column 4 to 0'
            )
        limits = limits or StreamLimits()
        event = classify_frame(state, pose, timestamp, scene, limits)
        memory = frames_before(state, event, timestamp)
        check_fits(memory, self.encoder)

        times = torch.tensor([timestamp], dtype=torch.float64)
        bev, coords, new = self._encode([points], memory, pose[None], times)
        sample = Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes))
        (sample,) = self._predict_boxes(self._run_backbone(bev), coords, [sample])

        is_due = not memory or timestamp - float(memory[0].times) >= limits.min_spacing
        frames = ((new, *memory) if is_due else memory)[: self.memory_frames]
        return sample, next_state(state, StreamState(frames, pose, timestamp, scene, event))


def _bev_stride(encoder: Encoder) -> int:
    """Return the voxels per cell of the encoder's BEV feature map."""
    full, now = encoder.spatial_shape, encoder.out_shape
    stride_y, stride_x = full[1] // now[1], full[2] // now[2]
    if stride_y != stride_x:
        raise ValueError(
            f'the encoder shrinks y and x differently, {full} to {now} (z, y, x): a cell of the '
            'BEV feature map would not be square'
        )
    return stride_x
