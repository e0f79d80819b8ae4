"""Memory of training on a CPU: large tensors neither mapped anew in every step nor left in
pieces."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from stratified3d.heap import keep_large_blocks, map_large_blocks, return_free_pages
from stratified3d.memory_limits import is_memory_short


@HOOKS.register_module()
class HostMemoryHook(Hook):
    """Keep the pages of large tensors from step to step, and give unused ones back now and then.

    Mapped anew, they are hundreds of thousands of page faults in a training step on a CPU; see
    `heap`. Kept, they lie in pieces that need not fit the next step's tensors, and the process
    grows beyond what a step needs. So where the machine's memory, or what a container or a batch
    system allows of it, runs short they are kept no longer.

    Args:
        interval: iterations.
    """

    priority = 'VERY_LOW'

    def __init__(self, interval: int = 50):
        self.interval = interval
        self.keeps = False

    def before_train(self, runner: Runner) -> None:
        """Keep large blocks in the heap."""
        self.keeps = keep_large_blocks()

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Return free pages."""
        if self.keeps and is_memory_short():
            map_large_blocks()
            self.keeps = False
            runner.logger.info(
                'Memory runs short: what a step frees goes back to the system from now on, which takes '
                'some time in each.'
            )
        elif self.every_n_train_iters(runner, self.interval):
            return_free_pages()
