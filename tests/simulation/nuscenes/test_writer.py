"""The nuScenes format as nuscenes-devkit and mmdet3d read it."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stratified3d.simulation import NuScenesSettings
from stratified3d.simulation.layouts.catalog import build_scene
from stratified3d.simulation.nuscenes.schema import CATEGORIES, TABLES
from stratified3d.simulation.nuscenes.splits import SPLITS, scene_name
from stratified3d.simulation.nuscenes.writer import quaternion, visibility_token
from stratified3d.simulation.scene import count_points

pytestmark = pytest.mark.slow

TINY = NuScenesSettings(train=1, val=1, keyframes=3)


@pytest.fixture(scope='module')
def devkit():
    return pytest.importorskip('nuscenes')


def test_split_names_are_the_devkits(devkit):
    from nuscenes.utils import splits

    assert [scene_name(n) for n in SPLITS['v1.0-mini'][0]] == splits.mini_train
    assert [scene_name(n) for n in SPLITS['v1.0-mini'][1]] == splits.mini_val
    assert sorted(scene_name(n) for n in SPLITS['v1.0-trainval'][0]) == sorted(splits.train)
    assert sorted(scene_name(n) for n in SPLITS['v1.0-trainval'][1]) == sorted(splits.val)


def test_category_names_are_nuscenes(devkit):
    from nuscenes.utils.color_map import get_colormap

    assert set(CATEGORIES) <= set(get_colormap())
    assert len(set(CATEGORIES)) == 23


def test_quaternion_agrees_with_pyquaternion_and_visibility_has_four_bins():
    pyquaternion = pytest.importorskip('pyquaternion')
    for seed in range(20):
        rotation = (
            pyquaternion.Quaternion.random().rotation_matrix if seed else np.diag([-1.0, -1.0, 1.0])
        )
        np.testing.assert_allclose(
            pyquaternion.Quaternion(quaternion(rotation)).rotation_matrix, rotation, atol=1e-9
        )
    assert [visibility_token(share) for share in (0.0, 0.39, 0.4, 0.6, 0.8, 1.0)] == [
        '1',
        '1',
        '2',
        '3',
        '4',
        '4',
    ]


def test_devkit_reads_the_tables_and_sweeps(tiny_set, devkit):
    """What the devkit reads, chains and frames included."""
    from nuscenes import NuScenes
    from nuscenes.utils.data_classes import LidarPointCloud

    nusc = NuScenes('v1.0-mini', str(tiny_set), verbose=False)
    assert sorted(path.stem for path in (tiny_set / 'v1.0-mini').iterdir()) == sorted(TABLES)
    assert [scene['name'] for scene in nusc.scene] == ['scene-0061', 'scene-0103']
    for scene in nusc.scene:
        samples, token = [], scene['first_sample_token']
        while token:
            samples.append(nusc.get('sample', token))
            token = samples[-1]['next']
        assert [s['token'] for s in samples][-1] == scene['last_sample_token']
        assert scene['nbr_samples'] == len(samples) == 3
        assert [b['timestamp'] - a['timestamp'] for a, b in zip(samples, samples[1:])] == [
            500000,
            500000,
        ]
        assert len(samples[0]['data']) == 7
        # sweeps: 20 Hz, each between keyframes belongs to the next one
        sweeps, token = [], samples[0]['data']['LIDAR_TOP']
        while token:
            sweeps.append(nusc.get('sample_data', token))
            token = sweeps[-1]['next']
        assert len(sweeps) == 21
        assert set(np.diff([sweep['timestamp'] for sweep in sweeps])) == {50000}
        assert [i for i, sweep in enumerate(sweeps) if sweep['is_key_frame']] == [0, 10, 20]
        assert [sweep['sample_token'] for sweep in sweeps[1:11]] == [samples[1]['token']] * 10
        for sweep in sweeps:
            sample = LidarPointCloud.from_file(str(tiny_set / sweep['filename']))
            assert sample.points.shape == (4, 34688)
    _, times = LidarPointCloud.from_file_multisweep(
        nusc, samples[2], 'LIDAR_TOP', 'LIDAR_TOP', nsweeps=10
    )
    np.testing.assert_allclose(np.unique(times.round(4)), np.arange(10) * 0.05, atol=1e-4)
    counts = {}
    for annotation in nusc.sample_annotation:
        assert annotation['num_lidar_pts'] >= 0
        assert annotation['visibility_token'] in '1234'
        kind = annotation['category_name'].split('.')
        has = len(annotation['attribute_tokens'])
        wanted = kind[0] == 'vehicle' or (kind[0] == 'human' and kind[-1] != 'stroller')
        assert has == wanted, annotation['category_name']
        counts[annotation['category_name']] = counts.get(annotation['category_name'], 0) + 1
    assert len(counts) >= 10
    # points in the devkit's boxes are those that num_lidar_pts counts
    from nuscenes.utils.geometry_utils import points_in_box

    key = samples[1]['data']['LIDAR_TOP']
    path, boxes, _ = nusc.get_sample_data(key)
    points = np.fromfile(path, np.float32).reshape(-1, 5)[:, :3]
    points = points[np.linalg.norm(points, axis=1) > 1].T
    got = np.array([points_in_box(box, points).sum() for box in boxes])
    stated = np.array([nusc.get('sample_annotation', box.token)['num_lidar_pts'] for box in boxes])
    assert np.abs(got - stated).sum() <= 0.005 * stated.sum()


def test_tables_contain_the_poses_of_the_scene(tiny_set, devkit):
    """Ego pose times calibration is the sensor's pose, up to the scene's place on the map."""
    from nuscenes import NuScenes
    from pyquaternion import Quaternion

    nusc = NuScenes('v1.0-mini', str(tiny_set), verbose=False)
    for (number, layout), scene_row in zip(TINY.scenes(), nusc.scene):
        scene = build_scene(layout, (TINY.seed, number), 1.0)
        token = nusc.get('sample', scene_row['first_sample_token'])['data']['LIDAR_TOP']
        places, index = [], 0
        while token:
            row = nusc.get('sample_data', token)
            ego, mount = (
                nusc.get('ego_pose', row['ego_pose_token']),
                nusc.get('calibrated_sensor', row['calibrated_sensor_token']),
            )
            turn = Quaternion(ego['rotation']).rotation_matrix
            expected = scene.lidar_pose(np.array([0.05 * index]))
            np.testing.assert_allclose(
                turn @ Quaternion(mount['rotation']).rotation_matrix,
                expected.rotation[0],
                atol=1e-9,
            )
            places.append(
                turn @ mount['translation'] + ego['translation'] - expected.translation[0]
            )
            token, index = row['next'], index + 1
        assert index == 21
        assert np.ptp(places, axis=0).max() < 1e-6


@pytest.mark.slow
def test_ground_truth_as_predictions_scores_one(mini_set, devkit, tmp_path):
    from nuscenes import NuScenes
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.constants import DETECTION_NAMES
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.eval.detection.utils import category_to_detection_name

    nusc = NuScenes('v1.0-mini', str(mini_set), verbose=False)
    results = {}
    for sample in nusc.sample:
        if nusc.get('scene', sample['scene_token'])['name'] not in ('scene-0103', 'scene-0916'):
            continue
        results[sample['token']] = rows = []
        for annotation in (nusc.get('sample_annotation', token) for token in sample['anns']):
            name = category_to_detection_name(annotation['category_name'])
            if name and annotation['num_lidar_pts']:
                velocity = np.nan_to_num(nusc.box_velocity(annotation['token'])[:2])
                attribute = [
                    nusc.get('attribute', token)['name'] for token in annotation['attribute_tokens']
                ]
                rows.append(
                    {
                        'sample_token': sample['token'],
                        'translation': annotation['translation'],
                        'size': annotation['size'],
                        'rotation': annotation['rotation'],
                        'velocity': velocity.tolist(),
                        'detection_name': name,
                        'detection_score': 1.0,
                        'attribute_name': attribute[0] if attribute else '',
                    }
                )
    path = tmp_path / 'results.json'
    meta = dict.fromkeys(('use_camera', 'use_radar', 'use_map', 'use_external'), False) | {
        'use_lidar': True
    }
    path.write_text(json.dumps({'meta': meta, 'results': results}))
    scored = DetectionEval(
        nusc,
        config_factory('detection_cvpr_2019'),
        str(path),
        'mini_val',
        str(tmp_path),
        verbose=False,
    )
    summary = scored.main(plot_examples=0, render_curves=False)
    assert set(summary['mean_dist_aps']) == set(DETECTION_NAMES)
    assert summary['mean_ap'] == pytest.approx(1.0, abs=1e-6)
    assert summary['nd_score'] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.slow
def test_mmdet3d_create_data_runs_unchanged(tiny_set, tmp_path):
    """mmdet3d's own converter, as its documentation calls it, makes infos and a database of
    objects."""
    mmdet3d = pytest.importorskip('mmdet3d')
    mim = Path(mmdet3d.__path__[0]) / '.mim'
    (tmp_path / 'data').mkdir()
    shutil.copytree(tiny_set, tmp_path / 'data/nuscenes')
    result = subprocess.run(
        [
            sys.executable,
            str(mim / 'tools/create_data.py'),
            'nuscenes',
            '--root-path',
            './data/nuscenes',
            '--out-dir',
            './data/nuscenes',
            '--extra-tag',
            'nuscenes',
            '--version',
            'v1.0-mini',
        ],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(mim)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    infos = pickle.loads((tmp_path / 'data/nuscenes/nuscenes_infos_val.pkl').read_bytes())
    assert len(infos['data_list']) == 3
    frame = infos['data_list'][2]
    assert len(frame['lidar_sweeps']) == 10
    path = tmp_path / 'data/nuscenes/samples/LIDAR_TOP' / frame['lidar_points']['lidar_path']
    points = np.fromfile(path, np.float32).reshape(-1, 5)[:, :3].astype(float)
    boxes = np.array([instance['bbox_3d'] for instance in frame['instances']])
    stated = np.array([instance['num_lidar_pts'] for instance in frame['instances']])
    counted = count_points(
        points[np.linalg.norm(points, axis=1) > 1], boxes[:, :3], boxes[:, 3:6], boxes[:, 6]
    )
    # the sensor's mount is tilted by up to a degree or two, which mmdet3d's boxes do not know
    assert np.abs(counted - stated).sum() < 0.12 * stated.sum()
    database = pickle.loads((tmp_path / 'data/nuscenes/nuscenes_dbinfos_train.pkl').read_bytes())
    assert len(database) >= 7
