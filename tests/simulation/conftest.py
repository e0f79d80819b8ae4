"""Datasets that several tests share."""

import pytest

from stratified3d.simulation import NuScenesSettings, simulate_dataset
from stratified3d.simulation.layouts.catalog import build_scene


@pytest.fixture(scope='session')
def mini_set(tmp_path_factory):
    """The default scenes at 2 Hz: all keyframes, no sweeps between them."""
    root = tmp_path_factory.mktemp('simulated') / 'mini'
    simulate_dataset(root, NuScenesSettings(sweeps=1))
    return root


@pytest.fixture(scope='session')
def turning_scene():
    """A scene in whose middle, after three seconds, the car turns."""
    return build_scene('turning', (3, 5), 6.0)
