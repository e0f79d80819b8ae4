"""Processes that share work on a dataset: workers on one machine, ranks of a launcher on
several."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from typing import NamedTuple

import torch

# SLURM_NTASKS is also there in a batch script that no srun started, which is alone
_RANKS = {'pytorch': ('RANK', 'WORLD_SIZE'), 'slurm': ('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS')}


class Rank(NamedTuple):
    """Which of how many processes this one is, and who started them: 'pytorch' (torchrun), 'slurm'
    or 'none'."""

    index: int = 0
    size: int = 1
    launcher: str = 'none'

    def share(self, items: Sequence) -> list:
        """This process's part of items that all of them know."""
        return list(items[self.index :: self.size])

    def wait(self) -> None:
        """Until all processes are here, under torchrun, which would end them all with the first
        that ends in error. Under Slurm each goes its own way: processes there need not know an
        address of one another."""
        if self.launcher == 'pytorch' and self.size > 1:
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group('gloo', timeout=datetime.timedelta(days=30))
            torch.distributed.barrier()


def find_rank(launcher: str = 'auto') -> Rank:
    """This process's rank, from what torchrun or Slurm's srun put into the environment.

    Args:
        launcher: 'pytorch', 'slurm', 'none', or 'auto': the first of these whose variables are
        there.
    Raises:
        ValueError: the variables of the launcher are missing or contradict each other.
    """
    names = dict(auto=list(_RANKS), none=[]).get(launcher, [launcher])
    for name in names:
        index, size = (os.environ.get(variable) for variable in _RANKS[name])
        if index is None or size is None:
            if launcher == name:
                raise ValueError(
                    f'launcher {name}: {" and ".join(_RANKS[name])} are not both set in the environment'
                )
            continue
        if not (index.isdigit() and size.isdigit() and int(index) < int(size)):
            raise ValueError(f'{_RANKS[name][0]}={index} and {_RANKS[name][1]}={size} name no rank')
        return Rank(int(index), int(size), name)
    return Rank()
