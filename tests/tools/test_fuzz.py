import re
import runpy
import sys

import pytest

from stratified3d.ops.stratified_attention import sdpa

pytestmark = pytest.mark.slow


@pytest.fixture
def fuzz(root, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['fuzz.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(root / 'tools/fuzz.py'), run_name='__main__')
        return end.value.code, capsys.readouterr().out

    return run


@pytest.mark.slow
def test_fuzz_agrees_on_a_few_batches(fuzz):
    status, out = fuzz('--count', 30, '--seed', 1)
    assert status == 0
    samples = int(
        re.fullmatch(r'(\d+) samples in 30 batches agree \(seed 1, from 0\)\n', out).group(1)
    )
    assert 30 < samples < 120


@pytest.mark.slow
def test_fuzz_takes_the_numba_kernels(fuzz, monkeypatch):
    from stratified3d.ops.stratified_attention.cpu import launch

    right = launch.attend
    monkeypatch.setattr(launch, 'attend', lambda *arguments: right(*arguments) * 1.01)
    status, out = fuzz('--count', 40, '--seed', 1)
    assert status == 1 and 'dtype: torch.float32' in out


def test_damaged_info_files_are_refused_or_read(fuzz):
    status, out = fuzz('infos', '--count', 50, '--seed', 1)
    assert status == 0 and out.startswith('50 damaged files')


@pytest.mark.slow
def test_fuzz_reports_a_wrong_backend_and_replays_it(fuzz, monkeypatch):
    right = sdpa.read_strata

    def wrong(q, *arguments):
        out = right(q, *arguments)
        return out + 1e-4 * (len(q) > 100)

    monkeypatch.setattr(sdpa, 'read_strata', wrong)
    status, out = fuzz('--count', 40, '--seed', 2, '--backend', 'sdpa')
    assert status == 1 and 'differs by' in out and "'fusion': 'gated'" in out
    again = next(
        line for line in out.splitlines() if line.startswith('FAILED') and '--seed 2' in line
    )
    arguments = again.split('fuzz.py ')[1].split()
    assert fuzz(*arguments)[0] == 1
    monkeypatch.undo()
    monkeypatch.setattr(sys, 'argv', [])
    status, out = fuzz(*arguments)
    assert status == 0 and 'agrees' in out
