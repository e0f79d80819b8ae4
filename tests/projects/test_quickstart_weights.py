"""The released weights: small enough, whole, and good for something."""

import runpy

import pytest
from mmengine.config import Config

from stratified3d.apis import init_detector
from stratified3d.checkpoints import load_checkpoint_file

WEIGHTS = [
    'projects/quickstart/quickstart.safetensors',
    'projects/quickstart/quickstart-long.safetensors',
]
CONFIG = 'projects/quickstart/configs/pretrained.py'


@pytest.mark.parametrize('weights', WEIGHTS)
def test_released_weights_are_small_and_name_their_classes(weights, root):
    assert (root / weights).stat().st_size <= 12e6
    meta = load_checkpoint_file(str(root / weights))['meta']
    assert meta['dataset_meta']['classes'] == list(Config.fromfile(root / CONFIG).class_names)


@pytest.mark.slow
def test_released_weights_find_objects_in_an_unseen_street(root, prepared_set):
    """Single sweeps; random weights find next to nothing."""
    tool = runpy.run_path(str(root / 'projects/quickstart/sim2real.py'))
    info, found = prepared_set / 'nuscenes_infos_val.pkl', []
    for weights in (*(root / path for path in WEIGHTS), None):
        frames = list(tool['outcomes'](init_detector(root / CONFIG, weights), info, 5))
        found.append(tool['f1_over_scores'](frames)[1].max(initial=0))
    assert min(found[:2]) > 0.3 > 3 * found[2]


def test_the_long_training_is_the_short_one_with_more_epochs_and_other_weights(root):
    short, long = (
        Config.fromfile(root / f'projects/quickstart/configs/{name}.py').to_dict()
        for name in ('pretrain', 'pretrain-long')
    )
    changed = {key for key in short if short[key] != long[key]}
    assert changed == {'model', 'epochs', 'param_scheduler', 'train_cfg'}
    (schedule,) = long['param_scheduler']
    assert (
        schedule == dict(short['param_scheduler'][0], total_steps=8)
        and long['train_cfg']['max_epochs'] == 8
    )
    head = short['model']['head']
    assert long['model'] == dict(
        short['model'], head=dict(head, code_weights=long['model']['head']['code_weights'])
    )
