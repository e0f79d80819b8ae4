"""Page faults and resident memory with and without the hook."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

START = """
import logging
import os
import resource
import sys
from types import SimpleNamespace
import torch
from stratified3d.engine import HostMemoryHook, host_memory
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident(): return 1024 * int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0])
host_memory.is_memory_short = lambda: False  # of the machine that runs this test
hook, runner = HostMemoryHook(interval=4), SimpleNamespace(iter=0, model=torch.nn.Linear(1, 1))
hook.before_train(runner)
torch.ones(1 << 24)  # 64 MiB
before, most, last = faults(), resident(), 0
"""
STEPS = (
    START
    + """
for runner.iter in range(4):
    torch.ones((1 << 24) - (runner.iter + 1) * (1 << 16))
    last = faults() - before
    hook.after_train_iter(runner, runner.iter)
print(last, most - resident())
"""
)
SHORT = (
    START
    + """
runner.logger = logging.getLogger()
hook.after_train_iter(runner, 0)
kept = most - resident()
host_memory.is_memory_short = lambda: True
hook.after_train_iter(runner, 0)
given_back = most - resident()
before = faults()
for runner.iter in range(1, 4):
    torch.ones((1 << 24) - runner.iter * (1 << 16))
    hook.after_train_iter(runner, runner.iter)
print(kept, given_back, faults() - before)
"""
)
FORK = (
    START
    + """
child = os.fork()
if child:
    os.waitpid(child, 0)
print(most - resident(), flush=True)
os._exit(0)
"""
)


def probe(script: str, **variables: str) -> tuple[int, ...]:
    """What a script prints: of STEPS the page faults of four large tensors after a larger one, and
    the bytes given back after the last; of SHORT the bytes given back after a step with enough and
    with little memory, and the faults of three more; of FORK the bytes that a child gave back, and
    its parent."""
    env = {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_')} | variables
    said = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', script],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return tuple(map(int, said.split()))


@pytest.mark.skipif(sys.platform != 'linux', reason="the settings are glibc's")
def test_large_tensors_use_their_memory_again_and_it_is_returned():
    faults, returned = probe(STEPS)
    assert faults < 1000  # 4 x 16,384 pages when they are mapped anew
    assert returned > 60 << 20


@pytest.mark.skipif(sys.platform != 'linux', reason="the settings are glibc's")
def test_nothing_is_kept_where_memory_is_short():
    kept, given_back, faults = probe(SHORT)
    assert kept < 4 << 20 and given_back > 60 << 20
    assert faults > 3000, 'three tensors, all mapped anew'


@pytest.mark.skipif(sys.platform != 'linux', reason="the settings are glibc's")
def test_workers_do_not_hold_what_their_parent_had_freed():
    child, parent = probe(FORK)
    assert child > 60 << 20 and parent < 4 << 20


@pytest.mark.skipif(sys.platform != 'linux', reason="the settings are glibc's")
def test_settings_of_the_environment_win():
    faults, returned = probe(STEPS, MALLOC_MMAP_THRESHOLD_='1048576')
    assert faults > 4000 and returned < 1 << 20
