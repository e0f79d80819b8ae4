"""A training killed with SIGKILL and resumed learns what one that was never killed learns."""
import os
import signal
import subprocess
import time

import torch

from stratified3d.checkpoints import load_checkpoint_file


def test_killed_and_resumed_is_as_if_never_killed(command, run, trained, losses, tmp_path):
    truth = losses(trained)
    assert list(truth) == list(range(1, 13)) and len(set(truth.values())) == 12
    killed = subprocess.Popen(command('train.py', tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              start_new_session=True)
    deadline = time.monotonic() + 120
    while len(losses(tmp_path)) < 8 and time.monotonic() < deadline:  # in the middle of the third epoch
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    before = losses(tmp_path)
    assert 8 <= len(before) < 12
    result = run('train.py', tmp_path, '--resume')
    assert result.returncode == 0, result.stderr[-3000:]
    assert 'resumed epoch: ' in result.stdout + result.stderr
    assert losses(tmp_path) == truth  # to the last bit
    ours, theirs = (load_checkpoint_file(str(folder / 'epoch_4.pth'), 'cpu') for folder in (tmp_path, trained))
    for name, value in theirs['state_dict'].items():
        assert torch.equal(ours['state_dict'][name], value), name
