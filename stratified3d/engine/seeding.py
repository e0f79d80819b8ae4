"""Random numbers that depend on (seed, epoch, rank) alone, so that a resumed run draws the same."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast, get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed every epoch from (seed, epoch, rank), in this process and in the loader's workers.

    mmengine's checkpoints contain no state of random generators: after `--resume`, augmentation and
    the model draw from the start of their streams again, and the order of the data follows a new
    seed unless one is fixed. Besides, workers that are not persistent repeat the same augmentation
    in every epoch. This hook seeds the order, the ground-truth sampler's queues, augmentation and
    the model in each epoch, and restarts the workers for it.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the epoch that is about to begin."""
        # ranks may have seeds of their own, but must agree on the order of the data
        seed = torch.tensor(runner.seed)
        broadcast(seed)
        loader = runner.train_dataloader
        for sampler in samplers(loader):
            if hasattr(sampler, 'seed'):
                sampler.seed = int(seed)

        own = derive_seed(int(seed), runner.epoch)
        seed_everything(own)
        for pipeline in pipelines(loader.dataset):
            for transform in pipeline.transforms:
                _restart_queues(transform)
        restart_workers(loader, own)


def derive_seed(seed: int, epoch: int) -> int:
    """This rank's seed of an epoch, below 2^31."""
    return int(np.random.SeedSequence((seed, epoch, get_rank())).generate_state(1)[0] >> 1)


def seed_everything(seed: int) -> None:
    """Seed random, numpy and torch on all devices; seed below 2^31."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def samplers(loader: DataLoader) -> list:
    """Samplers that may give the order of frames: the loader's, and that of its batch sampler."""
    return [loader.sampler, getattr(loader.batch_sampler, 'sampler', None)]


def pipelines(dataset: Any) -> list:
    """The transform pipelines of a dataset, however it is wrapped."""
    if hasattr(dataset, 'pipeline'):
        return [dataset.pipeline]
    if hasattr(dataset, 'dataset'):
        return pipelines(dataset.dataset)
    return [pipeline for part in getattr(dataset, 'datasets', []) for pipeline in pipelines(part)]


def _restart_queues(transform: object) -> None:
    """Shuffle the queues of a ground-truth sampler from their initial order."""
    sampler = getattr(transform, 'db_sampler', None)
    for queue in getattr(sampler, 'sampler_dict', {}).values():
        queue._indices = np.arange(queue._example_num)
        queue._reset()


def restart_workers(loader: DataLoader, seed: int) -> None:
    """Let the loader's next iterator start new workers, which copy the dataset as it is then."""
    init = loader.worker_init_fn
    if isinstance(init, partial) and 'seed' in init.keywords:
        keywords = {**init.keywords, 'rank': 0, 'seed': seed}
        loader.worker_init_fn = partial(init.func, *init.args, **keywords)
    loader._iterator = None  # persistent workers would keep their generators
