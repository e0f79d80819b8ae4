"""A training killed with SIGKILL and resumed learns what one that was never killed learns."""

import time

import pytest
import torch

from stratified3d.checkpoints import load_checkpoint_file

pytestmark = pytest.mark.slow


def test_killed_and_resumed_is_as_if_never_killed(start, trained, losses, tmp_path):
    truth = losses(trained)
    assert list(truth) == list(range(1, 13)) and len(set(truth.values())) == 12
    training = start('train.py', tmp_path)
    deadline = time.monotonic() + 500
    while (
        len(losses(tmp_path)) < 8 and time.monotonic() < deadline
    ):  # in the middle of the third epoch
        assert training.process.is_alive()
        time.sleep(0.1)
    training.kill()
    assert training.process.exitcode == -9 and 8 <= len(losses(tmp_path)) < 12
    status, output = start('train.py', tmp_path, '--resume').wait()
    assert status == 0, output[-3000:]
    assert 'resumed epoch: ' in output
    assert losses(tmp_path) == truth  # to the last bit
    ours, theirs = (
        load_checkpoint_file(str(folder / 'epoch_4.pth'), 'cpu') for folder in (tmp_path, trained)
    )
    for name, value in theirs['state_dict'].items():
        assert torch.equal(ours['state_dict'][name], value), name
