"""TransFusion's head for LiDAR: heatmap peaks are the queries of a transformer decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.utils import reduce_mean
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from stratified3d.models.heads.box_coding import (
    decode_boxes,
    has_center_in,
    move_center,
    pack_detections,
    resolve_code_weights,
    unpack_ground_truth,
)
from stratified3d.models.heads.box_iou import iou_power_per_class, rectify_score
from stratified3d.models.heads.feature_map import (
    cell_centers,
    check_feature_map_size,
    feature_map_geometry,
    resolve_post_center_range,
)
from stratified3d.models.heads.losses import heatmap_scores, iou_losses, regression_weights
from stratified3d.models.heads.matching import (
    MatchedPairs,
    QueryTargets,
    assign_query_targets,
    match_batch,
)
from stratified3d.models.heads.peaks import select_queries


@MODELS.register_module()
class StratifiedTransFusionHead(nn.Module):
    """TransFusion-L (Bai et al. 2022, sections 3.2 to 3.5): one set of queries, no NMS.

    The strongest local maxima of a class-wise heatmap give queries: the features of their cells,
    their positions and an embedding of their class. One decoder layer lets them attend to each
    other and to all cells, whose positions are embedded too. Small networks then predict a box per
    query. A query's score is that of its class times its score in the heatmap.

    Args:
        in_channels: of the BEV feature map.
        tasks: lists of class names as the center head has them; their concatenation is the order of
            the labels, the grouping has no effect here.
        voxel_size, point_cloud_range: meters.
        stride: voxels per cell of the BEV feature map.
        use_velocity: whether boxes have vx, vy to learn.
        channels, num_heads, feedforward_channels, dropout: of the decoder layer; channels also of
            its inputs.
        branch_channels: hidden width of the networks that predict boxes.
        num_proposals: queries per sample.
        small_classes: names of classes whose every cell may be a query, not only local maxima:
            their objects stand closer to each other than two cells.
        min_overlap, min_radius: see `assign_targets`.
        match_weights: of classification, center and IoU, see `match_queries`.
        bbox_weight: of the regression loss; the classification and heatmap losses have 1.
        iou_weight, iou_power, iou_loss_weight, code_weights: as in `StratifiedCenterHead`.
        score_threshold: only predictions above are kept.
        post_center_range: predictions with centers outside are dropped; default the range extended
            by 10 m.
        sync_avg_factor: whether losses are averaged over the objects of all processes, as if one
            had the whole batch, or over those of each process alone.
    Raises:
        ValueError: class names that are missing, repeated or unknown, more queries than the heatmap
            has cells, settings whose lengths do not fit.
    """

    is_small: Tensor  # [classes, 1, 1] bool
    cell_centers: Tensor  # [Y X, 2] x and y in cells

    def __init__(
        self,
        in_channels: int,
        tasks: Sequence[Sequence[str]],
        voxel_size: Sequence[float],
        point_cloud_range: Sequence[float],
        stride: int,
        use_velocity: bool = True,
        channels: int = 128,
        num_heads: int = 8,
        feedforward_channels: int = 256,
        dropout: float = 0.1,
        branch_channels: int = 64,
        num_proposals: int = 200,
        small_classes: Sequence[str] = (),
        min_overlap: float = 0.1,
        min_radius: int = 2,
        match_weights: Sequence[float] = (0.15, 0.25, 0.25),
        bbox_weight: float = 0.25,
        iou_weight: float = 0.0,
        iou_power: float | Sequence[float] = 0.5,
        iou_loss_weight: float = 0.0,
        code_weights: Sequence[float] | None = None,
        score_threshold: float = 0.0,
        post_center_range: Sequence[float] | None = None,
        sync_avg_factor: bool = False,
    ):
        super().__init__()
        self.class_names = _check_names(tasks, small_classes)
        names = [name for group in self.class_names for name in group]
        geometry = feature_map_geometry(voxel_size, point_cloud_range, stride)
        _check_settings(
            num_proposals, len(names), geometry.size, channels, num_heads, match_weights
        )
        self.feature_map_size, self.cell_size, self.origin = geometry
        self.target_settings: dict[str, Any] = dict(
            feature_map_size=self.feature_map_size,
            voxel_size=voxel_size,
            point_cloud_range=point_cloud_range,
            stride=stride,
            min_overlap=min_overlap,
            min_radius=min_radius,
        )
        self.num_classes = len(names)
        self.num_proposals = num_proposals
        self.match_weights = match_weights
        self.code_weights = resolve_code_weights(code_weights, use_velocity)
        self.iou_weight = iou_weight
        self.iou_power = iou_power_per_class(iou_power, len(names))
        self.iou_loss_weight = iou_loss_weight
        self.sync_avg_factor = sync_avg_factor
        self.score_threshold = score_threshold
        self.post_center_range = resolve_post_center_range(post_center_range, point_cloud_range)

        self._build_decoder(in_channels, channels, num_heads, feedforward_channels, dropout)
        self._build_branches(channels, branch_channels, use_velocity)
        self._build_losses(bbox_weight)
        is_small = torch.tensor([name in small_classes for name in names]).view(-1, 1, 1)
        self.register_buffer('is_small', is_small, persistent=False)
        self.register_buffer('cell_centers', cell_centers(geometry.size), persistent=False)

    def _build_decoder(
        self,
        in_channels: int,
        channels: int,
        num_heads: int,
        feedforward_channels: int,
        dropout: float,
    ) -> None:
        self.shared = _conv_norm(in_channels, channels)
        self.heatmap = nn.Sequential(
            _conv_norm(channels, channels), nn.Conv2d(channels, self.num_classes, 3, padding=1)
        )
        _start_with_low_scores(self.heatmap)
        self.category = nn.Linear(self.num_classes, channels)
        self.position = _mlp(2, channels, channels)
        self.decoder = nn.TransformerDecoderLayer(
            channels, num_heads, feedforward_channels, dropout, batch_first=True
        )

    def _build_branches(self, channels: int, branch_channels: int, use_velocity: bool) -> None:
        widths = dict(center=2, height=1, dims=3, yaw=2)
        if use_velocity:
            widths['velocity'] = 2
        self.box_branches = nn.ModuleDict(
            {name: _mlp(channels, branch_channels, width) for name, width in widths.items()}
        )
        self.class_branch = _mlp(channels, branch_channels, self.num_classes)
        _start_with_low_scores(self.class_branch)
        self.iou_branch = _mlp(channels, branch_channels, 1) if self.iou_weight else None

    def _build_losses(self, bbox_weight: float) -> None:
        self.loss_heatmap = MODELS.build(dict(type='mmdet.GaussianFocalLoss', reduction='mean'))
        self.loss_class = MODELS.build(dict(type='mmdet.FocalLoss', reduction='mean'))
        self.loss_bbox = MODELS.build(
            dict(type='mmdet.L1Loss', reduction='mean', loss_weight=bbox_weight)
        )

    def forward(self, feature_maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the heatmap and the predictions of the queries.

        Args:
            feature_maps: of the backbone, the first [B, in_channels, Y, X].
        Returns:
            heatmap: [B, classes, Y, X] logits.
            labels: [B, N] class of each query; peak_scores: [B, N] its score in the heatmap.
            logits: [B, N, classes] of the queries.
            encoding: [B, N, 8 or 10] box encodings in fp32, the center in cells of the map.
            iou: [B, N] 2 IoU - 1, with iou_weight only.
        Raises:
            ValueError: a BEV feature map of another size than range, voxel size and stride give.
        """
        features = self.shared(feature_maps[0])
        check_feature_map_size(features, self.feature_map_size)
        heatmap = self.heatmap(features)
        peak_scores, labels, cell_index = select_queries(heatmap, self.is_small, self.num_proposals)
        queries = self._decode_queries(features, labels, cell_index)  # [B, N, C]

        outputs = [branch(queries).float() for branch in self.box_branches.values()]
        # each box starts at the center of its query's cell
        encoding = move_center(torch.cat(outputs, 2), self.cell_centers[cell_index])
        preds = dict(
            heatmap=heatmap,
            labels=labels,
            peak_scores=peak_scores,
            logits=self.class_branch(queries),
            encoding=encoding,
        )
        if self.iou_branch is not None:
            preds['iou'] = self.iou_branch(queries).squeeze(2)
        return preds

    def _decode_queries(self, features: Tensor, labels: Tensor, cell_index: Tensor) -> Tensor:
        """Let the queries at cells [B, N] attend to each other and to all cells: [B, N, C]."""
        height, width = self.feature_map_size
        extent = self.cell_centers.new_tensor([width, height])
        position = self.position(2 * self.cell_centers / extent - 1)  # [Y X, C]
        cells = features.flatten(2).transpose(1, 2) + position  # [B, Y X, C]
        index = cell_index.unsqueeze(2).expand(-1, -1, cells.shape[2])
        queries = cells.gather(1, index)  # [B, N, C]
        categories = F.one_hot(labels, self.num_classes).to(queries.dtype)
        queries = queries + self.category(categories)
        return self.decoder(queries, cells)

    def get_targets(self, batch_gt_instances_3d: list[InstanceData]) -> QueryTargets:
        """Return the heatmaps, and the objects that are on the BEV feature map.

        Raises:
            ValueError: a label that is not one of the head's classes.
        """
        box_size = len(self.code_weights) - 1  # yaw is one number of a box, two of its encoding
        boxes, labels = unpack_ground_truth(batch_gt_instances_3d, box_size)
        return assign_query_targets(boxes, labels, self.num_classes, **self.target_settings)

    def loss_by_feat(
        self, preds: dict[str, Tensor], batch_gt_instances_3d: list[InstanceData], *args, **kwargs
    ) -> dict[str, Tensor]:
        """Return the losses of heatmap and classes (focal), boxes (L1), and those of the IoU.

        The losses of the boxes are those of the queries that are paired with objects.

        Args:
            preds: of `forward`.
            batch_gt_instances_3d: bboxes_3d and labels_3d, one per sample.
        """
        target = self.get_targets(batch_gt_instances_3d)
        pairs = match_batch(
            preds['logits'].float(),
            preds['encoding'].float(),
            target,
            cell_size=self.cell_size,
            feature_map_size=self.feature_map_size,
            weights=self.match_weights,
        )
        num_peaks, num_pairs = self._avg_factors(target, pairs)
        scores = heatmap_scores(preds['heatmap'])
        losses = dict(
            loss_heatmap=self.loss_heatmap(scores, target.heatmap, avg_factor=num_peaks),
            loss_cls=self._class_loss(preds['logits'].float(), pairs, num_pairs),
        )
        return losses | self._box_losses(preds, pairs, num_pairs)

    def _avg_factors(self, target: QueryTargets, pairs: MatchedPairs) -> tuple[Tensor, Tensor]:
        """Numbers by which the losses of the heatmap and of the queries are divided."""
        num_peaks = target.heatmap.eq(1).sum()
        num_pairs = num_peaks.new_tensor(len(pairs.query))
        factors = torch.stack([num_peaks, num_pairs]).float()
        if self.sync_avg_factor:
            factors = reduce_mean(factors)
        num_peaks, num_pairs = factors.clamp(min=1)
        return num_peaks, num_pairs

    def _class_loss(self, logits: Tensor, pairs: MatchedPairs, num_pairs: Tensor) -> Tensor:
        wanted = torch.zeros_like(logits)  # [B, N, classes], zero for queries without an object
        wanted[pairs.sample, pairs.query, pairs.label] = 1
        return self.loss_class(logits.flatten(0, 1), wanted.flatten(0, 1), avg_factor=num_pairs)

    def _box_losses(
        self, preds: dict[str, Tensor], pairs: MatchedPairs, num_pairs: Tensor
    ) -> dict[str, Tensor]:
        encoding = preds['encoding'].float()[pairs.sample, pairs.query]  # [M, 8 or 10]
        weights = regression_weights(pairs.bbox_targets, self.code_weights)
        bbox_targets = pairs.bbox_targets.nan_to_num(0, 0, 0)
        loss_bbox = self.loss_bbox(encoding, bbox_targets, weights, avg_factor=num_pairs)

        predicted_iou = None
        if self.iou_weight:
            predicted_iou = preds['iou'].float()[pairs.sample, pairs.query]
        extra_losses = iou_losses(
            encoding,
            bbox_targets,
            predicted_iou,
            cell_size=self.cell_size,
            branch_weight=self.iou_weight,
            box_weight=self.iou_loss_weight,
            avg_factor=num_pairs,
        )
        return dict(loss_bbox=loss_bbox, **extra_losses)

    def predict(
        self,
        feature_maps: Sequence[Tensor],
        batch_data_samples: list[Det3DDataSample],
        **kwargs,
    ) -> list[InstanceData]:
        """Return the detections of each sample, from the BEV feature map of the backbone."""
        preds = self(feature_maps)
        metas = [sample.metainfo for sample in batch_data_samples]
        with torch.autocast(feature_maps[0].device.type, enabled=False):
            return self.predict_by_feat(preds, metas)

    def predict_by_feat(
        self, preds: dict[str, Tensor], batch_input_metas: list[dict], *args, **kwargs
    ) -> list[InstanceData]:
        """Return one InstanceData (bboxes_3d, scores_3d, labels_3d) per sample.

        A query gives at most one box.
        """
        labels = preds['labels']
        scores = self._query_scores(preds)
        boxes = decode_boxes(preds['encoding'].float(), self.cell_size, self.origin)
        is_in_range = has_center_in(boxes, self.post_center_range)
        keep = is_in_range & (scores > self.score_threshold)

        detections = []
        for i, meta in enumerate(batch_input_metas):
            rows = keep[i]  # [N] bool
            detections.append(
                pack_detections(boxes[i][rows], scores[i][rows], labels[i][rows], meta)
            )
        return detections

    def _query_scores(self, preds: dict[str, Tensor]) -> Tensor:
        """Score [B, N] of each query for its class."""
        labels = preds['labels']
        class_scores = preds['logits'].float().sigmoid()
        scores = class_scores.gather(2, labels.unsqueeze(2)).squeeze(2)  # [B, N]
        scores = scores * preds['peak_scores']
        if 'iou' in preds:
            power = scores.new_tensor(self.iou_power)[labels]
            scores = rectify_score(scores, preds['iou'].float(), power)
        return scores


def _check_names(tasks: Sequence[Sequence[str]], small_classes: Sequence[str]) -> list[list[str]]:
    """Return a copy of the class names, after a check."""
    if isinstance(tasks, str) or any(isinstance(names, str) for names in tasks):
        raise ValueError(
            f"tasks are lists of class names, e.g. [['car', 'pedestrian']], not {tasks!r}"
        )
    names = [name for group in tasks for name in group]
    if not names or len(set(names)) != len(names):
        raise ValueError(f'tasks name each class once, not {names}')
    if isinstance(small_classes, str) or not set(small_classes) <= set(names):
        raise ValueError(
            f'small_classes is a list of class names out of {names}, not {small_classes!r}'
        )
    return [list(group) for group in tasks]


def _check_settings(
    num_proposals: int,
    num_classes: int,
    feature_map_size: tuple[int, int],
    channels: int,
    num_heads: int,
    match_weights: Sequence[float],
) -> None:
    cells = feature_map_size[0] * feature_map_size[1]
    if not 0 < num_proposals <= num_classes * cells:
        raise ValueError(
            f'num_proposals is {num_proposals}, but the heatmap has {num_classes} classes of '
            f'{cells} cells'
        )
    if channels % num_heads:
        raise ValueError(f'channels {channels} is not a multiple of num_heads {num_heads}')
    if len(match_weights) != 3:
        raise ValueError(f'match_weights has classification, center and IoU, not {match_weights}')


def _start_with_low_scores(branch: nn.Sequential) -> None:
    """Set the bias of the last layer so that scores start at 0.1."""
    _, bias = branch[-1].parameters()
    nn.init.constant_(bias, -2.19)


def _conv_norm(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels, eps=1e-3),
        nn.ReLU(inplace=True),
    )


def _mlp(in_channels: int, channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_channels, channels),
        nn.LayerNorm(channels),
        nn.ReLU(inplace=True),
        nn.Linear(channels, out_channels),
    )
