"""mmdet3d's `--launcher pytorch` without a GPU."""

import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return probe.getsockname()[1]


def test_two_processes_train_and_validate(command, losses, tmp_path, use_data, tiny_config):
    """Started as docs/nuscenes.md says."""
    tool = command(
        'train.py',
        tmp_path,
        '--launcher',
        'pytorch',
        options=[
            'train_cfg.max_epochs=1',
            'train_cfg.val_interval=1',
            'model.head.sync_avg_factor=True',
        ],
    )
    launcher = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--nproc_per_node',
        '2',
        '--master_port',
        str(free_port()),
    ]
    with use_data(tiny_config.parent):
        result = subprocess.run([*launcher, *tool], capture_output=True, text=True)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-5000:]
    assert list(losses(tmp_path)) == [1, 2]  # three frames, two processes
    assert (tmp_path / 'epoch_1.pth').is_file() and 'NuScenes metric' in output
