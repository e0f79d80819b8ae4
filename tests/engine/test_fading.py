import logging
from types import SimpleNamespace

import pytest
from mmdet3d.datasets.transforms import ObjectSample
from torch.utils.data import DataLoader, Dataset

from stratified3d.engine.fading import FadeObjectSampleHook


class Sampling(ObjectSample):
    """Says whether it would paste objects."""

    def __init__(self):
        self.disabled = False


class Frames(Dataset):
    def __init__(self):
        self.pipeline = SimpleNamespace(transforms=[Sampling(), object()])

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return not self.pipeline.transforms[0].disabled


class Wrapper(Dataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('first', [0, 2, 4])
def test_the_last_epochs_are_without_also_after_resuming(first, workers, caplog):
    loader = DataLoader(Wrapper(Wrapper(Frames())), num_workers=workers, persistent_workers=workers > 0,
                        collate_fn=lambda rows: rows[0])
    hook, logger = FadeObjectSampleHook(epochs=2), logging.getLogger('fading')
    sampled = []
    with caplog.at_level(logging.INFO):
        for epoch in range(first, 5):
            hook.before_train_epoch(SimpleNamespace(train_dataloader=loader, epoch=epoch, max_epochs=5, logger=logger))
            sampled.append([*loader])
    assert sampled == [[epoch < 3] * 2 for epoch in range(first, 5)]
    assert caplog.messages == [f'ground-truth sampling off from epoch {max(first, 3) + 1}']
