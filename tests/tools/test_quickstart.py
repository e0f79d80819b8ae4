"""The whole job on a tiny set: simulate, prepare, train and test through mmdet3d's own scripts,
draw."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


STEPS = ['simulate', 'prepare', 'train', 'test', 'draw']


def quickstart_command(root, folder, *arguments):
    return [
        sys.executable,
        '-W',
        'ignore',
        str(root / 'tools/quickstart.py'),
        '--data',
        str(folder / 'data'),
        '--out',
        str(folder / 'out'),
        '--scenes',
        '1+1',
        '--keyframes',
        '3',
        *arguments,
    ]


def quickstart(root, folder, *arguments):
    command = quickstart_command(root, folder, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


def interrupt_in(step, process, seconds):
    """Press Ctrl-C some seconds after a step began; the status and all that was printed."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.strip() == f'== {step}':
            break
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    return process.returncode, ''.join(lines) + rest


OPTIONS = [
    '--cfg-options',
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=9',
    'param_scheduler.0.total_steps=1',
    'train_dataloader.batch_size=1',
]


@pytest.fixture(scope='module')
def done(root, tmp_path_factory, start_group, check_group_is_gone):
    """A quickstart that was interrupted once in every step, and then finished.

    Its folders have a space in their names.
    """
    folder = tmp_path_factory.mktemp('quickstart') / 'my data'
    folder.mkdir()
    for step in STEPS:
        seconds = 1.0 if step in ('simulate', 'draw') else 4.0
        process = start_group(quickstart_command(root, folder, *OPTIONS))
        status, output = interrupt_in(step, process, seconds)
        _check_interruption(step, status, output)
        check_group_is_gone(process.pid)
    result = quickstart(root, folder, *OPTIONS)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder, result


def _check_interruption(step, status, output):
    """One line and status 130."""
    assert f'== {step}: done' not in output, 'the step ended before it was interrupted'
    assert status == 130, f'{step}: {output[-3000:]}'
    assert 'Traceback' not in output, f'{step}: {output[-3000:]}'
    assert output.count('interrupted') == 1
    assert output.endswith('\nquickstart.py: interrupted; rerun the same command to resume\n')


def test_summary_and_table(done):
    folder, result = done
    summary = json.loads((folder / 'out/summary.json').read_text())
    assert summary.keys() == {'mAP', 'NDS', 'AP', 'car_errors', 'seconds', 'pictures'}
    assert 0 <= summary['car_errors']['axis_err'] <= 1.6
    assert len(summary['AP']) == 10 and 0 <= summary['mAP'] <= 1 and 0 <= summary['NDS'] <= 1
    assert list(summary['seconds']) == STEPS
    assert sum('/bev/' in picture for picture in summary['pictures']) == 3
    assert all(Path(picture).stat().st_size > 10000 for picture in summary['pictures'])
    assert (
        f'mAP                         {summary["mAP"]:.3f}' in result.stdout
        and 'AP traffic_cone' in result.stdout
    )


def test_finished_steps_are_not_done_again(root, done):
    folder, _ = done
    before = (folder / 'out/epoch_1.pth').stat().st_mtime_ns
    result = quickstart(root, folder, *OPTIONS)
    assert result.returncode == 0 and result.stdout.count('done before') == 5
    assert (folder / 'out/epoch_1.pth').stat().st_mtime_ns == before


def test_a_finished_step_whose_result_is_gone_is_done_again(root, done):
    folder, _ = done
    scores = folder / 'out/results/pred_instances_3d/metrics_summary.json'
    scores.unlink()
    result = quickstart(root, folder, *OPTIONS)
    assert result.returncode == 0 and result.stdout.count('done before') == 3
    assert f'== test again: {scores} is gone' in result.stdout and scores.is_file()


def test_results_of_other_settings_are_not_taken_for_these(root, done):
    result = quickstart(root, done[0], '--seed', '7')
    assert result.returncode != 0 and 'take --fresh or another --out' in result.stderr


def test_fresh_deletes_nothing_of_others(root, tmp_path):
    for name in ('data', 'out'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'thesis.txt').write_text('mine')
        result = quickstart(root, tmp_path, '--fresh')
        assert result.returncode != 0 and '--fresh does not delete' in result.stderr
        assert (tmp_path / name / 'thesis.txt').read_text() == 'mine'
        (tmp_path / name / 'thesis.txt').unlink()


def test_training_resumes(root, done):
    """mmengine's checkpoint, optimizer and message hub come back through the restricted loader."""
    folder, _ = done
    command = [
        sys.executable,
        '-W',
        'ignore',
        str(root / 'tools/train.py'),
        str(root / 'projects/quickstart/configs/quickstart.py'),
        '--work-dir',
        str(folder / 'out'),
        '--resume',
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=9',
    ]
    environment = os.environ | dict(NUSCENES_ROOT=str(folder / 'data'))
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert 'resumed epoch: 1, iter: 3' in result.stdout + result.stderr


def test_a_failing_step_says_which(root, tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/notes.txt').write_text('mine')
    result = quickstart(root, tmp_path)
    assert result.returncode != 0
    assert 'simulate.py' in result.stderr and 'resume with this step' in result.stderr
    assert (tmp_path / 'data/notes.txt').read_text() == 'mine'


@pytest.mark.parametrize(
    'script',
    [
        'train.py',
        'test.py',
        'simulate.py',
        'create_data.py',
        'visualize.py',
        'overfit_frame.py',
        'quickstart.py',
        'benchmark.py',
        'fuzz.py',
        'ablate.py',
        'export_weights.py',
    ],
)
def test_every_tool_explains_itself(root, script, tool_process, tmp_path):
    words = [str(root / 'tools' / script), '--help']
    status, output = tool_process(words, tmp_path / 'help.txt').wait()
    assert status == 0 and 'usage:' in output
    assert script in ('train.py', 'test.py') or 'examples:' in output
