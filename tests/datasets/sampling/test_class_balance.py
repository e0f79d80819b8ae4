import numpy as np
import pytest
from mmdet3d.datasets import CBGSDataset
from mmengine.dataset import BaseDataset

from stratified3d.datasets.sampling import class_balance
from stratified3d.datasets.sampling.class_balance import ClassBalancedFrames


class Frames(BaseDataset):
    """Frames given by their classes: what CBGSDataset asks of a dataset."""

    def __init__(self, labels, classes):
        self.labels = labels
        super().__init__('frames', dict(classes=classes), lazy_init=True)

    def full_init(self):
        self._fully_initialized = True

    def __len__(self):
        return len(self.labels)

    def get_cat_ids(self, index):
        return set(self.labels[index])


COMMON = [[0], [0], [0], [0, 1], [0, -1], [0, 1, 2]]


def drawn(dataset, labels, count):
    """How many frames of an epoch were drawn for each class: they come class by class."""
    size = len(dataset) // count
    chunks = np.array(dataset.sample_indices).reshape(count, size)
    return [
        {label for label in range(3) if all(label in labels[i] for i in chunk)} for chunk in chunks
    ]


def test_every_class_is_drawn_equally_often():
    dataset = ClassBalancedFrames(Frames(COMMON, ['car', 'bus', 'truck']))
    assert len(dataset) == 9 and dataset.sample_indices[-3:] == [5, 5, 5]
    assert all(label in found for label, found in enumerate(drawn(dataset, COMMON, 3)))


def test_where_all_classes_occur_it_is_mmdet3ds():
    frames = Frames(COMMON, ['car', 'bus', 'truck'])
    np.random.seed(3)
    ours = ClassBalancedFrames(frames).sample_indices
    np.random.seed(3)
    assert CBGSDataset(frames).sample_indices == ours


def test_an_absent_class_is_left_out_with_a_warning(monkeypatch):
    labels = [[0], [0], [0, 2], [0]]
    frames = Frames(labels, ['car', 'bus', 'truck'])
    with pytest.raises(ZeroDivisionError):  # what is replaced: if this fails, mmdet3d has fixed it
        CBGSDataset(frames)
    warnings = []
    monkeypatch.setattr(class_balance, 'print_log', lambda text, *_: warnings.append(text))
    dataset = ClassBalancedFrames(frames)
    assert warnings == ['frames: no box of bus; the other classes are balanced']
    assert len(dataset) == 4 and dataset.sample_indices[2:] == [2, 2]


def test_frames_without_a_box_are_refused():
    with pytest.raises(ValueError, match='frames: .* 2 frames .* car, bus'):
        ClassBalancedFrames(Frames([[-1], []], ['car', 'bus']))
