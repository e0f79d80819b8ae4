"""Ranks of a launcher, which share the work on a dataset."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

# SLURM_NTASKS is also there in a batch script that no srun started, which is alone
_RANKS = {'pytorch': ('RANK', 'WORLD_SIZE'), 'slurm': ('SLURM_PROCID', 'SLURM_STEP_NUM_TASKS')}


@dataclass(frozen=True)
class Rank:
    """Rank of this process among those that a launcher started.

    Attributes:
        index: 0 to size - 1.
        size: how many processes there are.
        launcher: 'pytorch' (torchrun), 'slurm' or 'none'.
    """

    index: int = 0
    size: int = 1
    launcher: str = 'none'

    def share(self, items: Sequence) -> list:
        """This process's part of items that all processes know."""
        return list(items[self.index :: self.size])

    def wait(self) -> None:
        """Wait for all processes under torchrun, which would kill them all with the first that ends
        in error. Under Slurm this does nothing: processes there need not know an address of one
        another."""
        if self.launcher == 'pytorch' and self.size > 1:
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group('gloo', timeout=datetime.timedelta(days=30))
            torch.distributed.barrier()


def find_rank(launcher: str = 'auto') -> Rank:
    """This process's rank, from what torchrun or Slurm's srun put into the environment.

    Args:
        launcher: 'pytorch', 'slurm', 'none', or 'auto': the first of these whose variables are
            set.
    Raises:
        ValueError: the variables of the launcher are missing or contradict each other.
    """
    names = dict(auto=list(_RANKS), none=[]).get(launcher, [launcher])
    for name in names:
        index_variable, size_variable = _RANKS[name]
        index = os.environ.get(index_variable)
        size = os.environ.get(size_variable)
        if index is None or size is None:
            if launcher == name:
                raise ValueError(
                    f'launcher {name}: {index_variable} and {size_variable} are not both set in '
                    'the environment'
                )
            continue
        if not (index.isdigit() and size.isdigit() and int(index) < int(size)):
            raise ValueError(
                f'{index_variable}={index} and {size_variable}={size}: expected whole numbers, '
                'the first below the second'
            )
        return Rank(int(index), int(size), name)
    return Rank()
