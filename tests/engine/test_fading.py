import logging
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from mmdet3d.datasets.transforms import ObjectSample
from mmengine.dataset import DefaultSampler, InfiniteSampler, worker_init_fn
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader, Dataset

from stratified3d.engine.fading import FadeObjectSampleHook
from stratified3d.engine.seeding import EpochSeedHook

pytestmark = pytest.mark.slow


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
        return not self.pipeline.transforms[0].disabled, np.random.random()


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
    loader = DataLoader(
        Wrapper(Wrapper(Frames())),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=lambda rows: rows[0],
    )
    hook, logger = FadeObjectSampleHook(epochs=2), logging.getLogger('fading')
    sampled = []
    with caplog.at_level(logging.INFO):
        for epoch in range(first, 5):
            hook.before_train_epoch(
                SimpleNamespace(
                    train_dataloader=loader,
                    epoch=epoch,
                    max_epochs=5,
                    logger=logger,
                    train_loop=None,
                    seed=0,
                )
            )
            sampled.append([pasted for pasted, _ in loader])
    assert sampled == [[epoch < 3] * 2 for epoch in range(first, 5)]
    assert caplog.messages == [f'ground-truth sampling off from epoch {max(first, 3) + 1}']


class CountingRunner:
    """As much of a runner as mmengine's loop over iterations asks for; a step notes what its batch
    says."""

    val_loop = optim_wrapper = None
    epoch = seed = 0

    def __init__(self, hooks, steps, first=0, workers=1, sampler=DefaultSampler, by_batch=False):
        frames = Wrapper(Frames())
        order = sampler(frames, seed=0)
        how = dict(batch_sampler=BatchSampler(order, 1, False)) if by_batch else dict(sampler=order)
        self.train_dataloader = DataLoader(
            frames,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=lambda rows: rows[0],
            worker_init_fn=partial(worker_init_fn, num_workers=workers, rank=0, seed=0),
            **how,
        )
        self.hooks, self.max_iters, self.steps = hooks, steps, []
        self.logger, self.visualizer = logging.getLogger('fading'), SimpleNamespace()
        self.model = SimpleNamespace(
            train=lambda: None, train_step=lambda batch, **_: self.steps.append(batch)
        )
        self.train_loop = IterBasedTrainLoop(self, self.train_dataloader, steps)
        self.train_loop._iter = first

    @property
    def iter(self):
        return self.train_loop.iter

    def call_hook(self, name, **about):
        for hook in self.hooks:
            getattr(hook, name)(self, **about)

    def run(self):
        """What each step saw: whether objects were pasted, and a number drawn at random."""
        with mock.patch('mmengine.runner.loops.time'):  # it sleeps between passes
            self.train_loop.run()
        return self.steps


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('first, epochs', [(0, 2), (5, 2), (7, 2), (0, 9)])
def test_passes_are_epochs_where_iterations_are_counted(first, epochs, workers, caplog):
    with caplog.at_level(logging.INFO, logger='fading'):
        steps = CountingRunner([FadeObjectSampleHook(epochs)], 9, first, workers).run()
    # five passes over two frames, the last cut short
    start = max(0, 2 * (5 - epochs))
    assert [pasted for pasted, _ in steps] == [step < start for step in range(first, 9)]
    assert [r.message for r in caplog.records if r.name == 'fading'] == [
        f'ground-truth sampling off from epoch {max(first, start) // 2 + 1}'
    ]


def test_until_then_all_is_as_without_and_nothing_is_drawn_twice():
    with_it, without = (
        [drawn for _, drawn in CountingRunner(hooks, 6).run()]
        for hooks in ([FadeObjectSampleHook(1), EpochSeedHook()], [EpochSeedHook()])
    )
    assert with_it[:4] == without[:4] and with_it[4:] != without[4:]
    assert len({*with_it}) == 6


@pytest.mark.parametrize('by_batch', [False, True])
def test_data_without_an_end_are_refused(by_batch):
    with pytest.raises(ValueError, match='InfiniteSampler .*DefaultSampler'):
        CountingRunner(
            [FadeObjectSampleHook(2)], 9, sampler=InfiniteSampler, by_batch=by_batch
        ).run()
