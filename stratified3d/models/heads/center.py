"""CenterPoint's head with vectorized targets, and boxes that are computed at the peaks only."""

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
    align_yaw,
    decode_boxes,
    encode_axis,
    has_center_in,
    move_center,
    pack_detections,
    resolve_code_weights,
    unpack_ground_truth,
)
from stratified3d.models.heads.box_iou import iou_power_per_class, rectify_score
from stratified3d.models.heads.center_layers import (
    HeadingBranch,
    box_branches,
    layer_settings,
    unused_bbox_coder,
    without_yaw,
)
from stratified3d.models.heads.center_targets import CenterTargets, assign_targets, widen_targets
from stratified3d.models.heads.feature_map import (
    check_feature_map_size,
    feature_map_geometry,
    resolve_post_center_range,
)
from stratified3d.models.heads.losses import (
    heatmap_scores,
    iou_losses,
    regression_weights,
)
from stratified3d.models.heads.peaks import (
    Peaks,
    apply_nms,
    check_nms,
    gather_at,
    run_branches_at,
    select_peaks,
)


@MODELS.register_module()
class StratifiedCenterHead(CenterHead):
    """mmdet3d's CenterHead (Yin et al. 2021) with vectorized targets and rotated or circle NMS.

    Velocity, an IoU branch and an IoU loss are optional.

    Args:
        in_channels: of the BEV feature map.
        tasks: lists of class names, one list per group that shares a heatmap branch; their
            concatenation is the order of the labels.
        voxel_size, point_cloud_range: meters.
        stride: voxels per cell of the BEV feature map.
        use_velocity: whether boxes have vx, vy to learn.
        shared_channels: width of the shared convolution and of the branches.
        max_objs, min_overlap, min_radius: see `assign_targets`.
        box_radius: cells around an object's own that learn its box too, see `widen_targets`; 0 is
            CenterPoint.
        iou_weight: of the loss of an IoU branch, which learns 2 IoU - 1 of the predicted with the
            ground-truth box; 0 leaves the branch out.
        iou_power: of the IoU in the score, one number or one per class, see `rectify_score`; has no
            effect without the branch.
        iou_loss_weight: of 1 - IoU + distance of the predicted boxes, see `iou_losses`; 0 leaves
            the loss out.
        code_weights: weight of each regressed number, 8 or 10; default 1, velocity 0.2.
        axis_weight: of the loss of an axis branch, see `encode_axis`, which takes the place of the
            yaw's but for its direction; 0 leaves the branch out.
        heading: settings of the heading branch, see `HeadingBranch`, which decides which end of the
            axis is the front, in place of the regression of the yaw; needs the axis branch; None
            leaves the branch out.
        joint_branches: whether one branch predicts all numbers of a box, instead of one branch for
            each kind of number.
        bbox_weight: of the regression loss.
        score_threshold: predictions below are dropped.
        max_num: predictions decoded per task, those with the highest heatmap scores.
        nms: dict(type='circle', radius=[meters per task]) or dict(type='rotated', iou=0.2).
        post_max_size: predictions kept per task and sample.
        post_center_range: predictions with centers outside are dropped; default the range extended
            by 10 m.
        sync_avg_factor: whether losses are averaged over the objects of all processes, as if one
            had the whole batch, or over those of each process alone, as mmdet3d does.
    Raises:
        ValueError: settings whose lengths do not fit the tasks, unknown NMS type.
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
        axis_weight: float = 0.0,
        heading: dict | None = None,
        joint_branches: bool = False,
        bbox_weight: float = 0.25,
        score_threshold: float = 0.1,
        max_num: int = 500,
        nms: dict | None = None,
        post_max_size: int = 83,
        post_center_range: Sequence[float] | None = None,
        sync_avg_factor: bool = False,
    ):
        grid: dict = dict(voxel_size=voxel_size, point_cloud_range=point_cloud_range, stride=stride)
        branches = box_branches(use_velocity, bool(axis_weight), bool(iou_weight), joint_branches)
        super().__init__(
            in_channels=in_channels,
            bbox_coder=unused_bbox_coder(**grid, use_velocity=use_velocity),
            common_heads=branches,
            **layer_settings(tasks, shared_channels, bbox_weight),
        )
        self.branches = tuple(branches)
        self.num_outputs = sum(width for width, _ in branches.values())
        self.feature_map_size, self.cell_size, self.origin = feature_map_geometry(**grid)
        places = (shared_channels, self.cell_size, self.origin, tasks)
        self.heading = HeadingBranch(*places, **heading) if heading is not None else None
        drawing = dict(max_objs=max_objs, min_overlap=min_overlap, min_radius=min_radius)
        self.target_settings = dict(grid, feature_map_size=self.feature_map_size, **drawing)
        self.box_radius = box_radius
        weights = resolve_code_weights(code_weights, use_velocity)
        self.code_weights = weights if heading is None else without_yaw(weights, axis_weight)
        powers = iou_power_per_class(iou_power, sum(self.num_classes))
        self.axis_weight = axis_weight
        self.iou_weight = iou_weight
        self.iou_power = powers if iou_weight else [0.0] * len(powers)
        self.iou_loss_weight = iou_loss_weight
        self.sync_avg_factor = sync_avg_factor
        self.score_threshold = score_threshold
        self.max_num = max_num
        self.nms = check_nms(nms or dict(type='rotated', iou=0.2), len(tasks))
        self.post_max_size = post_max_size
        self.post_center_range = resolve_post_center_range(post_center_range, point_cloud_range)

    def init_weights(self) -> None:
        """Initialize the weights, with every heatmap at a score of 0.1.

        mmdet3d 1.4 intends the latter too, but its code for it is never called.
        """
        super().init_weights()
        for task_head in self.task_heads:
            torch.nn.init.constant_(task_head.heatmap[-1].bias, task_head.init_bias)

    def forward_single(self, x: Tensor) -> list[dict[str, Tensor]]:
        """Return the outputs of all cells, one dict per task.

        Where there is a heading branch they contain its features.
        """
        features = self.shared_conv(x)
        shared = {} if self.heading is None else dict(features=features)
        return [task_head(features) | shared for task_head in self.task_heads]

    def get_targets(self, batch_gt_instances_3d: list[InstanceData]) -> list[CenterTargets]:
        """Return the training targets of the batch, one CenterTargets per task."""
        box_size = len(self.code_weights) - 1  # yaw is one number of a box, two of its encoding
        boxes, labels = unpack_ground_truth(batch_gt_instances_3d, box_size)
        targets = assign_targets(boxes, labels, self.num_classes, **self.target_settings)
        if not self.box_radius:
            return targets
        return [widen_targets(t, self.box_radius, self.feature_map_size) for t in targets]

    def loss_by_feat(
        self,
        preds_dicts: tuple[list[dict]],
        batch_gt_instances_3d: list[InstanceData],
        *args,
        **kwargs,
    ) -> dict[str, Tensor]:
        """Return the losses of each task: heatmap (focal), boxes (L1), and those of the IoU.

        Args:
            preds_dicts: of `forward`, a list with one dict per task.
            batch_gt_instances_3d: bboxes_3d and labels_3d, one per sample.
        Raises:
            ValueError: a BEV feature map of another size than range, voxel size and stride give.
        """
        targets = self.get_targets(batch_gt_instances_3d)
        num_peaks, num_boxes = self._avg_factors(targets)
        losses = {}
        for t, ((pred,), target) in enumerate(zip(preds_dicts, targets)):
            task_losses = self._task_losses(pred, target, num_peaks[t], num_boxes[t])
            losses.update({f'task{t}.{name}': value for name, value in task_losses.items()})
        if self.heading is not None:
            boxes, labels = unpack_ground_truth(batch_gt_instances_3d, 7)
            features = preds_dicts[0][0]['features']
            total, count = self.heading.loss(features, boxes, labels)
            count = reduce_mean(count.float()) if self.sync_avg_factor else count
            losses['loss_heading'] = total / count.clamp(min=1)
        return losses

    def _avg_factors(self, targets: list[CenterTargets]) -> tuple[Tensor, Tensor]:
        """Numbers by which the losses of the heatmap and of the boxes are divided, [tasks] each."""
        counts = [torch.stack([t.heatmap.eq(1).sum(), t.mask.sum()]) for t in targets]
        factors = torch.stack(counts).float()  # [tasks, 2]
        if self.sync_avg_factor:
            factors = reduce_mean(factors)
        return factors[:, 0].clamp(min=1), factors[:, 1] + 1e-4

    def _task_losses(
        self, pred: dict[str, Tensor], target: CenterTargets, num_peaks: Tensor, num_boxes: Tensor
    ) -> dict[str, Tensor]:
        check_feature_map_size(pred['heatmap'], self.feature_map_size)
        scores = heatmap_scores(pred['heatmap'])  # [B, classes, Y, X]
        loss_heatmap = self.loss_cls(scores, target.heatmap, avg_factor=num_peaks)

        outputs = self._box_outputs(pred).float()  # [B, C, Y, X]
        index = target.cell_index.unsqueeze(1).expand(-1, outputs.shape[1], -1)
        outputs = outputs.flatten(2).gather(2, index).transpose(1, 2)  # [B, max_objs, C]
        encoding, axis, predicted_iou = self._split_outputs(outputs)
        bbox_targets = target.bbox_targets.nan_to_num(0, 0, 0)
        weights = regression_weights(target.bbox_targets, self.code_weights)
        weights = target.mask.unsqueeze(2) * weights  # 0 where there is no object
        losses = dict(
            loss_heatmap=loss_heatmap,
            loss_bbox=self.loss_bbox(encoding, bbox_targets, weights, avg_factor=num_boxes),
        )
        if axis is not None:
            axis_targets = encode_axis(bbox_targets)
            weights = self.axis_weight * target.mask.unsqueeze(2).expand_as(axis)
            losses['loss_axis'] = self.loss_bbox(axis, axis_targets, weights, avg_factor=num_boxes)
            encoding = align_yaw(encoding, axis)
        return losses | iou_losses(
            encoding,
            bbox_targets,
            predicted_iou,
            cell_size=self.cell_size,
            branch_weight=self.iou_weight,
            box_weight=self.iou_loss_weight,
            avg_factor=num_boxes,
            mask=target.mask,
        )

    def _box_outputs(self, pred: dict[str, Tensor]) -> Tensor:
        """Outputs [B, C, Y, X] of all branches but the heatmap."""
        return torch.cat([pred[name] for name in self.branches], 1)

    def _split_outputs(self, outputs: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Box encoding [..., 8 or 10], axis [..., 2] and IoU [...] of outputs [..., C]."""
        size = len(self.code_weights)
        axis = outputs[..., size : size + 2] if self.axis_weight else None
        predicted_iou = outputs[..., self.num_outputs - 1] if self.iou_weight else None
        return outputs[..., :size], axis, predicted_iou

    def predict(
        self,
        feature_maps: Sequence[Tensor],
        batch_data_samples: list[Det3DDataSample],
        **kwargs,
    ) -> list[InstanceData]:
        """Return the detections of each sample, from the BEV feature map of the backbone.

        The same as `predict_by_feat` of all outputs, but boxes are computed at the peaks of the
        heatmaps only.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        # batch norms that are in training mode need the whole BEV feature map
        if any(module.training for module in self.modules()):
            outputs = self.gather_at_peaks(self(feature_maps))
        else:
            outputs = self.predict_at_peaks(feature_maps)
        with torch.autocast(feature_maps[0].device.type, enabled=False):
            return self.decode(outputs, metas)

    def predict_by_feat(
        self, preds_dicts: tuple[list[dict]], batch_input_metas: list[dict], *args, **kwargs
    ) -> list[InstanceData]:
        """Return the detections of each sample, from the outputs of all cells."""
        return self.decode(self.gather_at_peaks(preds_dicts), batch_input_metas)

    def predict_at_peaks(self, feature_maps: Sequence[Tensor]) -> list[tuple[Peaks, Tensor]]:
        """Run the heatmaps everywhere and the other branches at the peaks; in evaluation mode only.

        Args:
            feature_maps: of the backbone, the first [B, in_channels, Y, X].
        Returns:
            For each task its peaks and the outputs [K, C] of the other branches there.
        """
        shared = self.shared_conv(feature_maps[0])
        outputs = []
        for t, task_head in enumerate(self.task_heads):
            peaks = self._select_peaks(task_head.heatmap(shared), t)
            outputs.append((peaks, self.outputs_at(peaks, shared, t)))
        return outputs

    def outputs_at(self, peaks: Peaks, shared: Tensor, task: int) -> Tensor:
        """Return the outputs [K, C] of a task's branches but the heatmap at the peaks.

        Args:
            peaks: K cells.
            shared: [B, shared_channels, Y, X], output of `shared_conv`.
            task: its index.
        """
        branches = [getattr(self.task_heads[task], name) for name in self.branches]
        boxes = run_branches_at(branches, shared, peaks)
        return self._with_heading(boxes, peaks, shared)

    def gather_at_peaks(self, preds_dicts: tuple[list[dict]]) -> list[tuple[Peaks, Tensor]]:
        """Return what `predict_at_peaks` returns, from the outputs of all cells."""
        outputs = []
        for t, (pred,) in enumerate(preds_dicts):
            peaks = self._select_peaks(pred['heatmap'], t)
            boxes = gather_at(self._box_outputs(pred), peaks)
            outputs.append((peaks, self._with_heading(boxes, peaks, pred.get('features'))))
        return outputs

    def _with_heading(self, outputs: Tensor, peaks: Peaks, features: Tensor | None) -> Tensor:
        """Outputs [K, C] at the peaks, with the heading branch's logits as one more column."""
        if self.heading is None:
            return outputs
        assert features is not None, 'forward adds them where there is a heading branch'
        boxes = self._decode_boxes(peaks, outputs)
        logits = self.heading.logits_by_sample(features, boxes, peaks.sample)
        return torch.cat([outputs.float(), logits.unsqueeze(1)], 1)

    def decode(self, outputs: list[tuple[Peaks, Tensor]], metas: list[dict]) -> list[InstanceData]:
        """Decode the outputs at the peaks, apply NMS per task and join the tasks.

        Args:
            outputs: of `predict_at_peaks`, one entry per task.
            metas: of each sample, see `pack_detections`.
        Returns:
            One InstanceData (bboxes_3d, scores_3d, labels_3d) per sample.
        """
        per_task = []
        for t, (peaks, task_outputs) in enumerate(outputs):
            per_task.append(self._detect_task(peaks, task_outputs, t, num_samples=len(metas)))

        detections = []
        for i, meta in enumerate(metas):
            parts = [samples[i] for samples in per_task]  # of all tasks
            boxes, scores, labels = (torch.cat(values) for values in zip(*parts))
            detections.append(pack_detections(boxes, scores, labels, meta))
        return detections

    def _detect_task(
        self, peaks: Peaks, outputs: Tensor, task: int, num_samples: int
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Boxes, scores and labels of one task after NMS, for each sample."""
        boxes, scores = self.decode_task(peaks, outputs, task)
        labels = peaks.label + sum(self.num_classes[:task])  # counted through the tasks
        is_in_range = has_center_in(boxes, self.post_center_range)
        is_good = is_in_range & (scores > self.score_threshold)
        detections = []
        for i in range(num_samples):
            candidates = is_good & (peaks.sample == i)
            rows = candidates.nonzero().squeeze(1)
            best = apply_nms(self.nms, boxes[rows], scores[rows], task, self.post_max_size)
            rows = rows[best]
            detections.append((boxes[rows], scores[rows], labels[rows]))
        return detections

    def decode_task(self, peaks: Peaks, outputs: Tensor, task: int) -> tuple[Tensor, Tensor]:
        """Return the boxes [K, 7 or 9] and scores [K] at the peaks of one task."""
        boxes = self._decode_boxes(peaks, outputs)
        if self.heading is not None:
            half_turn = torch.where(boxes[:, 6] > 0, -torch.pi, torch.pi)
            boxes[:, 6] += half_turn * (outputs[:, -1] < 0)
        scores = peaks.score
        _, _, predicted_iou = self._split_outputs(outputs.float())
        if predicted_iou is not None:
            power = scores.new_tensor(self._iou_power_of(task))[peaks.label]
            scores = rectify_score(scores, predicted_iou, power)
        return boxes, scores

    def _decode_boxes(self, peaks: Peaks, outputs: Tensor) -> Tensor:
        """Boxes [K, 7 or 9] at the peaks of one task."""
        encoding, axis, _ = self._split_outputs(outputs.float())
        if axis is not None:
            encoding = align_yaw(encoding, axis)
        cells = torch.stack([peaks.x, peaks.y], 1)
        return decode_boxes(move_center(encoding, cells), self.cell_size, self.origin)

    def _select_peaks(self, logits: Tensor, task: int) -> Peaks:
        return select_peaks(logits, self._iou_power_of(task), self.score_threshold, self.max_num)

    def _iou_power_of(self, task: int) -> list[float]:
        """Powers of the IoU in the score, one per class of the task."""
        first = sum(self.num_classes[:task])
        return self.iou_power[first : first + self.num_classes[task]]
