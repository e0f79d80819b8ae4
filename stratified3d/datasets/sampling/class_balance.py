"""Class-balanced resampling that survives classes without a training box."""

from __future__ import annotations

import logging

import numpy as np
from mmdet3d.datasets import CBGSDataset
from mmdet3d.registry import DATASETS
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log


@DATASETS.register_module()
class ClassBalancedFrames(CBGSDataset):
    """mmdet3d's CBGSDataset, with the same arguments, for datasets in which classes may be absent.

    Every class that occurs is drawn equally often from the frames that show it. The length of an
    epoch is the number of these frames, counted once per class. CBGSDataset (Zhu et al.,
    https://arxiv.org/abs/1908.09492) does the same but divides by the number of frames of every
    class: one class without a box, as in a part of nuScenes or in a dataset of one's own, is a
    ZeroDivisionError. Here it is left out with a warning.
    """

    def _get_sample_indices(self, dataset: BaseDataset) -> list[int]:
        """Indices of an epoch; ValueError if no frame shows any class."""
        classes = self.metainfo['classes']
        frames: list[list[int]] = [[] for _ in classes]  # indices of frames by class
        for index in range(len(dataset)):
            for label in dataset.get_cat_ids(index):
                if label >= 0:
                    frames[label].append(index)

        present = [indices for indices in frames if indices]
        if not present:
            raise ValueError(
                f'{dataset.ann_file}: none of its {len(dataset)} frames has a box of '
                f'{", ".join(classes)}'
            )
        absent = [name for name, indices in zip(classes, frames) if not indices]
        if absent:
            message = f'no box of {", ".join(absent)}; the other classes are balanced'
            print_log(f'{dataset.ann_file}: {message}', 'current', logging.WARNING)

        draws = sum(map(len, present)) // len(present)
        chosen: list[int] = []
        for indices in present:
            chosen += np.random.choice(indices, draws).tolist()
        return chosen
