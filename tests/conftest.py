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


@pytest.fixture(scope='session')
def small_detector(root, prepared_set, tmp_path_factory):
    """A folder with config.py, the quickstart at a size of a few thousand parameters, and model.pth, random weights;
    one epoch, no worker processes, and no score: results are dumped."""
    import torch
    from mmengine.config import Config

    from stratified3d.apis import init_detector
    folder = tmp_path_factory.mktemp('small_detector')
    config = Config.fromfile(root / 'projects/quickstart/configs/quickstart.py')
    model = dict(encoder=dict(channels=16, num_strata=8), voxel_encoder=dict(hidden_channels=8, out_channels=16),
                 backbone=dict(channels=(16, 16), out_channels=16), head=dict(shared_channels=16))
    config.merge_from_dict(dict(model=model, param_scheduler=[dict(
        type='OneCycleLR', eta_max=1e-3, total_steps=1, convert_to_iter_based=True)]))
    config.train_cfg.update(max_epochs=1, val_interval=1)
    config.default_hooks.logger.interval = 1
    for name in ('train', 'val', 'test'):
        loader = config[f'{name}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = f'{prepared_set}/'
        if name != 'train':
            config[f'{name}_evaluator'] = dict(type='DumpResults', out_file_path=str(folder / 'results.pkl'))
    config.dump(folder / 'config.py')
    torch.manual_seed(0)
    torch.save(dict(state_dict=init_detector(config, device='cpu').state_dict()), folder / 'model.pth')
    return folder
