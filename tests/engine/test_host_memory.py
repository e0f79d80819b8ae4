"""Page faults and resident memory with and without the hook."""
import os
import subprocess
import sys

import pytest

PROBE = """
import resource
import sys
from types import SimpleNamespace
import torch
from stratified3d.engine import HostMemoryHook
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident(): return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()
hook, runner = HostMemoryHook(interval=4), SimpleNamespace(iter=0)
hook.before_train(runner)
torch.ones(1 << 24)  # 64 MiB
before, most, last = faults(), resident(), 0
for runner.iter in range(4):
    torch.ones((1 << 24) - (runner.iter + 1) * (1 << 16))
    last = faults() - before
    hook.after_train_iter(runner, runner.iter)
print(last, most - resident())
"""


def probe(**variables: str) -> tuple[int, int]:
    """Page faults of four large tensors after a larger one, and the bytes given back after the last."""
    env = {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_')} | variables
    faults, returned = subprocess.run([sys.executable, '-c', PROBE], env=env, capture_output=True, text=True,
                                      check=True).stdout.split()
    return int(faults), int(returned)


@pytest.mark.skipif(sys.platform != 'linux', reason='the settings are glibc\'s')
def test_large_tensors_use_their_memory_again_and_it_is_returned():
    faults, returned = probe()
    assert faults < 1000  # 4 x 16,384 pages when they are mapped anew
    assert returned > 60 << 20


@pytest.mark.skipif(sys.platform != 'linux', reason='the settings are glibc\'s')
def test_settings_of_the_environment_win():
    faults, returned = probe(MALLOC_MMAP_THRESHOLD_='1048576')
    assert faults > 4000 and returned < 1 << 20
