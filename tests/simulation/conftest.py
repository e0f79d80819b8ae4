"""Datasets that several tests share."""

import pytest

from stratified3d.simulation import NuScenesSettings, simulate_dataset


@pytest.fixture(scope='session')
def mini_set(tmp_path_factory):
    """The default scenes at 2 Hz: all keyframes, no sweeps between them."""
    root = tmp_path_factory.mktemp('simulated') / 'mini'
    simulate_dataset(root, NuScenesSettings(sweeps=1))
    return root
