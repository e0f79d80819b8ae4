"""Fixtures shared by the whole suite."""
import os
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def root() -> Path:
    """The repository."""
    return Path(__file__).parents[1]


@pytest.fixture(scope='session')
def real_data() -> Path:
    """Folder of licensed sample frames that cannot be shipped: named by STRATIFIED3D_REAL_DATA."""
    folder = os.environ.get('STRATIFIED3D_REAL_DATA')
    if not folder:
        pytest.skip('STRATIFIED3D_REAL_DATA is unset: it names a folder with nuscenes_keyframe/ and others')
    return Path(folder)
