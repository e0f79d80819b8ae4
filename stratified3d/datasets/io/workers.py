"""Set-up of the worker processes that convert datasets."""

from __future__ import annotations

import torch

from stratified3d.memory import keep_large_blocks


def limit_worker() -> None:
    """Let a worker process compute with one thread and keep the memory of large arrays."""
    torch.set_num_threads(1)
    keep_large_blocks()
