"""The whole job on a tiny set: simulate, prepare, train and test through mmdet3d's own scripts,
draw."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def quickstart(root, folder, *arguments):
    command = [
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
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


OPTIONS = [
    '--cfg-options',
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=9',
    'param_scheduler.0.total_steps=1',
    'train_dataloader.batch_size=1',
]


@pytest.fixture(scope='module')
def done(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp('quickstart')
    result = quickstart(root, folder, *OPTIONS)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder, result


def test_summary_and_table(done):
    folder, result = done
    summary = json.loads((folder / 'out/summary.json').read_text())
    assert summary.keys() == {'mAP', 'NDS', 'AP', 'seconds', 'pictures'}
    assert len(summary['AP']) == 10 and 0 <= summary['mAP'] <= 1 and 0 <= summary['NDS'] <= 1
    assert list(summary['seconds']) == ['simulate', 'prepare', 'train', 'test', 'draw']
    assert sum('/bev/' in picture for picture in summary['pictures']) == 3
    assert all(Path(picture).stat().st_size > 10000 for picture in summary['pictures'])
    assert (
        f'mAP                     {summary["mAP"]:.3f}' in result.stdout
        and 'AP traffic_cone' in result.stdout
    )


def test_finished_steps_are_not_done_again(root, done):
    folder, _ = done
    before = (folder / 'out/epoch_1.pth').stat().st_mtime_ns
    result = quickstart(root, folder, *OPTIONS)
    assert result.returncode == 0 and result.stdout.count('done before') == 5
    assert (folder / 'out/epoch_1.pth').stat().st_mtime_ns == before


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
def test_every_tool_explains_itself(root, script):
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', str(root / 'tools' / script), '--help'],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0 and 'usage:' in result.stdout
    assert script in ('train.py', 'test.py') or 'examples:' in result.stdout
