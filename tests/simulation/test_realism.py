"""The simulated world must not be easier than the real one: a mini set against a real keyframe.

`real_keyframe.json` contains statistics derived from one keyframe (histograms, no points). With
$STRATIFIED3D_REAL_DATA set to a folder with nuscenes_keyframe/ (the .pcd.bin and mmdet3d's v2 info
.pkl) they come from the frame itself.
"""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from stratified3d.simulation.realism import (
    box_statistics,
    compare,
    ground_slope,
    point_statistics,
    read_dataset,
    summarize,
)

STORED = Path(__file__).with_name('real_keyframe.json')
CLASSES = (
    'car',
    'truck',
    'bus',
    'trailer',
    'construction_vehicle',
    'pedestrian',
    'motorcycle',
    'bicycle',
    'traffic_cone',
    'barrier',
)


def read_real(folder: Path) -> dict:
    """Statistics of the keyframe itself."""
    points = np.fromfile(next(folder.glob('*.pcd.bin')), np.float32).reshape(-1, 5)
    info = pickle.loads(next(folder.glob('*.pkl')).read_bytes())
    names = {label: name for name, label in info['metainfo']['categories'].items()}
    boxes = info['data_list'][0]['instances']
    table = box_statistics(
        [names.get(box['bbox_label'], 'other') for box in boxes],
        np.array([np.hypot(*box['bbox_3d'][:2]) for box in boxes]),
        np.array([box['num_lidar_pts'] for box in boxes]),
    )
    return summarize({**point_statistics(points), 'boxes': table, 'keyframes': 1})


@pytest.fixture(scope='module')
def real():
    folder = os.environ.get('STRATIFIED3D_REAL_DATA')
    return (
        read_real(Path(folder) / 'nuscenes_keyframe') if folder else json.loads(STORED.read_text())
    )


@pytest.fixture(scope='module')
def simulated(mini_set):
    return read_dataset(mini_set)


@pytest.mark.skipif('STRATIFIED3D_REAL_DATA' not in os.environ, reason='needs the real keyframe')
def test_stored_statistics_are_those_of_the_frame(real):
    stored = json.loads(STORED.read_text())
    assert stored['rings'] == real['rings']
    assert stored['ranges'] == real['ranges']
    assert stored['boxes'] == real['boxes']
    assert stored['slope'] == pytest.approx(real['slope'], abs=1e-3)


@pytest.mark.parametrize('degrees', [0.0, 1.7, 5.0])
def test_ground_slope_ignores_walls(degrees):
    rng = np.random.default_rng(0)
    ground, wall = rng.uniform(-38, 38, (2, 20000, 2))
    climb = np.tan(np.radians(degrees)) * (ground @ [0.6, 0.8])
    ground = np.c_[ground, climb - 5 + rng.normal(0, 0.02, len(ground))]
    wall = np.c_[
        wall[:, :1], 20 + wall[:, 1:] / 10, rng.uniform(-4, 2, len(wall))
    ]  # 7 m deep, where no ground is seen
    ground = ground[np.abs(ground[:, 1] - 20) > 4]
    assert ground_slope(np.r_[ground, wall]) == pytest.approx(degrees, abs=0.15)


def test_ground_slope_of_a_frame_without_ground_is_nan():
    along_a_line = np.c_[
        np.repeat(np.linspace(-30, 30, 200), 20), np.zeros((4000, 1)), -np.ones((4000, 1))
    ]
    for points in (np.zeros((0, 3)), along_a_line):
        assert np.isnan(ground_slope(points))


@pytest.mark.slow
def test_points_per_ring_and_range_resemble_the_real_frame(simulated, real):
    for key in ('rings', 'ranges'):
        ratio = np.array(simulated[key]) / np.array(real[key])
        assert ratio.min() >= 0.5, f'{key}: {ratio.round(2)}'
        assert ratio.max() <= 2.0, f'{key}: {ratio.round(2)}'
    assert 0.7 <= simulated['missing'] / real['missing'] <= 1.3


@pytest.mark.slow
def test_intensity_quantiles_resemble_the_real_frame(simulated, real):
    ratio = np.array(simulated['intensity']) / np.array(real['intensity'])
    assert (ratio > 0.6).all(), ratio
    assert (ratio < 1.6).all(), ratio


@pytest.mark.slow
def test_keyframes_have_many_boxes_with_few_points(simulated):
    assert simulated['all_boxes'] >= 40
    assert simulated['few'] / simulated['all_boxes'] >= 0.4


@pytest.mark.slow
def test_distant_boxes_are_as_thin_as_real_ones(simulated, real):
    """Beyond 40 m hardly a box has more than 20 points, and most have at most 5."""
    ours, theirs = (
        sum(np.array(table)[2] for table in each['boxes'].values()) for each in (simulated, real)
    )
    assert ours[3] / ours.sum() < 0.05
    assert ours[:2].sum() / ours.sum() > 0.7 < theirs[:2].sum() / theirs.sum()


def boxes_by_class(root, scenes, points):
    """Annotated boxes of at least `points` points per detection class in some scenes."""
    from stratified3d.simulation.nuscenes.schema import DETECTION_NAMES

    rows = {
        name: json.loads((root / 'v1.0-mini' / f'{name}.json').read_text())
        for name in ('scene', 'sample', 'sample_annotation', 'instance', 'category')
    }
    category = {row['token']: row['name'] for row in rows['category']}
    name = {
        row['token']: DETECTION_NAMES.get(category[row['category_token']])
        for row in rows['instance']
    }
    chosen = {row['token'] for row in rows['scene'] if row['name'] in scenes}
    samples = {row['token'] for row in rows['sample'] if row['scene_token'] in chosen}
    found = [
        name[row['instance_token']]
        for row in rows['sample_annotation']
        if row['sample_token'] in samples and row['num_lidar_pts'] >= points
    ]
    return {each: found.count(each) for each in CLASSES}


@pytest.mark.slow
def test_every_class_has_boxes_in_both_splits(mini_set):
    val = boxes_by_class(mini_set, ('scene-0103', 'scene-0916'), 1)
    assert min(val.values()) >= 30, val
    train = boxes_by_class(
        mini_set,
        (
            'scene-0061',
            'scene-0553',
            'scene-0655',
            'scene-0757',
            'scene-0796',
            'scene-1077',
            'scene-1094',
            'scene-1100',
        ),
        5,
    )
    assert min(train.values()) >= 30, train


@pytest.mark.slow
def test_other_categories_are_annotated_too(mini_set):
    rows = {
        name: json.loads((mini_set / 'v1.0-mini' / f'{name}.json').read_text())
        for name in ('instance', 'category')
    }
    category = {row['token']: row['name'] for row in rows['category']}
    found = {category[row['category_token']] for row in rows['instance']}
    assert {
        'movable_object.debris',
        'movable_object.pushable_pullable',
        'static_object.bicycle_rack',
        'animal',
        'human.pedestrian.stroller',
    } <= found


@pytest.mark.slow
def test_comparison_table_has_every_line(simulated, real):
    table = compare(simulated, real)
    assert table.count('\n') > 50
    assert 'nan' not in table
