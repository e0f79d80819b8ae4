"""TransFusion's head for LiDAR alone: the best cells of a heatmap become queries of a transformer,
and those boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet.utils import reduce_mean
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from stratified3d.models.heads.box_coding import (
    choose_code_weights,
    decode_boxes,
    grow_range,
    has_center_in,
    pack_detections,
    unpack_ground_truth,
)
from stratified3d.models.heads.box_iou import class_powers, overlap, rectify_score
from stratified3d.models.heads.center_targets import assign_targets
from stratified3d.models.heads.matching import match_queries
from stratified3d.ops import grid_shape


class QueryTargets(NamedTuple):
    """heatmap [B, classes, Y, X]; codes, one [K, 8 or 10] a sample (center x and y in cells of the
    map, gravity-center z, log dx dy dz, sin and cos of yaw, vx, vy); labels, one [K] int64 a
    sample."""

    heatmap: Tensor
    codes: list[Tensor]
    labels: list[Tensor]


@MODELS.register_module()
class StratifiedTransFusionHead(nn.Module):
    """TransFusion-L (Bai et al. 2022, sections 3.2 to 3.5): one set of queries for all classes, no
    suppression.

    The strongest local maxima of a class-wise heatmap give queries: the map's features there, their
    place and an embedding of their class. One decoder layer lets them attend to each other and to
    all cells, whose places are learned from coordinates too; a small network a number then makes
    each a box. A query's score is that of its class times that of its peak.

    Args:
        in_channels: of the map.
        tasks: lists of class names as the center head has them; their concatenation is the order of
        the labels, the
            grouping says nothing here.
        voxel_size, point_cloud_range: meters; stride: voxels per cell of the map.
        use_velocity: whether boxes have vx, vy to learn.
        channels, num_heads, feedforward_channels, dropout: of the decoder layer; channels also of
        its inputs.
        branch_channels: hidden width of the networks that predict boxes.
        num_proposals: queries a sample.
        small_classes: names of classes whose every cell may be a query, not only local maxima: they
        stand closer to
            each other than two cells.
        min_overlap, min_radius: see `assign_targets`.
        match_weights: of classification, center and IoU, see `match_queries`.
        bbox_weight: of the regression loss; the classification and heatmap losses have 1.
        iou_weight, iou_power, iou_loss_weight, code_weights: as in `StratifiedCenterHead`.
        score_threshold: only predictions above are kept.
        post_center_range: predictions with centers outside are dropped; default the range grown by
        10 m.
        sync_avg_factor: whether losses are averaged over the objects of all processes, as if one
            had the whole batch, or over those of each process alone.
    Raises:
        ValueError: class names that are missing, repeated or unknown, more queries than the heatmap
        has cells, settings
            whose lengths do not fit.
    """

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
        _, rows, columns = grid_shape(voxel_size, point_cloud_range)
        self.feature_map_size = (-(-rows // stride), -(-columns // stride))
        cells = self.feature_map_size[0] * self.feature_map_size[1]
        if not 0 < num_proposals <= len(names) * cells:
            raise ValueError(
                f'num_proposals is {num_proposals}, but the heatmap has {len(names)} classes of {cells} '
                'cells'
            )
        if channels % num_heads:
            raise ValueError(f'{num_heads} heads do not divide {channels} channels')
        if len(match_weights) != 3:
            raise ValueError(
                f'match_weights are of classification, center and IoU, not {match_weights}'
            )
        self.code_weights = choose_code_weights(code_weights, use_velocity)
        self.num_classes, self.num_proposals, self.match_weights = (
            len(names),
            num_proposals,
            match_weights,
        )
        self.iou_weight, self.iou_loss_weight = iou_weight, iou_loss_weight
        self.iou_power = class_powers(iou_power, len(names))
        self.score_threshold, self.sync_avg_factor = score_threshold, sync_avg_factor
        self.low, self.cell = (
            list(point_cloud_range[:2]),
            [size * stride for size in voxel_size[:2]],
        )
        self.post_center_range = list(post_center_range or grow_range(point_cloud_range))
        self.target_settings = dict(
            num_classes=[1] * len(names),
            feature_map_size=self.feature_map_size,
            voxel_size=voxel_size,
            point_cloud_range=point_cloud_range,
            stride=stride,
            min_overlap=min_overlap,
            min_radius=min_radius,
        )

        self.shared = _conv_norm(in_channels, channels)
        self.heatmap = nn.Sequential(
            _conv_norm(channels, channels), nn.Conv2d(channels, len(names), 3, padding=1)
        )
        self.category = nn.Linear(len(names), channels)
        self.position = _mlp(2, channels, channels)
        self.decoder = nn.TransformerDecoderLayer(
            channels, num_heads, feedforward_channels, dropout, batch_first=True
        )
        widths = dict(center=2, height=1, dims=3, yaw=2) | (
            dict(velocity=2) if use_velocity else {}
        )
        self.box_branches = nn.ModuleDict(
            {name: _mlp(channels, branch_channels, n) for name, n in widths.items()}
        )
        self.class_branch = _mlp(channels, branch_channels, len(names))
        self.iou_branch = _mlp(channels, branch_channels, 1) if iou_weight else None
        for last in (self.heatmap[-1], self.class_branch[-1]):
            nn.init.constant_(last.bias, -2.19)  # scores start at 0.1
        self.loss_heatmap = MODELS.build(dict(type='mmdet.GaussianFocalLoss', reduction='mean'))
        self.loss_class = MODELS.build(dict(type='mmdet.FocalLoss', reduction='mean'))
        self.loss_bbox = MODELS.build(
            dict(type='mmdet.L1Loss', reduction='mean', loss_weight=bbox_weight)
        )

        small = torch.tensor([name in small_classes for name in names])
        self.register_buffer('is_small', small.view(-1, 1, 1), persistent=False)
        y, x = torch.meshgrid(
            *(torch.arange(n) + 0.5 for n in self.feature_map_size), indexing='ij'
        )
        self.register_buffer(
            'places', torch.stack([x.flatten(), y.flatten()], 1), persistent=False
        )  # [Y X, 2] cells

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """The first map [B, in_channels, Y, X] -> heatmap [B, classes, Y, X] (logits), and of the
        queries labels [B, N] and peaks [B, N] (class and score in the heatmap), logits [B, N,
        classes], code [B, N, 8 or 10] (see `QueryTargets`; fp32) and, with that branch, iou [B, N]
        (2 IoU - 1)."""
        x = self.shared(maps[0])
        if x.shape[2:] != self.feature_map_size:
            raise ValueError(
                f'the map has {tuple(x.shape[2:])} cells, range, voxel size and stride give '
                f"{self.feature_map_size}: does the head's stride fit the backbone's?"
            )
        heatmap = self.heatmap(x)
        peaks, labels, cell = self._propose(heatmap)
        extent = self.places.new_tensor([self.feature_map_size[1], self.feature_map_size[0]])
        cells = x.flatten(2).transpose(1, 2) + self.position(
            2 * self.places / extent - 1
        )  # [B, Y X, C]
        queries = cells.gather(1, cell.unsqueeze(2).expand(-1, -1, cells.shape[2]))
        queries = queries + self.category(F.one_hot(labels, self.num_classes).to(queries.dtype))
        queries = self.decoder(queries, cells)  # [B, N, C]
        code = torch.cat([branch(queries).float() for branch in self.box_branches.values()], 2)
        code = torch.cat([self.places[cell] + code[..., :2], code[..., 2:]], 2)
        out = dict(
            heatmap=heatmap,
            labels=labels,
            peaks=peaks,
            logits=self.class_branch(queries),
            code=code,
        )
        return out | (dict(iou=self.iou_branch(queries).squeeze(2)) if self.iou_branch else {})

    def get_targets(self, batch_gt_instances_3d: list[InstanceData]) -> QueryTargets:
        """Ground truths of the batch -> heatmaps, and codes and labels of what is on the map."""
        boxes, labels = unpack_ground_truth(batch_gt_instances_3d, len(self.code_weights) - 1)
        for i, label in enumerate(labels):
            if len(label) and int(label.max()) >= self.num_classes:
                raise ValueError(
                    f'sample {i} has an object of class {int(label.max())}, but the head has '
                    f'{self.num_classes} classes, counted from 0'
                )
        classes = assign_targets(
            boxes, labels, max_objs=max(map(len, boxes)), **self.target_settings
        )
        codes, labels = [], []
        for i in range(len(boxes)):
            masks = [target.mask[i] for target in classes]
            index = torch.cat([target.index[i][mask] for target, mask in zip(classes, masks)])
            code = torch.cat([target.boxes[i][mask] for target, mask in zip(classes, masks)])
            corner = torch.stack(
                [index % self.feature_map_size[1], index // self.feature_map_size[1]], 1
            )
            codes.append(torch.cat([code[:, :2] + corner, code[:, 2:]], 1))
            labels.append(
                torch.cat(
                    [
                        mask.new_full((int(mask.sum()),), label, dtype=torch.long)
                        for label, mask in enumerate(masks)
                    ]
                )
            )
        return QueryTargets(torch.cat([target.heatmap for target in classes], 1), codes, labels)

    def loss_by_feat(
        self, preds: dict[str, Tensor], batch_gt_instances_3d: list[InstanceData], *args, **kwargs
    ) -> dict[str, Tensor]:
        """Focal losses of heatmap and classes, L1 and overlap losses of the boxes that are paired
        with objects."""
        target = self.get_targets(batch_gt_instances_3d)
        logits, code = preds['logits'].float(), preds['code'].float()
        pairs = [
            match_queries(
                *sample,
                cell=self.cell,
                feature_map_size=self.feature_map_size,
                weights=self.match_weights,
            )
            for sample in zip(logits, code, target.codes, target.labels)
        ]
        sample = torch.cat([query.new_full(query.shape, i) for i, (query, _) in enumerate(pairs)])
        query = torch.cat([query for query, _ in pairs])
        true_code = torch.cat([code[truth] for code, (_, truth) in zip(target.codes, pairs)])
        true_label = torch.cat([label[truth] for label, (_, truth) in zip(target.labels, pairs)])
        counts = torch.stack([target.heatmap.eq(1).sum(), sample.new_tensor(len(sample))]).float()
        peaks, total = (reduce_mean(counts) if self.sync_avg_factor else counts).clamp(min=1)

        # mmdet3d's clip_sigmoid would overwrite the predictions
        heat = preds['heatmap'].float().sigmoid().clamp(1e-4, 1 - 1e-4)
        wanted = torch.zeros_like(logits)
        wanted[sample, query, true_label] = 1
        code = code[sample, query]  # [M, code]
        # an unknown number (NaN velocity) is learned nowhere
        weight = true_code.isfinite() * code.new_tensor(self.code_weights)
        true_code = true_code.nan_to_num(0, 0, 0)
        losses = dict(
            loss_heatmap=self.loss_heatmap(heat, target.heatmap, avg_factor=peaks),
            loss_cls=self.loss_class(logits.flatten(0, 1), wanted.flatten(0, 1), avg_factor=total),
            loss_bbox=self.loss_bbox(code, true_code, weight, avg_factor=total),
        )
        if self.iou_weight or self.iou_loss_weight:
            iou, distance = overlap(code, true_code, self.cell)
        if self.iou_weight:
            gap = preds['iou'].float()[sample, query] - (2 * iou.detach() - 1)
            losses['loss_iou_branch'] = (self.iou_weight * gap.abs().sum() / total).float()
        if self.iou_loss_weight:
            losses['loss_iou'] = (self.iou_loss_weight * (1 - iou + distance).sum() / total).float()
        return losses

    def predict(
        self, maps: Sequence[Tensor], batch_data_samples: list[Det3DDataSample], **kwargs
    ) -> list[InstanceData]:
        """Maps of the backbone -> detections."""
        preds = self(maps)
        with torch.autocast(maps[0].device.type, enabled=False):
            return self.predict_by_feat(preds, [sample.metainfo for sample in batch_data_samples])

    def predict_by_feat(
        self, preds: dict[str, Tensor], batch_input_metas: list[dict], *args, **kwargs
    ) -> list[InstanceData]:
        """One InstanceData (bboxes_3d, scores_3d, labels_3d) a sample, at most one box a query."""
        labels = preds['labels']
        scores = (
            preds['logits'].float().sigmoid().gather(2, labels.unsqueeze(2)).squeeze(2)
            * preds['peaks']
        )  # [B, N]
        if 'iou' in preds:
            scores = rectify_score(
                scores, preds['iou'].float(), scores.new_tensor(self.iou_power)[labels]
            )
        boxes = decode_boxes(preds['code'].float(), self.cell, self.low)
        keep = has_center_in(boxes, self.post_center_range) & (scores > self.score_threshold)
        return [
            pack_detections(b[k], s[k], c[k], meta)
            for b, s, c, k, meta in zip(boxes, scores, labels, keep, batch_input_metas)
        ]

    def _propose(self, heatmap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, classes, Y, X] -> scores, classes and cells y * X + x of the queries, each [B,
        N]."""
        heat = heatmap.detach().float().sigmoid()
        is_peak = local_maxima(heat) | self.is_small
        # where there are too few peaks, the best other cells fill up, and score 0
        scores, index = torch.where(is_peak, heat, heat - 1).flatten(1).topk(self.num_proposals)
        cells = heat[0, 0].numel()
        return scores.clamp(min=0), index // cells, index % cells


def local_maxima(heat: Tensor) -> Tensor:
    """Where [..., Y, X] is no less than its eight neighbors, bool; of equal neighbors the first
    in reading order counts as the larger."""
    height, width = heat.shape[-2:]
    padded = F.pad(heat, (1, 1, 1, 1), value=-torch.inf)
    around = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    before, after = (torch.stack(part).amax(0) for part in (around[:4], around[5:]))
    return (heat > before) & (heat >= after)


def _check_names(tasks: Sequence[Sequence[str]], small_classes: Sequence[str]) -> list[list[str]]:
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
