import json
import math
import pickle

import pytest
from nuscenes import NuScenes
from pyquaternion import Quaternion

from stratified3d.evaluation.heading import axis_errors


@pytest.fixture
def write_results(prepared_set, tmp_path):
    """Write a submission whose boxes are the annotations turned by an angle, by class."""
    frames = pickle.loads((prepared_set / 'nuscenes_infos_val.pkl').read_bytes())['data_list']
    nusc = NuScenes('v1.0-mini', str(prepared_set), verbose=False)
    names = {'vehicle.car': 'car', 'human.pedestrian.adult': 'pedestrian'}

    def write(angles):
        results = {}
        for frame in frames:
            boxes = []
            for token in nusc.get('sample', frame['token'])['anns']:
                annotation = nusc.get('sample_annotation', token)
                name = names.get(annotation['category_name'])
                if name not in angles:
                    continue
                turn = Quaternion(axis=(0, 0, 1), angle=angles[name])
                boxes.append(
                    dict(
                        sample_token=frame['token'],
                        translation=annotation['translation'],
                        size=annotation['size'],
                        rotation=list(turn * Quaternion(annotation['rotation'])),
                        velocity=[0.0, 0.0],
                        detection_name=name,
                        detection_score=0.5,
                        attribute_name='',
                    )
                )
            results[frame['token']] = boxes
        path = tmp_path / 'results_nusc.json'
        meta = dict.fromkeys(('use_camera', 'use_lidar', 'use_radar', 'use_map'), False)
        path.write_text(json.dumps(dict(meta=meta, results=results)))
        return path

    return write


def test_boxes_that_face_backwards_have_no_axis_error(prepared_set, write_results):
    path = write_results(dict(car=math.pi, pedestrian=0.3))
    errors = axis_errors(prepared_set, 'v1.0-mini', path)
    assert errors['car'] == pytest.approx(0, abs=1e-6)
    assert errors['pedestrian'] == pytest.approx(0.3, abs=1e-6)
    assert errors['bus'] == 1.0, 'nothing of it was found'


def test_error_is_at_most_a_quarter_turn(prepared_set, write_results):
    path = write_results(dict(car=math.pi - 0.2))
    assert axis_errors(prepared_set, 'v1.0-mini', path)['car'] == pytest.approx(0.2, abs=1e-6)


def test_results_without_boxes_are_refused(prepared_set, write_results):
    with pytest.raises(ValueError, match='no boxes'):
        axis_errors(prepared_set, 'v1.0-mini', write_results({}))
