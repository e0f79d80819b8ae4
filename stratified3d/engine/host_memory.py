"""Memory of training on a CPU: large tensors neither mapped anew in every step nor left in pieces."""
from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from stratified3d.heap import is_memory_short, keep_large_blocks, return_free_pages


@HOOKS.register_module()
class HostMemoryHook(Hook):
    """Keep the pages of large tensors from step to step, and give unused ones back now and then.

    Mapped anew, they are hundreds of thousands of page faults in a training step on a CPU; see `heap`. Kept, they lie
    in pieces that need not fit the next step's tensors, and the process grows beyond what a step needs.

    Args:
        interval: iterations; where the machine's memory is short, free pages go back after each.
    """

    priority = 'VERY_LOW'

    def __init__(self, interval: int = 50):
        self.interval = interval

    def before_train(self, runner: Runner) -> None:
        """Keep large blocks in the heap."""
        keep_large_blocks()

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Return free pages."""
        if self.every_n_train_iters(runner, self.interval) or is_memory_short():
            return_free_pages()
