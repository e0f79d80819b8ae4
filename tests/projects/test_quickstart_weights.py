"""The released weights: small enough, whole, and good for something."""

import runpy

import numpy as np
import pytest
from mmengine.config import Config

from stratified3d.apis import detect, init_detector
from stratified3d.checkpoints import load_checkpoint_file
from stratified3d.simulation.physics.scanners import MOUNTINGS

FOLDER = 'projects/quickstart'
WEIGHTS = {  # file: its config
    'quickstart.safetensors': 'pretrained.py',
    'quickstart-long.safetensors': 'pretrained.py',
    'any-sensor.safetensors': 'any_sensor.py',
}
CARD_SCORE = 0.38  # of any-sensor, its model card


def load(root, weights, checkpoint=True):
    folder = root / FOLDER
    config = folder / 'configs' / WEIGHTS[weights]
    return init_detector(config, folder / weights if checkpoint else None)


@pytest.mark.parametrize('weights', WEIGHTS)
def test_released_weights_are_small_and_name_their_classes(weights, root):
    path = root / FOLDER / weights
    assert path.stat().st_size <= 12e6
    meta = load_checkpoint_file(str(path))['meta']
    config = Config.fromfile(root / FOLDER / 'configs' / WEIGHTS[weights])
    assert meta['dataset_meta']['classes'] == list(config.class_names)


@pytest.mark.slow
def test_released_weights_find_objects_of_every_sensor(root):
    """Single sweeps; random weights find next to nothing."""
    tool = runpy.run_path(str(root / FOLDER / 'sim2real.py'))
    frames = [frame for sensor in MOUNTINGS for frame in tool['simulate_frames'](sensor, 1)]
    found = []
    for weights, trained in (
        *((name, True) for name in WEIGHTS),
        ('any-sensor.safetensors', False),
    ):
        outcomes = tool['outcomes'](load(root, weights, trained), frames, 5)
        found.append(tool['f1_over_scores'](outcomes)[1].max(initial=0))
    assert min(found[:3]) > 0.3 > 3 * found[3]


@pytest.fixture(scope='module')
def any_sensor(root):
    return load(root, 'any-sensor.safetensors')


@pytest.mark.filterwarnings('ignore::UserWarning')  # of frames that look like no sensor's
@pytest.mark.parametrize('height', [-2.4, -1.84, -1.5])
@pytest.mark.parametrize('count', [0, 1, 10, 100, 1000, 20000])
def test_no_objects_on_bare_ground(any_sensor, count, height):
    rng = np.random.default_rng(count)
    points = np.column_stack(
        [
            rng.uniform(-50, 50, (count, 2)),
            height + rng.normal(0, 0.02, count),
            rng.uniform(0, 60, count),
        ]
    )
    found = detect(any_sensor, points.astype(np.float32))
    assert found.scores.max(initial=0) < CARD_SCORE


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
