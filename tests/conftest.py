"""Fixtures shared by the whole suite."""
import json
import os
from pathlib import Path

import pytest

from stratified3d.simulation import Settings, simulate_dataset


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


@pytest.fixture(scope='session')
def tiny_set(tmp_path_factory):
    """One training and one validation scene of three keyframes with all their sweeps."""
    root = tmp_path_factory.mktemp('simulated') / 'tiny'
    simulate_dataset(root, Settings(train=1, val=1, keyframes=3), workers=1)
    return root


@pytest.fixture(scope='session')
def prepared_set(tiny_set, tmp_path_factory):
    """The tiny set with its info files and its ground-truth database, apart from it so that the simulator's tests
    find it as it was."""
    root = tmp_path_factory.mktemp('prepared')
    for part in tiny_set.iterdir():
        (root / part.name).symlink_to(part)
    from stratified3d.datasets.ground_truth_database import create_database
    from stratified3d.datasets.nuscenes_infos import create_infos
    create_infos(root, 'v1.0-mini')
    create_database(root)
    return root


def _released_as(source, root, version, scenes, annotated=True):
    """Give a set's scenes other names under another version."""
    for part in ('samples', 'sweeps', 'maps'):
        (root / part).symlink_to(source / part)
    (root / version).mkdir()
    for path in (source / 'v1.0-mini').glob('*.json'):
        rows = json.loads(path.read_bytes())
        if path.stem in ('sample_annotation', 'instance') and not annotated:
            rows = []
        if path.stem == 'scene':
            rows = [dict(row, name=name) for row, name in zip(rows, scenes)]
        (root / version / path.name).write_text(json.dumps(rows))
    return root


@pytest.fixture(scope='session')
def unannotated_set(tiny_set, tmp_path_factory):
    """The tiny set's two scenes as nuScenes publishes its test split, v1.0-test: without annotations."""
    from nuscenes.utils.splits import test

    return _released_as(tiny_set, tmp_path_factory.mktemp('unannotated'), 'v1.0-test', test, annotated=False)


@pytest.fixture(scope='session')
def trainval_set(tiny_set, tmp_path_factory):
    """The tiny set's two scenes as v1.0-trainval."""
    from nuscenes.utils.splits import train, val

    return _released_as(tiny_set, tmp_path_factory.mktemp('trainval'), 'v1.0-trainval', [train[0], val[0]])
