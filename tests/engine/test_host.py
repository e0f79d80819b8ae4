"""What tools/train.py and tools/test.py set before torch is imported."""
import os
import subprocess
import sys

import pytest

PROBE = """
import resource
from stratified3d.host import tune_process
tune_process()
import os, torch
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(1 << 24)  # 64 MiB
before = faults()
for i in range(1, 5): torch.ones((1 << 24) - i * (1 << 16))
print(faults() - before, os.environ['OMP_WAIT_POLICY'])
"""


def probe(**variables: str) -> tuple[int, str]:
    """Page faults of four large tensors after a larger one, and the policy for waiting threads."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(('MALLOC_', 'OMP_WAIT'))} | variables
    faults, policy = subprocess.run([sys.executable, '-c', PROBE], env=env, capture_output=True, text=True,
                                    check=True).stdout.split()
    return int(faults), policy


@pytest.mark.skipif(sys.platform != 'linux', reason='the memory settings are glibc\'s')
def test_large_tensors_use_their_memory_again():
    assert probe()[0] < 1000  # 4 x 16,384 pages when they are mapped anew


def test_settings_of_the_environment_win():
    faults, policy = probe(MALLOC_MMAP_THRESHOLD_='1048576', OMP_WAIT_POLICY='ACTIVE')
    assert policy == 'ACTIVE'
    if sys.platform == 'linux':
        assert faults > 4000
