"""The memory of large tensors, kept from step to step of a training on a CPU."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from stratified3d.memory import (
    is_memory_short,
    keep_large_blocks,
    map_large_blocks,
    return_free_pages,
)


@HOOKS.register_module()
class HostMemoryHook(Hook):
    """Keep the memory of large tensors from step to step, and give unused pages back regularly.

    If it is mapped anew, a training step on a CPU takes hundreds of thousands of page faults; see
    `stratified3d.memory`. If it is kept, it is fragmented and need not fit the tensors of the next
    step, so that the process grows beyond what a step needs. Nothing is kept once memory runs short
    on the machine, or in a container or batch job.

    Args:
        interval: iterations between two returns of unused pages.
    """

    priority = 'VERY_LOW'

    def __init__(self, interval: int = 50):
        self.interval = interval
        self.keeps = False

    def before_train(self, runner: Runner) -> None:
        """Keep large blocks in the heap, unless tensors are on a GPU."""
        is_on_cpu = next(runner.model.parameters()).device.type == 'cpu'
        self.keeps = is_on_cpu and keep_large_blocks()

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Return free pages."""
        if self.keeps and is_memory_short():
            map_large_blocks()
            self.keeps = False
            runner.logger.info(
                'Memory runs short: from now on freed memory goes back to the system at once, '
                'which makes steps slower.'
            )
        elif self.every_n_train_iters(runner, self.interval):
            return_free_pages()
