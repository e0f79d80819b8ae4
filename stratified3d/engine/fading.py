"""Training ends on data as they are, without pasted objects."""
from __future__ import annotations

from mmdet3d.datasets.transforms import ObjectSample
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from stratified3d.engine.seeding import pipelines


@HOOKS.register_module()
class FadeObjectSampleHook(Hook):
    """Switch ground-truth sampling off in the last epochs ("fade", Wang et al. 2021, PointAugmenting).

    mmdet3d's DisableObjectSampleHook acts at the start of a single epoch: a run that is resumed later samples again,
    and a data set in two wrappers is not reached.

    Args:
        epochs: how many, at the end.
    """

    # before EpochSeedHook
    priority = 'ABOVE_NORMAL'

    def __init__(self, epochs: int = 4):
        self.epochs = epochs

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the samplers of the epoch that is about to begin."""
        loader = runner.train_dataloader
        disabled = runner.epoch >= runner.max_epochs - self.epochs
        transforms = [transform for pipeline in pipelines(loader.dataset) for transform in pipeline.transforms
                      if isinstance(transform, ObjectSample)]
        if any(transform.disabled != disabled for transform in transforms):
            runner.logger.info(f'ground-truth sampling {"off" if disabled else "on"} from epoch {runner.epoch + 1}')
            loader._iterator = None  # persistent workers would go on with their copies
        for transform in transforms:
            transform.disabled = disabled
