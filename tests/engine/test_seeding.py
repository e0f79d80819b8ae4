from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet3d.datasets.transforms.dbsampler import BatchSampler
from mmengine.dataset import DefaultSampler, worker_init_fn
from torch.utils.data import DataLoader, Dataset

from stratified3d.engine.seeding import EpochSeedHook, pipelines


class Drawing:
    """Draws from every source of randomness that a pipeline has."""

    def __init__(self):
        self.db_sampler = SimpleNamespace(
            sampler_dict=dict(car=BatchSampler(list(range(50)), 'car'))
        )

    def __call__(self, index):
        return (
            index,
            *self.db_sampler.sampler_dict['car'].sample(2),
            np.random.rand(),
            torch.rand(1).item(),
        )


class Drawn(Dataset):
    def __init__(self):
        self.pipeline = SimpleNamespace(transforms=[Drawing()])

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return self.pipeline.transforms[0](index)


def epochs(numbers, workers, seed=3):
    """What a run of these epochs draws in each."""
    np.random.seed(len(numbers) + numbers[0])  # the generators' state is whatever it is
    dataset = Drawn()
    init = partial(worker_init_fn, num_workers=workers, rank=0, seed=11)
    loader = DataLoader(
        dataset,
        1,
        sampler=DefaultSampler(dataset, seed=numbers[0]),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=init,
        collate_fn=lambda rows: rows[0],
    )
    drawn = []
    for epoch in numbers:
        loader.sampler.set_epoch(epoch)
        EpochSeedHook().before_train_epoch(
            SimpleNamespace(seed=seed, epoch=epoch, train_dataloader=loader)
        )
        drawn.append(([*loader], torch.rand(1).item()))
    return drawn


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_an_epoch_does_not_depend_on_those_before(workers):
    whole = epochs([0, 1, 2], workers)
    assert epochs([2], workers) == whole[2:]
    assert epochs([1, 2], workers) == whole[1:]
    assert whole[0] != whole[1] != whole[2] and epochs([2], workers, seed=4) != whole[2:]
    assert sorted(row[0] for row in whole[0][0]) == list(range(7))


def test_wrapped_data_sets_are_reached():
    one, two = Drawn(), Drawn()
    assert pipelines(one) == [one.pipeline]
    joined = SimpleNamespace(dataset=SimpleNamespace(datasets=[one, SimpleNamespace(dataset=two)]))
    assert pipelines(joined) == [one.pipeline, two.pipeline]
    assert pipelines(object()) == []
