"""What a worker process is like."""

import resource
import sys

import numpy as np
import pytest
import torch

from stratified3d.datasets.waymo.processes import worker_pool


def make_arrays() -> tuple[int, int]:
    """Threads of torch, and page faults of large arrays after the first."""
    np.ones(1 << 23)  # 64 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for i in range(4):
        np.ones((1 << 23) - (i + 1) * (1 << 15))
    return torch.get_num_threads(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != 'linux', reason="the settings are glibc's")
def test_workers_have_one_thread_and_use_their_memory_again():
    with worker_pool(1) as pool:
        threads, faults = pool.submit(make_arrays).result()
    assert threads == 1
    assert faults < 1000  # 4 x 16,384 pages when they are mapped anew
