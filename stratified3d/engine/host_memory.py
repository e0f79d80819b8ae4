"""Memory of training on a CPU: large tensors neither mapped anew in every step nor left in pieces."""
from __future__ import annotations

import ctypes
import os
import sys

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

# of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@HOOKS.register_module()
class HostMemoryHook(Hook):
    """Keep the pages of large tensors from step to step, and give unused ones back now and then.

    glibc maps every large block anew and the kernel fills it with zeros page by page, hundreds of thousands of page
    faults in a training step on a CPU. Here blocks stay in the heap; what its fragments hold is returned every
    `interval` iterations. Does nothing under other C libraries or allocators, or where the environment has settings of
    its own (MALLOC_*).

    Args:
        interval: iterations.
    """

    priority = 'VERY_LOW'

    def __init__(self, interval: int = 50):
        self.interval = interval
        library = ctypes.CDLL(None) if sys.platform == 'linux' else None
        is_free = hasattr(library, 'mallopt') and not any(name.startswith('MALLOC_') for name in os.environ)
        self._library = library if is_free else None

    def before_train(self, runner: Runner) -> None:
        """Keep large blocks in the heap."""
        if self._library is not None:
            self._library.mallopt(_M_MMAP_MAX, 0)
            self._library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Return free pages."""
        if self._library is not None and self.every_n_train_iters(runner, self.interval):
            self._library.malloc_trim(0)
