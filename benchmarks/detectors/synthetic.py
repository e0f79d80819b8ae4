"""Objects that every detector of `benchmark.py model` finds: the same candidates for its decoding
and suppression."""

from __future__ import annotations

import math

import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor

# meters: between the places of two objects, and how far each is shifted from its place
STEP, SHIFT = 6.0, 0.9
LOWEST = -20.0  # logit of a cell without a candidate
# the cell of the center and its neighbors, (x, y), as a trained heatmap has its peaks
BLOB = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


class SyntheticObjects:
    """Boxes apart from each other, each a candidate in five cells, of which suppression must leave
    one.

    Args:
        reach: meters; objects lie within +-reach.
        classes: number of classes of each task.
        most: objects of a task.
    """

    def __init__(self, reach: float, classes: tuple[int, ...] = (1, 2, 2, 1, 2, 2), most: int = 40):
        generator = torch.Generator().manual_seed(0)
        side = int((reach - 3) // STEP)
        places = STEP * torch.cartesian_prod(
            *[torch.arange(-side, side + 1, dtype=torch.float32)] * 2
        )
        self.reach, self.classes, self.boxes = reach, classes, []
        for _ in classes:
            xy = places[torch.randperm(len(places), generator=generator)[:most]]
            xy = xy + SHIFT * (2 * torch.rand(xy.shape, generator=generator) - 1)
            fixed = torch.tensor([-1.0, 4.0, 1.8, 1.6]).expand(len(xy), 4)  # z, size
            yaw = 3 * (2 * torch.rand(len(xy), 1, generator=generator) - 1)
            self.boxes.append(
                torch.cat([xy, fixed, yaw, torch.rand(len(xy), 2, generator=generator)], 1)
            )
        self._made: dict[tuple, tuple] = {}

    @staticmethod
    def sample() -> Det3DDataSample:
        """What a detector is told of the frame."""
        return Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes))

    @property
    def candidates(self) -> int:
        """Of all tasks together."""
        return len(BLOB) * sum(map(len, self.boxes))

    def maps(
        self, out: tuple[list[dict[str, Tensor]]], cell: float, origin: float
    ) -> tuple[list[dict[str, Tensor]]]:
        """The head's output on which these objects are found, in the shapes of a real one; made
        once.

        Args:
            out: a list with one dict of maps [1, C, Y, X] a task.
            cell, origin: meters of a cell of the map and of its corner.
        """
        heatmap = out[0][0]['heatmap']
        key = (*heatmap.shape, cell, origin, heatmap.device, *out[0][0])
        if key not in self._made:
            self._made[key] = tuple(
                [self._plant(t, task, cell, origin)] for t, (task,) in enumerate(out)
            )
        # a copy of the dicts only: whoever decodes them may write into these
        return tuple([dict(task)] for (task,) in self._made[key])

    def _plant(
        self, t: int, task: dict[str, Tensor], cell: float, origin: float
    ) -> dict[str, Tensor]:
        planted = {name: torch.zeros(value.shape) for name, value in task.items()}
        planted['heatmap'].fill_(LOWEST)
        if 'iou' in planted:
            planted['iou'].fill_(1.0)
        boxes, size = self.boxes[t], planted['heatmap'].shape[2:]
        label = torch.arange(len(boxes)) % self.classes[t]
        score = 0.5 + 0.4 * torch.arange(len(boxes)) / len(boxes)
        for i, step in enumerate(BLOB):
            step = torch.tensor(step)
            xy = boxes[:, :2] + 0.1 * step
            at = ((boxes[:, :2] - origin) / cell).floor().long() + step
            x, y = at.unbind(1)
            if int(at.min()) < 0 or int(x.max()) >= size[1] or int(y.max()) >= size[0]:
                raise ValueError(
                    f'objects do not fit on a map of {size[0]} x {size[1]} cells of {cell:g} m'
                )
            planted['heatmap'][0, label, y, x] = (score if i == 0 else score / 2 - 0.02 * i).logit()
            yaw = boxes[:, 6]
            code = dict(
                reg=(xy - origin) / cell - at,
                height=boxes[:, 2:3],
                dim=boxes[:, 3:6].log(),
                rot=torch.stack([yaw.sin(), yaw.cos()], 1),
                vel=boxes[:, 7:],
            )
            for name, value in code.items():
                if name in planted:
                    planted[name][0, :, y, x] = value.T
        return {name: value.to(task[name].device) for name, value in planted.items()}

    def truth(self) -> tuple[Tensor, Tensor]:
        """Boxes [K, 9] with bottom centers, as mmdet3d has them, and labels [K]."""
        first = [sum(self.classes[:t]) for t in range(len(self.classes))]
        boxes = torch.cat(self.boxes)
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:3] - boxes[:, 5:6] / 2, boxes[:, 3:]], 1)
        labels = torch.cat(
            [torch.arange(len(b)) % self.classes[t] + first[t] for t, b in enumerate(self.boxes)]
        )
        return boxes, labels

    def missed(self, found: InstanceData, columns: int = 9) -> str | None:
        """What is wrong with the boxes that a detector found, or None; columns: of its boxes, 7
        without velocity."""
        boxes, labels = self.truth()
        given, kind = found.bboxes_3d.tensor.float().cpu(), found.labels_3d.cpu()
        if len(given) != len(boxes):
            return f'{len(given)} boxes are found where {len(boxes)} are planted'
        gap = (boxes[:, None, :columns] - given[None]).abs().amax(2)
        gap = gap.masked_fill(labels[:, None] != kind[None], math.inf)
        worst = float(gap.amin(1).max())
        return None if worst < 1e-3 else f'a planted box is found {worst:.1e} off'
