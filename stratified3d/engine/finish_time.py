"""When training will be done, said once after its first steps."""

from __future__ import annotations

import time

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class FinishTimeHook(Hook):
    """Log how long training will take and when it ends, as soon as its pace is known.

    Args:
        warmup: steps that are not timed: the first ones compile and allocate.
        steps: that are timed.
    """

    def __init__(self, warmup: int = 3, steps: int = 10):
        self.warmup = warmup
        self.steps = steps
        self._first = 0
        self._begin = 0.0

    def before_train(self, runner: Runner) -> None:
        """Begin to count."""
        self._first = runner.iter + self.warmup

    def after_train_iter(self, runner: Runner, batch_idx: int, *args, **kwargs) -> None:
        """Time the steps, and log the end once."""
        done = runner.iter + 1 - self._first
        if done == 0:
            self._begin = time.monotonic()
        elif done == self.steps:
            pace = (time.monotonic() - self._begin) / self.steps
            left = pace * (runner.max_iters - runner.iter - 1)
            runner.logger.info(describe_end(pace, left, time.time() + left))


def describe_end(pace: float, left: float, end: float) -> str:
    """Return the message about seconds per step, seconds left and the time of the end."""
    minutes = max(1, round(left / 60))
    duration = f'{minutes // 60} h {minutes % 60} min' if minutes >= 60 else f'{minutes} min'
    now = time.localtime(end - left)
    then = time.localtime(end)
    clock = '%H:%M' if now.tm_yday == then.tm_yday else '%H:%M on %d %B'
    return (
        f'training will be done in about {duration}, at {time.strftime(clock, then)} '
        f'({pace:.2f} s per step; evaluations not counted)'
    )
