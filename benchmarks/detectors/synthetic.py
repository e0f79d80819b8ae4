"""Synthetic objects: every detector of `benchmark.py model` gets the same candidates for decoding
and NMS."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from typing import TypeAlias

import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor

# for each task a list with one dict of feature maps [1, C, Y, X]
HeadOutputs: TypeAlias = tuple[list[dict[str, Tensor]], ...]

STEP = 6.0  # meters between the places of two objects
SHIFT = 0.9  # meters at most from an object to its place
LOWEST = -20.0  # logit of a cell without a candidate
# the cell of the center and its neighbors, (x, y), as a trained heatmap has its peaks
BLOB = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
CLASSES = (1, 2, 2, 1, 2, 2)  # of each task


class SyntheticObjects:
    """Boxes apart from each other, each a candidate in five cells, of which NMS must keep one.

    Args:
        reach: meters; objects lie within +-reach.
        classes: number of classes of each task.
        most: objects per task.
    """

    def __init__(self, reach: float, classes: tuple[int, ...] = CLASSES, most: int = 40):
        self.reach = reach
        self.classes = classes
        self._outputs: dict[Hashable, HeadOutputs] = {}

        generator = torch.Generator().manual_seed(0)
        side = int((reach - 3) // STEP)
        along = torch.arange(-side, side + 1, dtype=torch.float32)
        places = STEP * torch.cartesian_prod(along, along)
        self.boxes = []  # of each task [K, 9]: center, size, yaw, velocity
        for _ in classes:
            chosen = torch.randperm(len(places), generator=generator)[:most]
            self.boxes.append(_boxes_near(places[chosen], generator))

    @staticmethod
    def sample() -> Det3DDataSample:
        """What a detector is told about the frame."""
        return Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes))

    @property
    def candidates(self) -> int:
        """Number of candidates of all tasks together."""
        return len(BLOB) * sum(map(len, self.boxes))

    def outputs(self, out: HeadOutputs, cell: float, origin: float) -> HeadOutputs:
        """Outputs of a head that finds these objects; computed once per shape.

        Args:
            out: of the real head; gives the shapes.
            cell: meters of a cell of the feature map.
            origin: meters of its corner.
        """
        heatmap = out[0][0]['heatmap']
        key = (*heatmap.shape, cell, origin, heatmap.device, *out[0][0])
        if key not in self._outputs:
            self._outputs[key] = tuple(
                [self._task_outputs(t, task, cell, origin)] for t, (task,) in enumerate(out)
            )
        # a copy of the dicts only, because decoding may write into these
        return tuple([dict(task)] for (task,) in self._outputs[key])

    def _task_outputs(
        self, t: int, real: dict[str, Tensor], cell: float, origin: float
    ) -> dict[str, Tensor]:
        outputs = _empty_outputs(real)
        label = torch.arange(len(self.boxes[t])) % self.classes[t]
        for index, score, encoding in self._candidates(t, cell, origin):
            _check_room(index, outputs['heatmap'].shape, cell)
            x, y = index.unbind(1)
            outputs['heatmap'][0, label, y, x] = score.logit()
            for name in encoding.keys() & outputs.keys():
                outputs[name][0, :, y, x] = encoding[name].T
        return {name: value.to(real[name].device) for name, value in outputs.items()}

    def _candidates(
        self, t: int, cell: float, origin: float
    ) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Cells (x, y) [K, 2], scores [K] and box encodings: at the centers, then around them."""
        boxes = self.boxes[t]
        count = len(boxes)
        center_score = 0.5 + 0.4 * torch.arange(count) / count
        center_index = ((boxes[:, :2] - origin) / cell).floor().long()
        for i, offset in enumerate(BLOB):
            step = torch.tensor(offset)
            index = center_index + step
            score = center_score if i == 0 else center_score / 2 - 0.02 * i
            moved = torch.cat([boxes[:, :2] + 0.1 * step, boxes[:, 2:]], 1)
            yield index, score, _encode(moved, index, cell, origin)

    def ground_truth(self) -> tuple[Tensor, Tensor]:
        """Boxes [K, 9] with bottom centers, as in mmdet3d, and labels [K]."""
        boxes = torch.cat(self.boxes)
        bottom = boxes[:, 2:3] - boxes[:, 5:6] / 2
        boxes = torch.cat([boxes[:, :2], bottom, boxes[:, 3:]], 1)

        labels = []
        first = 0
        for task_boxes, num_classes in zip(self.boxes, self.classes):
            labels.append(torch.arange(len(task_boxes)) % num_classes + first)
            first += num_classes
        return boxes, torch.cat(labels)

    def check(self, detections: InstanceData, columns: int = 9) -> str | None:
        """What is wrong with the detected boxes, or None.

        Args:
            columns: of the detected boxes; 7 without velocity.
        """
        expected, labels = self.ground_truth()
        boxes = detections.bboxes_3d.tensor.float().cpu()
        detected_labels = detections.labels_3d.cpu()
        if len(boxes) != len(expected):
            return f'{len(boxes)} boxes are found instead of {len(expected)} synthetic ones'

        gap = (expected[:, None, :columns] - boxes[None]).abs().amax(2)  # [K, K]
        gap = gap.masked_fill(labels[:, None] != detected_labels[None], math.inf)
        worst = float(gap.amin(1).max())
        return None if worst < 1e-3 else f'a synthetic box is found {worst:.1e} off'


def _boxes_near(places: Tensor, generator: torch.Generator) -> Tensor:
    """Boxes [K, 9] of one size, shifted from their places [K, 2]."""
    count = len(places)
    xy = places + SHIFT * (2 * torch.rand(places.shape, generator=generator) - 1)
    z_and_size = torch.tensor([-1.0, 4.0, 1.8, 1.6]).expand(count, 4)
    yaw = 3 * (2 * torch.rand(count, 1, generator=generator) - 1)
    velocity = torch.rand(count, 2, generator=generator)
    return torch.cat([xy, z_and_size, yaw, velocity], 1)


def _empty_outputs(real: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs of the same shapes without a candidate, on the CPU."""
    outputs = {name: torch.zeros(value.shape) for name, value in real.items()}
    outputs['heatmap'].fill_(LOWEST)
    if 'iou' in outputs:
        outputs['iou'].fill_(1.0)
    return outputs


def _check_room(index: Tensor, shape: torch.Size, cell: float) -> None:
    height, width = shape[2:]
    x, y = index.unbind(1)
    if int(index.min()) < 0 or int(x.max()) >= width or int(y.max()) >= height:
        raise ValueError(
            f'objects do not fit on a feature map of {height} x {width} cells of {cell:g} m'
        )


def _encode(boxes: Tensor, index: Tensor, cell: float, origin: float) -> dict[str, Tensor]:
    """Box encoding by branch, [K, C] each, of boxes [K, 9] relative to cells (x, y) [K, 2]."""
    yaw = boxes[:, 6]
    return dict(
        reg=(boxes[:, :2] - origin) / cell - index,
        height=boxes[:, 2:3],
        dim=boxes[:, 3:6].log(),
        rot=torch.stack([yaw.sin(), yaw.cos()], 1),
        vel=boxes[:, 7:],
    )
