"""The GPU check on a CPU: without mmdet3d and spconv, with failures, and over its time limit."""

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks import gpu_check, gpu_detector
from stratified3d.doctor import kernels as verification

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_gpu_check_runs_without_mmdet3d(run_without, tmp_path):
    out = tmp_path / 'out'
    result = run_without(
        (),
        *('-m', 'benchmarks.gpu_check', out, 'env', 'verify', 'time'),
        SMALL='1',
        TRITON_INTERPRET='1',
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    checks = json.loads((out / 'verify-float32.json').read_text())
    assert len(checks) == 2 * 6 and all(check['correct'] for check in checks)
    summary = json.loads((out / 'summary.json').read_text())
    assert {job: entry['status'] for job, entry in summary.items()} == {
        'env': 0,
        'verify-float32': 0,
        'time': 0,
    }


@pytest.mark.slow
@pytest.mark.parametrize('module', ['methods', 'ops', 'scaling', 'roofline', 'kernels'])
def test_attention_benchmarks_import_without_mmdet3d(run_without, module):
    result = run_without((), '-c', f'import benchmarks.attention.{module}')
    assert result.returncode == 0, result.stderr[-2000:]


def test_blocks_import_with_the_placeholder_of_spconv(run_without):
    code = (
        'import sys\n'
        'from benchmarks.gpu_check_plugin import is_installed, make_placeholder\n'
        'assert not is_installed("spconv")\n'
        'sys.modules.update(make_placeholder())\n'
        'from stratified3d.layers.sparse_conv import SparseConv\n'
        'import stratified3d.layers.block\n'
        'SparseConv(4, 4, 3, key="a")\n'
    )
    result = run_without((), '-c', code)
    assert 'convolutions need spconv' in result.stderr


def test_verification_records_what_raises(monkeypatch, tmp_path):
    monkeypatch.setenv('SMALL', '1')
    errors = iter([RuntimeError('out of memory'), None])

    def verify(device, backend, cases, dtypes):
        error = next(errors)
        if error:
            raise error
        return [dict(case=cases[0], correct=True, error=0.0)]

    monkeypatch.setattr(verification, 'verify', verify)
    assert not gpu_check.verify_dtype(tmp_path, 'float32')
    first, second = json.loads((tmp_path / 'verify-float32.json').read_text())
    assert first['error'] == 'RuntimeError: out of memory' and not first['correct']
    assert second['correct']


def test_process_over_its_limit_is_killed(tmp_path):
    (tmp_path / 'slow.log').write_text('begins\n')
    process = subprocess.Popen(
        [sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True
    )
    job = gpu_check.Job('slow', process, time.perf_counter(), limit=0.2)
    results = gpu_check.finish([job], tmp_path)
    assert results['slow']['status'] == 'killed after 0.2 s' and process.poll() is not None


def test_unknown_step_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, 'argv', ['gpu_check', str(tmp_path), 'rivals'])
    with pytest.raises(SystemExit):
        gpu_check.main()
    assert "'rivals'; there are env, " in capsys.readouterr().err


def test_plugin_records_each_test(root, tmp_path):
    (tmp_path / 'test_both.py').write_text(
        'def test_good():\n    pass\n\n\ndef test_bad():\n    assert 1 == 2\n'
    )
    record = tmp_path / 'record.json'
    plugin = ('-p', 'benchmarks.gpu_check_plugin', '--record', str(record))
    command = [sys.executable, '-m', 'pytest', '-q', *plugin, str(tmp_path)]
    subprocess.run(
        command, cwd=root, capture_output=True, timeout=200, env=dict(os.environ, PYTHONPATH='.')
    )
    tests = {test['test'].split('::')[-1]: test for test in json.loads(record.read_text())}
    assert tests['test_good']['outcome'] == 'passed'
    assert tests['test_bad']['outcome'] == 'failed' and '1 == 2' in tests['test_bad']['message']


@pytest.mark.parametrize('step', gpu_detector.DETECTOR_LIMITS)
def test_steps_of_the_detector_run_commands_that_exist(root, step, tmp_path):
    for is_small in (False, True):
        for command in gpu_detector.detector_commands(step, tmp_path, is_small).values():
            words = ' '.join(command).split()
            tools = [word for word in words if word.startswith('tools/')]
            assert tools or 'stratified3d.doctor' in words
            assert all((root / tool).is_file() for tool in tools)


def test_steps_of_the_detector_are_not_the_default(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(gpu_check, 'run_steps', lambda steps, out: ran.append(steps) or [])
    for arguments in ([], ['train', 'verify']):
        monkeypatch.setattr(sys, 'argv', ['gpu_check', str(tmp_path), *arguments])
        assert gpu_check.main() == 0
    assert ran == [list(gpu_check.STEPS), ['verify', 'train']]
