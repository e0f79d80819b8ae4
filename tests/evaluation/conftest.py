import json
import pickle

import pytest
from nuscenes import NuScenes
from pyquaternion import Quaternion

NAMES = {'vehicle.car': 'car', 'human.pedestrian.adult': 'pedestrian'}


@pytest.fixture
def write_results(prepared_set, tmp_path):
    """Write a submission of the annotations whose class has an angle, turned by it.

    `detected(annotation)` says which of them are found.
    """
    frames = pickle.loads((prepared_set / 'nuscenes_infos_val.pkl').read_bytes())['data_list']
    nusc = NuScenes('v1.0-mini', str(prepared_set), verbose=False)

    def write(angles, detected=lambda annotation: True):
        results = {}
        for frame in frames:
            annotations = [
                nusc.get('sample_annotation', token)
                for token in nusc.get('sample', frame['token'])['anns']
            ]
            results[frame['token']] = [
                make_box(annotation, angles)
                for annotation in annotations
                if NAMES.get(annotation['category_name']) in angles and detected(annotation)
            ]
        path = tmp_path / 'results_nusc.json'
        meta = dict.fromkeys(('use_camera', 'use_lidar', 'use_radar', 'use_map'), False)
        path.write_text(json.dumps(dict(meta=meta, results=results)))
        return path

    return write


def make_box(annotation, angles):
    name = NAMES[annotation['category_name']]
    turn = Quaternion(axis=(0, 0, 1), angle=angles[name])
    return dict(
        sample_token=annotation['sample_token'],
        translation=annotation['translation'],
        size=annotation['size'],
        rotation=list(turn * Quaternion(annotation['rotation'])),
        velocity=[0.0, 0.0],
        detection_name=name,
        detection_score=0.5,
        attribute_name='',
    )
