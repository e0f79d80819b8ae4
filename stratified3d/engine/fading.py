"""Training without pasted objects in the last epochs."""

from __future__ import annotations

from mmdet3d.datasets.transforms import ObjectSample
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner

from stratified3d.engine.seeding import derive_seed, pipelines, restart_workers, samplers


@HOOKS.register_module()
class FadeObjectSampleHook(Hook):
    """Switch ground-truth sampling off in the last epochs ("fade", Wang et al. 2021,
    PointAugmenting).

    mmdet3d's DisableObjectSampleHook acts at the start of a single epoch: a run that is resumed
    later samples again, and a dataset in two wrappers is not reached. If a loop counts iterations
    (IterBasedTrainLoop), an epoch is a pass over the loader, also an incomplete last one.

    Args:
        epochs: number of epochs at the end.
    """

    # before EpochSeedHook
    priority = 'ABOVE_NORMAL'

    def __init__(self, epochs: int = 4):
        self.epochs = epochs

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the samplers of the epoch that is about to begin.

        Raises:
            ValueError: the data have no end, so that workers would never be updated.
        """
        loop = runner.train_loop
        loader = runner.train_dataloader
        if not isinstance(loop, IterBasedTrainLoop):
            self._begin(runner, runner.epoch, runner.max_epochs)
            return
        if any(isinstance(sampler, InfiniteSampler) for sampler in samplers(loader)):
            raise ValueError(
                'FadeObjectSampleHook acts between two passes over the data, and InfiniteSampler '
                'has no passes: use DefaultSampler, or take the hook out of custom_hooks'
            )
        self._begin_pass(runner, runner.iter)
        # its workers were started before this hook and have drawn from their generators
        loader._iterator = None
        loop.dataloader_iterator = type(loop.dataloader_iterator)(loader)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Where iterations are counted, set the samplers of the pass that is about to begin."""
        done = runner.iter + 1
        counts_iterations = isinstance(runner.train_loop, IterBasedTrainLoop)
        if counts_iterations and done % len(runner.train_dataloader) == 0:
            self._begin_pass(runner, done)

    def _begin_pass(self, runner: Runner, done: int) -> None:
        size = len(runner.train_dataloader)
        self._begin(runner, done // size, -(-runner.max_iters // size))

    def _begin(self, runner: Runner, epoch: int, epochs: int) -> None:
        """Switch the samplers for an epoch of so many."""
        loader = runner.train_dataloader
        disabled = epoch >= epochs - self.epochs
        transforms = [
            transform
            for pipeline in pipelines(loader.dataset)
            for transform in pipeline.transforms
            if isinstance(transform, ObjectSample)
        ]
        if any(transform.disabled != disabled for transform in transforms):
            runner.logger.info(
                f'ground-truth sampling {"off" if disabled else "on"} from epoch {epoch + 1}'
            )
            # persistent workers would keep their copies
            restart_workers(loader, derive_seed(runner.seed, epoch))
        for transform in transforms:
            transform.disabled = disabled
