import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from stratified3d import ops
from stratified3d.doctor import __main__ as doctor
from stratified3d.doctor import checks, convolutions, detector, functions, gpu

# a worker whose checks behave badly in every way
WORKER = """
import os
import sys
import time
from pathlib import Path

from stratified3d.doctor.checks import Check, SkippedCheck, run_in_process


def skip(device):
    raise SkippedCheck('not here')


def fail(device):
    assert device == 'cuda', 'wrong by 0.5'


def raise_error(device):
    [][1]


def break_device(device):
    raise RuntimeError('CUDA error: an illegal memory access was encountered')


def crash(device):
    print('out of luck', flush=True)
    os.abort()


def hang(device):
    time.sleep(600)


def succeed(device):
    return f'right, process {os.getpid()}'


functions = dict(
    skip=skip, fail=fail, raise_error=raise_error, break_device=break_device, crash=crash,
    hang=hang,
)
path, *names = sys.argv[2:]
run = [Check('', name, functions.get(name, succeed)) for name in names]
sys.exit(run_in_process(run, 'cpu', Path(path)))
"""


def run_checks(names, tmp_path, limit=60.0):
    """Results by name of checks of `WORKER`, whose groups are what follows a name's slash."""
    script = tmp_path / 'worker.py'
    script.write_text(textwrap.dedent(WORKER))
    listed = [checks.Check(group, name, str) for name, group in names]
    found = checks.run_apart(listed, [sys.executable, str(script)], limit)
    return {result.check: result for result in found}


def test_checks_that_fail_do_not_stop_the_next(tmp_path):
    names = ['first', 'skip', 'fail', 'raise_error', 'break_device', 'crash', 'last']
    results = run_checks([(name, 'all') for name in names], tmp_path)
    assert list(results) == names
    assert {name: result.outcome for name, result in results.items()} == dict(
        first='passed',
        skip='skipped',
        fail='failed',
        raise_error='failed',
        break_device='failed',
        crash='crashed',
        last='passed',
    )
    assert results['skip'].detail == 'not here' and results['fail'].detail == 'wrong by 0.5'
    assert results['raise_error'].detail.startswith('IndexError')
    assert 'signal 6' in results['crash'].detail and 'out of luck' in results['crash'].detail
    # after an error of the device the next check has a process of its own
    assert results['first'].detail != results['last'].detail
    assert [result.is_good for result in results.values()] == [True] * 2 + [False] * 4 + [True]


@pytest.mark.slow
def test_check_that_hangs_is_stopped_and_the_next_runs(tmp_path):
    results = run_checks([('hang', 'a'), ('after', 'a'), ('beside', 'b')], tmp_path, limit=20.0)
    outcomes = {name: result.outcome for name, result in results.items()}
    assert outcomes == dict(hang='timed out', after='passed', beside='passed')
    assert list(results)[0] == 'beside'  # another group does not wait


def test_detector_check_does_not_depend_on_the_random_numbers_of_a_device(monkeypatch):
    seeds = iter([1, 2])

    def with_other_numbers(*args):
        torch.manual_seed(next(seeds))
        return right(*args)

    right = detector._make_batch
    monkeypatch.setattr(detector, '_make_batch', with_other_numbers)
    assert 'tensors' in detector.check_losses('cpu')


def test_worker_ends_with_its_parent(tmp_path):
    (tmp_path / 'worker.py').write_text(WORKER)
    code = (
        'import os, subprocess, sys, time\n'
        f'child = subprocess.Popen([sys.executable, {str(tmp_path / "worker.py")!r}, "--worker", '
        f'{str(tmp_path / "out")!r}, "hang"])\n'
        f'while not os.path.exists({str(tmp_path / "out")!r}): time.sleep(0.1)\n'
        'print(child.pid)\n'
    )
    parent = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    child = Path(f'/proc/{int(parent.stdout)}')
    deadline = time.monotonic() + 60
    while child.exists() and 'Z' not in (child / 'stat').read_text().split()[2]:
        assert time.monotonic() < deadline, 'the worker runs on'
        time.sleep(0.2)


def test_summary_names_all_that_is_wrong():
    results = [
        checks.Result('a', 'passed', 'fine', 1.0),
        checks.Result('b', 'crashed', 'killed by signal 6', 2.0),
        checks.Result('c', 'passed', 'fine', 1.0),
    ]
    first, second = gpu.summary_lines(results)
    assert first == '3 checks: 2 passed, 1 crashed'
    assert second == 'CRASHED b: killed by signal 6'


def test_gpu_checks_without_a_gpu_end_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert doctor.main(['--gpu']) == 1
    assert 'there is no CUDA device' in capsys.readouterr().out


def test_options_of_the_gpu_checks_need_them(capsys):
    with pytest.raises(SystemExit):
        doctor.main(['--ops-only'])
    assert 'belong to --gpu' in capsys.readouterr().err


def test_names_of_checks_differ():
    names = [check.name for check in gpu.list_checks(ops_only=False)]
    assert len(set(names)) == len(names)
    assert {check.name for check in gpu.list_checks(ops_only=True)} < set(names)


@pytest.mark.slow
def test_gpu_checks_run_on_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    path = tmp_path / 'results.json'
    command = ['--gpu', '--device', 'cpu', '--json', str(path), '--only']
    assert doctor.main([*command, 'float32: one_voxel']) == 0
    assert doctor.main([*command, 'sparse convolution']) == 0
    record = json.loads(path.read_text())
    assert [result['outcome'] for result in record['results']] == ['passed'] * 3
    assert record['machine']['torch'] == torch.__version__
    assert doctor.main([*command, 'nothing']) == 1
    assert "no check has 'nothing'" in capsys.readouterr().out


@pytest.mark.slow
def test_gpu_checks_of_operators_need_torch_triton_and_numpy_alone(run_without, tmp_path):
    others = ('numba', 'tqdm', 'psutil', 'scipy', 'matplotlib')
    result = run_without(
        others,
        *('-m', 'stratified3d.doctor', '--gpu', '--ops-only', '--device', 'cpu'),
        *('--only', 'float32: one_voxel'),
        TRITON_INTERPRET='1',
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert '1 checks: 1 passed' in result.stdout


@pytest.mark.slow
def test_detector_checks_pass_where_both_sides_are_the_same():
    assert 'tensors' in detector.check_losses('cpu')
    assert 'boxes' in detector.check_predictions('cpu')
    for dtype in (torch.float16, torch.bfloat16):
        assert 'tensors' in detector.check_half_losses('cpu', dtype)


def test_function_checks_pass_where_both_sides_are_the_same():
    for check in gpu.list_checks(ops_only=True):
        if check.group == 'functions':
            assert check.run('cpu')


@pytest.mark.parametrize(
    'name, check, message',
    [
        ('segment_softmax', functions.check_segments, 'output of function 3'),
        ('pool_strata', functions.check_pooling, 'output of function 0'),
        ('plan_windows', functions.check_planning, 'differs'),
        ('circle_nms', functions.check_nms, 'circle NMS'),
    ],
)
def test_function_checks_notice_another_result(monkeypatch, name, check, message):
    right = getattr(ops, name)
    changed = iter([True, False])  # the device is asked first

    def wrong_once(*args, **settings):
        result = right(*args, **settings)
        if not next(changed):
            return result
        if isinstance(result, torch.Tensor):
            return result.flip(0)
        first, *others = result
        return [first.flip(0), *others]

    monkeypatch.setattr(ops, name, wrong_once)
    with pytest.raises(AssertionError, match=message):
        check('cpu')


def test_detector_check_notices_a_wrong_gradient(monkeypatch):
    right = dict(loss=torch.tensor(1.0), weight=torch.tensor([2.0, 1.0]))
    swapped = dict(right, weight=right['weight'].flip(0))  # of the same norm
    for found in (right, swapped):
        answers = iter([found, right])
        monkeypatch.setattr(detector, '_losses_and_gradients', lambda *args, it=answers: next(it))
        if found is right:
            assert '2 tensors' in detector.check_losses('cpu')
            continue
        with pytest.raises(AssertionError, match='1 of 2 differ: weight'):
            detector.check_losses('cpu')


@pytest.mark.slow
def test_convolution_check_notices_swapped_rows(monkeypatch):
    right = convolutions._run

    def swapped(coords, feats, device, dtype):
        results = right(coords, feats, device, dtype)
        if dtype == torch.bfloat16:
            results['inverse'] = results['inverse'].flip(0)
        return results

    monkeypatch.setattr(convolutions, '_run', swapped)
    assert 'largest error' in convolutions.check_convolutions('cpu', torch.float32)
    with pytest.raises(AssertionError, match='inverse'):
        convolutions.check_convolutions('cpu', torch.bfloat16)


@pytest.mark.slow
def test_doctor_reports_versions_backends_and_right_results():
    result = subprocess.run(
        [sys.executable, '-m', 'stratified3d.doctor'], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for part in (
        'mmdet3d          1.4.0',
        'cpu     float32   numba',
        'reference: runs too, slower',
        'all imports work',
    ):
        assert part in result.stdout


@pytest.mark.slow
def test_doctor_finds_wrong_results(monkeypatch, capsys):
    from stratified3d.ops.stratified_attention import cpu

    right = cpu.stratified_attention
    monkeypatch.setattr(cpu, 'stratified_attention', lambda *a: right(*a) * 1.01)
    assert doctor.main([]) == 1
    assert 'FAILED cpu: attention differs' in capsys.readouterr().out
