import logging
from types import SimpleNamespace

import pytest
from mmdet3d.datasets.transforms import ObjectSample
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner import IterBasedTrainLoop
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
            hook.before_train_epoch(SimpleNamespace(train_dataloader=loader, epoch=epoch, max_epochs=5, logger=logger,
                                                    train_loop=None))
            sampled.append([*loader])
    assert sampled == [[epoch < 3] * 2 for epoch in range(first, 5)]
    assert caplog.messages == [f'ground-truth sampling off from epoch {max(first, 3) + 1}']


class CountingRunner:
    """As much of a runner as mmengine's loop over iterations asks for; a step notes what its batch says."""

    val_loop = optim_wrapper = None

    def __init__(self, loader, hook, steps, first):
        self.train_dataloader, self.hook, self.max_iters, self.sampled = loader, hook, steps, []
        self.logger, self.visualizer = logging.getLogger('fading'), SimpleNamespace()
        self.model = SimpleNamespace(train=lambda: None, train_step=lambda batch, **_: self.sampled.append(batch))
        self.train_loop = IterBasedTrainLoop(self, loader, steps)
        self.train_loop._iter = first

    @property
    def iter(self):
        return self.train_loop.iter

    def call_hook(self, name, **about):
        getattr(self.hook, name)(self, **about)


def counting_runner(sampler, epochs, first, workers):
    frames = Wrapper(Frames())
    loader = DataLoader(frames, sampler=sampler(frames, seed=0), num_workers=workers, persistent_workers=workers > 0,
                        collate_fn=lambda rows: rows[0])
    return CountingRunner(loader, FadeObjectSampleHook(epochs), 9, first)


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('first, epochs', [(0, 2), (5, 2), (7, 2), (0, 9)])
def test_passes_are_epochs_where_iterations_are_counted(first, epochs, workers, monkeypatch, caplog):
    monkeypatch.setattr('mmengine.runner.loops.time', SimpleNamespace(sleep=lambda seconds: None))
    runner = counting_runner(DefaultSampler, epochs, first, workers)
    with caplog.at_level(logging.INFO, logger='fading'):
        runner.train_loop.run()
    # five passes over two frames, the last cut short
    start = max(0, 2 * (5 - epochs))
    assert runner.sampled == [step < start for step in range(first, 9)]
    assert [r.message for r in caplog.records if r.name == 'fading'] == [
        f'ground-truth sampling off from epoch {max(first, start) // 2 + 1}']


def test_data_without_an_end_are_refused():
    with pytest.raises(ValueError, match='InfiniteSampler has none, so use DefaultSampler'):
        counting_runner(InfiniteSampler, 2, 0, 0).train_loop.run()
