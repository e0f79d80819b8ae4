"""Data sets that several tests share."""

import pytest

from stratified3d.simulation import Settings, simulate_dataset


@pytest.fixture(scope='session')
def mini_set(tmp_path_factory):
    """The default scenes at 2 Hz: all keyframes, no sweeps between them."""
    root = tmp_path_factory.mktemp('simulated') / 'mini'
    simulate_dataset(root, Settings(sweeps=1))
    return root


@pytest.fixture(scope='session')
def tiny_set(tmp_path_factory):
    """One training and one validation scene of three keyframes with all their sweeps."""
    root = tmp_path_factory.mktemp('simulated') / 'tiny'
    simulate_dataset(root, Settings(train=1, val=1, keyframes=3), workers=1)
    return root
