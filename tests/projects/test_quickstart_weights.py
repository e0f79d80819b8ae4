"""The released weights: small enough, whole, and good for something."""

import runpy

import numpy as np
import pytest
from mmengine.config import Config

from stratified3d.apis import detect, init_detector
from stratified3d.checkpoints import load_checkpoint_file
from stratified3d.simulation.physics.scanners import MOUNTINGS

FOLDER = 'projects/quickstart'
CONFIG = f'{FOLDER}/configs/any_sensor.py'
WEIGHTS = f'{FOLDER}/any-sensor.safetensors'
CARD_SCORE = 0.45  # of any-sensor, its model card


def test_released_weights_are_small_and_name_their_classes(root):
    path = root / WEIGHTS
    assert path.stat().st_size <= 12e6
    meta = load_checkpoint_file(str(path))['meta']
    config = Config.fromfile(root / CONFIG)
    assert meta['dataset_meta']['classes'] == list(config.class_names)


@pytest.mark.slow
def test_released_weights_find_objects_of_every_sensor(root):
    """Single sweeps; random weights find next to nothing."""
    tool = runpy.run_path(str(root / FOLDER / 'sim2real.py'))
    frames = [frame for sensor in MOUNTINGS for frame in tool['simulate_frames'](sensor, 1)]
    best = []
    for weights in (root / WEIGHTS, None):
        outcomes = tool['outcomes'](init_detector(root / CONFIG, weights), frames, 5)
        best.append(tool['f1_over_scores'](outcomes)[1].max(initial=0))
    assert best[0] > 0.5 > 5 * best[1]


@pytest.fixture(scope='module')
def any_sensor(root):
    return init_detector(root / CONFIG, root / WEIGHTS)


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
