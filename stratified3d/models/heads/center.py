"""CenterPoint's head, without loops over objects, without compiled operators, and with boxes at the
peaks only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.utils import reduce_mean
from mmdet3d.models.dense_heads import CenterHead
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from stratified3d.models.heads.box_coding import (
    choose_code_weights,
    decode_boxes,
    grow_range,
    has_center_in,
    pack_detections,
    unpack_ground_truth,
)
from stratified3d.models.heads.box_iou import class_powers, overlap, rectify_score
from stratified3d.models.heads.center_peaks import Peaks, choose_peaks, gather_at, run_at
from stratified3d.models.heads.center_targets import CenterTargets, assign_targets, widen_targets
from stratified3d.ops import circle_nms, grid_shape, rotated_nms


@MODELS.register_module()
class StratifiedCenterHead(CenterHead):
    """mmdet3d's CenterHead (Yin et al. 2021) with vectorised targets, optional velocity and its own
    suppression.

    Args:
        in_channels: of the map.
        tasks: lists of class names, one list a group that shares a heatmap branch; their
        concatenation is the order
            of the labels.
        voxel_size, point_cloud_range: meters; stride: voxels per cell of the map.
        use_velocity: whether boxes have vx, vy to learn.
        shared_channels: width of the shared convolution and of the branches.
        max_objs, min_overlap, min_radius: see `assign_targets`.
        box_radius: cells around an object's own that learn its box too, see `widen_targets`; 0 is
        CenterPoint.
        iou_weight: of the loss of an IoU branch, which learns 2 IoU - 1 of the predicted box with
            the true one; 0 is no such branch.
        iou_power: of the IoU in the score, one number or one a class, see `rectify_score`; needs the
            branch.
        iou_loss_weight: of 1 - IoU + distance of the predicted boxes, see `overlap`; 0 is no such
            loss.
        code_weights: weight of each regressed number, 8 or 10; default 1, velocity 0.2.
        bbox_weight: of the regression loss.
        score_threshold: predictions below are dropped.
        max_num: predictions decoded per task, those of the highest heat.
        nms: dict(type='circle', radius=[meters a task]) or dict(type='rotated', iou=0.2).
        post_max_size: predictions kept per task and sample.
        post_center_range: predictions with centers outside are dropped; default the range grown by
        10 m.
        sync_avg_factor: whether losses are averaged over the objects of all processes, as if one
            had the whole batch, or over those of each process alone, as mmdet3d does.
    Raises:
        ValueError: settings whose lengths do not fit the tasks, unknown nms type.
    """

    def __init__(
        self,
        in_channels: int,
        tasks: Sequence[Sequence[str]],
        voxel_size: Sequence[float],
        point_cloud_range: Sequence[float],
        stride: int,
        use_velocity: bool = True,
        shared_channels: int = 64,
        max_objs: int = 500,
        min_overlap: float = 0.1,
        min_radius: int = 2,
        box_radius: int = 0,
        iou_weight: float = 0.0,
        iou_power: float | Sequence[float] = 0.5,
        iou_loss_weight: float = 0.0,
        code_weights: Sequence[float] | None = None,
        bbox_weight: float = 0.25,
        score_threshold: float = 0.1,
        max_num: int = 500,
        nms: dict | None = None,
        post_max_size: int = 83,
        post_center_range: Sequence[float] | None = None,
        sync_avg_factor: bool = False,
    ):
        nms = dict(nms or dict(type='rotated', iou=0.2))
        if nms.get('type') not in ('circle', 'rotated'):
            raise ValueError(f"nms type is 'circle' or 'rotated', not {nms.get('type')!r}")
        if nms['type'] == 'circle' and len(nms.get('radius', ())) != len(tasks):
            raise ValueError(
                f'nms radius has {len(nms.get("radius", ()))} entries for {len(tasks)} tasks'
            )
        if nms['type'] == 'rotated' and 'iou' not in nms:
            raise ValueError("nms type 'rotated' needs its iou, e.g. dict(type='rotated', iou=0.2)")
        code_weights = choose_code_weights(code_weights, use_velocity)
        powers = class_powers(iou_power, sum(map(len, tasks)))
        _, rows, columns = grid_shape(voxel_size, point_cloud_range)
        post_center_range = list(post_center_range or grow_range(point_cloud_range))
        branches = dict(reg=(2, 2), height=(1, 2), dim=(3, 2), rot=(2, 2))
        if use_velocity:
            branches['vel'] = (2, 2)
        extra = dict(iou=(1, 2)) if iou_weight else {}
        self.feature_map_size = (-(-rows // stride), -(-columns // stride))
        super().__init__(
            in_channels=in_channels,
            tasks=[dict(num_class=len(names), class_names=list(names)) for names in tasks],
            # mmdet3d's decoder, which is asked for and not used: it wants the boxes of all cells
            bbox_coder=dict(
                type='CenterPointBBoxCoder',
                pc_range=list(point_cloud_range[:2]),
                out_size_factor=stride,
                voxel_size=list(voxel_size[:2]),
                code_size=len(code_weights) - 1,
            ),
            common_heads=branches | extra,
            loss_cls=dict(type='mmdet.GaussianFocalLoss', reduction='mean'),
            loss_bbox=dict(type='mmdet.L1Loss', reduction='mean', loss_weight=bbox_weight),
            separate_head=dict(
                type='SeparateHead', head_conv=shared_channels, init_bias=-2.19, final_kernel=3
            ),
            share_conv_channel=shared_channels,
        )
        self.target_settings = dict(
            num_classes=self.num_classes,
            feature_map_size=self.feature_map_size,
            voxel_size=voxel_size,
            point_cloud_range=point_cloud_range,
            stride=stride,
            max_objs=max_objs,
            min_overlap=min_overlap,
            min_radius=min_radius,
        )
        self.branches, self.code_weights, self.box_radius = (
            tuple(branches),
            code_weights,
            box_radius,
        )
        self.outputs = (*self.branches, *extra)
        self.score_threshold, self.max_num = score_threshold, max_num
        self.nms, self.post_max_size, self.post_center_range = nms, post_max_size, post_center_range
        self.sync_avg_factor = sync_avg_factor
        self.corner, self.cell = (
            list(point_cloud_range[:2]),
            [size * stride for size in voxel_size[:2]],
        )
        self.iou_weight, self.iou_loss_weight = iou_weight, iou_loss_weight
        self.iou_power = powers if iou_weight else [0.0] * len(powers)

    def init_weights(self) -> None:
        """Start every heatmap at a score of 0.1; mmdet3d 1.4 means to, but its initialization never
        gets there."""
        super().init_weights()
        for task in self.task_heads:
            torch.nn.init.constant_(task.heatmap[-1].bias, task.init_bias)

    def get_targets(self, batch_gt_instances_3d: list[InstanceData]) -> list[CenterTargets]:
        """Ground truths of the batch -> one CenterTargets a task."""
        boxes, labels = unpack_ground_truth(batch_gt_instances_3d, len(self.code_weights) - 1)
        targets = assign_targets(boxes, labels, **self.target_settings)
        return [
            widen_targets(t, self.box_radius, self.feature_map_size) if self.box_radius else t
            for t in targets
        ]

    def loss_by_feat(
        self,
        preds_dicts: tuple[list[dict]],
        batch_gt_instances_3d: list[InstanceData],
        *args,
        **kwargs,
    ) -> dict[str, Tensor]:
        """Focal loss of the heatmaps and L1 loss of the boxes, per task."""
        losses = {}
        targets = self.get_targets(batch_gt_instances_3d)
        counts = torch.stack(
            [torch.stack([t.heatmap.eq(1).sum(), t.mask.sum()]) for t in targets]
        ).float()  # [T, 2]
        if self.sync_avg_factor:
            counts = reduce_mean(counts)
        for t, ((pred,), target) in enumerate(zip(preds_dicts, targets)):
            if pred['heatmap'].shape[2:] != self.feature_map_size:
                raise ValueError(
                    f'the map has {tuple(pred["heatmap"].shape[2:])} cells, range, voxel size and stride '
                    f"give {self.feature_map_size}: does the head's stride fit the backbone's?"
                )
            # mmdet3d's clip_sigmoid would overwrite the predictions
            heat = pred['heatmap'].float().sigmoid().clamp(1e-4, 1 - 1e-4)
            losses[f'task{t}.loss_heatmap'] = self.loss_cls(
                heat, target.heatmap, avg_factor=counts[t, 0].clamp(min=1)
            )
            code = torch.cat([pred[name] for name in self.branches], 1).float()  # [B, code, Y, X]
            index = target.index.unsqueeze(1).expand(-1, code.shape[1], -1)
            code = code.flatten(2).gather(2, index).transpose(1, 2)  # [B, max_objs, code]
            total = counts[t, 1] + 1e-4
            # an unknown number (NaN velocity) is learned nowhere
            weight = (
                target.mask.unsqueeze(2)
                * target.boxes.isfinite()
                * code.new_tensor(self.code_weights)
            )
            losses[f'task{t}.loss_bbox'] = self.loss_bbox(
                code, target.boxes.nan_to_num(0, 0, 0), weight, avg_factor=total
            )
            if self.iou_weight or self.iou_loss_weight:
                iou, distance = overlap(code, target.boxes.nan_to_num(0, 0, 0), self.cell)
                mask = target.mask.to(iou.dtype)
            if self.iou_weight:
                guess = pred['iou'].float().flatten(1).gather(1, target.index)
                gap = (guess - (2 * iou.detach() - 1)).abs() * mask
                losses[f'task{t}.loss_iou_branch'] = (self.iou_weight * gap.sum() / total).float()
            if self.iou_loss_weight:
                gap = (1 - iou + distance) * mask
                losses[f'task{t}.loss_iou'] = (self.iou_loss_weight * gap.sum() / total).float()
        return losses

    def predict(
        self, maps: Sequence[Tensor], batch_data_samples: list[Det3DDataSample], **kwargs
    ) -> list[InstanceData]:
        """Maps of the backbone -> detections; as `predict_by_feat` of all outputs finds them, but
        boxes are computed at the peaks of the heatmaps only."""
        metas = [sample.metainfo for sample in batch_data_samples]
        is_learning = any(
            module.training for module in self.modules()
        )  # batch norms then want the whole map
        found = self.look_up(self(maps)) if is_learning else self.find(maps)
        with torch.autocast(maps[0].device.type, enabled=False):
            return self._detect(found, metas)

    def find(self, maps: Sequence[Tensor]) -> list[tuple[Peaks, Tensor]]:
        """Maps of the backbone -> peaks and what the branches say there, [K, 8 or 10 and 1 of the
        IoU], of each task; in evaluation mode."""
        x = self.shared_conv(maps[0])
        found = []
        for t, task in enumerate(self.task_heads):
            peaks = self._choose(task.heatmap(x), t)
            found.append(
                (
                    peaks,
                    torch.cat(run_at([getattr(task, name) for name in self.outputs], x, peaks), 1),
                )
            )
        return found

    def predict_by_feat(
        self, preds_dicts: tuple[list[dict]], batch_input_metas: list[dict], *args, **kwargs
    ) -> list[InstanceData]:
        """Decode, suppress and join the tasks: one InstanceData (bboxes_3d, scores_3d, labels_3d) a
        sample."""
        return self._detect(self.look_up(preds_dicts), batch_input_metas)

    def look_up(self, preds_dicts: tuple[list[dict]]) -> list[tuple[Peaks, Tensor]]:
        """What `find` gives, from the outputs of all cells."""
        found = []
        for t, (pred,) in enumerate(preds_dicts):
            peaks = self._choose(pred['heatmap'], t)
            found.append(
                (peaks, gather_at(torch.cat([pred[name] for name in self.outputs], 1), peaks))
            )
        return found

    def _choose(self, logits: Tensor, task: int) -> Peaks:
        return choose_peaks(logits, self._powers(task), self.score_threshold, self.max_num)

    def _powers(self, task: int) -> list[float]:
        """Powers of the IoU in the score of a task's classes."""
        first = sum(self.num_classes[:task])
        return self.iou_power[first : first + self.num_classes[task]]

    def _detect(self, found: list[tuple[Peaks, Tensor]], metas: list[dict]) -> list[InstanceData]:
        samples = [[] for _ in metas]
        for t, (peaks, code) in enumerate(found):
            code, scores = code.float(), peaks.heat
            if self.iou_weight:
                code, iou = code[:, :-1], code[:, -1]
                scores = rectify_score(scores, iou, scores.new_tensor(self._powers(t))[peaks.label])
            cells = torch.stack([peaks.x, peaks.y], 1)
            boxes = decode_boxes(
                torch.cat([code[:, :2] + cells, code[:, 2:]], 1), self.cell, self.corner
            )
            good = (scores > self.score_threshold) & has_center_in(boxes, self.post_center_range)
            labels = peaks.label + sum(self.num_classes[:t])
            for i, parts in enumerate(samples):
                rows = (good & (peaks.sample == i)).nonzero().squeeze(1)
                keep = rows[self._nms(boxes[rows], scores[rows], t)]
                parts.append((boxes[keep], scores[keep], labels[keep]))
        return [
            pack_detections(*(torch.cat(parts) for parts in zip(*found)), meta)
            for found, meta in zip(samples, metas)
        ]

    def _nms(self, boxes: Tensor, scores: Tensor, task: int) -> Tensor:
        if self.nms['type'] == 'circle':
            return circle_nms(boxes[:, :2], scores, self.nms['radius'][task], self.post_max_size)
        return rotated_nms(boxes[:, [0, 1, 3, 4, 6]], scores, self.nms['iou'], self.post_max_size)
