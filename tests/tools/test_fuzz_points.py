"""tools/fuzz.py points, and what it must notice."""

import os
import random
import re
import runpy
import sys
import time

import numpy as np
import pytest

from benchmarks import mutations
from benchmarks.mutations import mutate, read_mutations
from benchmarks.point_samples import WRITERS, available_samples


@pytest.mark.parametrize('name', WRITERS)
def test_damaged_files_give_points_or_an_error(tmp_path, name):
    if name not in available_samples():
        pytest.skip('needs laspy and lazrs')
    outcome = read_mutations(tmp_path, name, range(60), seed=3)
    assert outcome.failure == ''
    assert outcome.refused > 10 and outcome.read + outcome.refused == 60


def die(path):
    sys.exit(3)


def hang(path):
    time.sleep(60)


def take_memory(path):
    np.ones(10**6)
    return np.zeros((1, 4), np.float32)


def raise_other(path):
    raise IndexError('an index')


def read_wrong(path):
    return np.zeros((1, 3), np.float32)


@pytest.mark.parametrize(
    'read, failure',
    [
        (hang, 'no answer'),
        (take_memory, 'bytes of memory'),
        (raise_other, 'IndexError'),
        (die, 'SystemExit'),
        (read_wrong, r'\(1, 3\)'),
    ],
)
def test_other_outcomes_are_failures(tmp_path, monkeypatch, read, failure):
    if read is hang:
        monkeypatch.setattr(mutations, 'PATIENCE', 5.0)
    outcome = read_mutations(tmp_path, 'array.npy', range(5, 9), seed=0, read=read)
    assert outcome.last == 5
    assert re.search(failure, outcome.failure)


def test_a_crash_is_a_failure(tmp_path):
    outcome = read_mutations(
        tmp_path, 'array.npy', range(3), seed=0, read=lambda path: os.kill(os.getpid(), 9)
    )
    assert 'status -9' in outcome.failure


def test_mutations_depend_on_the_seed_alone():
    content = bytes(range(256)) * 4 + b'POINTS 2000'
    damaged = [mutate(content, random.Random(seed)) for seed in range(200)]
    assert damaged == [mutate(content, random.Random(seed)) for seed in range(200)]
    assert content not in damaged[:20] and len(set(damaged)) > 190


@pytest.fixture
def fuzz(root, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['fuzz.py', 'points', *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(root / 'tools/fuzz.py'), run_name='__main__')
        return end.value.code, capsys.readouterr().out

    return run


def test_the_command_counts_and_repeats(fuzz, tmp_path, monkeypatch):
    names = ('little.ply', 'plain.txt')
    arguments = ('--only', *names, '--mutations', 20, '--folder', tmp_path / 'damaged')
    status, out = fuzz(*arguments)
    assert status == 0 and [line.split()[0] for line in out.splitlines()] == list(names)
    assert sorted(path.name for path in (tmp_path / 'damaged').iterdir()) == list(names)

    monkeypatch.setattr(mutations, '_FREE_BYTES', -(10**9))
    status, out = fuzz('--only', 'array.npy', '--seed', 4, '--start', 7, '--mutations', 3)
    assert status == 1 and '--only array.npy --seed 4 --start' in out
