import functools
import os
import pickle

import numpy as np
import pytest
import torch
from mmdet3d.datasets.transforms import ObjectSample
from mmdet3d.structures import LiDARInstance3DBoxes, LiDARPoints
from mmengine.registry import init_default_scope

import stratified3d.plugin  # noqa: F401  (registers the parts of configs)
from stratified3d.datasets.sampling import ground_truth_sampler


@pytest.fixture
def sampler(tmp_path):
    """Settings of a data base with three cars, far apart."""
    infos = []
    for i in range(3):
        np.full((8, 5), 0.1, np.float32).tofile(tmp_path / f'{i}.bin')
        infos.append(
            dict(
                name='car',
                path=f'{i}.bin',
                image_idx=i,
                gt_idx=0,
                num_points_in_gt=8,
                difficulty=0,
                group_id=0,
                box3d_lidar=np.array([10.0 * i + 5, 5, -1, 4, 2, 1.5, 0, 1, 0], np.float32),
            )
        )
    (tmp_path / 'db.pkl').write_bytes(pickle.dumps(dict(car=infos)))
    init_default_scope('mmdet3d')
    return dict(
        data_root=f'{tmp_path}/',
        info_path=str(tmp_path / 'db.pkl'),
        rate=1.0,
        classes=['car'],
        prepare=dict(filter_by_difficulty=[-1], filter_by_min_points=dict(car=5)),
        sample_groups=dict(car=3),
        points_loader=dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=5, use_dim=5),
    )


def frame():
    return dict(
        points=LiDARPoints(torch.zeros(4, 5), points_dim=5),
        gt_bboxes_3d=LiDARInstance3DBoxes(
            torch.tensor([[50.0, 0, 0, 4, 2, 1.5, 0, 0, 0]]), box_dim=9
        ),
        gt_labels_3d=np.array([0]),
    )


def test_objects_are_added_with_their_points(sampler):
    result = ObjectSample(dict(sampler, type='GroundTruthSampler')).transform(frame())
    assert (
        len(result['gt_bboxes_3d']) == len(result['gt_labels_3d']) == 3
    )  # one was there, two were missing
    assert len(result['points']) == 4 + 2 * 8
    assert not hasattr(np, 'long') or int(np.__version__.split('.')[0]) >= 2


@pytest.mark.parametrize('kind', ['GroundTruthSampler', 'DataBaseSampler'])
def test_a_database_that_would_run_code_is_refused(sampler, tmp_path, kind):
    """mmdet3d's own sampler too."""
    marker = tmp_path / 'harmed'
    with open(sampler['info_path'], 'wb') as file:
        pickle.dump(dict(car=[functools.partial(os.mkdir, str(marker))]), file)
    with pytest.raises(ValueError, match='db.pkl: .*functools.partial.*create_data.py'):
        ObjectSample(dict(sampler, type=kind))
    assert not marker.exists()


@pytest.mark.skipif(hasattr(np, 'long'), reason='numpy 2 has np.long again')
def test_sampler_of_mmdet3d_fails(sampler):
    """What is replaced: if this fails, mmdet3d has fixed it and the class is no longer
    needed."""
    with pytest.raises(AttributeError, match='long'):
        ObjectSample(sampler).transform(frame())


def test_classes_without_an_object_are_left_out(sampler, monkeypatch):
    """None in the database (bus), none with enough points (truck)."""
    path = sampler['info_path']
    with open(path, 'rb') as file:
        database = pickle.load(file)
    database['truck'] = [dict(database['car'][0], name='truck', num_points_in_gt=2)]
    with open(path, 'wb') as file:
        pickle.dump(database, file)
    names = ['car', 'truck', 'bus']
    settings = dict(
        sampler,
        classes=names,
        sample_groups=dict.fromkeys(names, 3),
        type='GroundTruthSampler',
        prepare=dict(filter_by_difficulty=[-1], filter_by_min_points=dict.fromkeys(names, 5)),
    )
    warnings = []
    monkeypatch.setattr(ground_truth_sampler, 'print_log', lambda text, *_: warnings.append(text))
    transform = ObjectSample(settings)
    assert len(warnings) == 1 and 'db.pkl: nothing to sample of truck, bus' in warnings[0]
    for _ in range(3):
        labels = transform.transform(frame())['gt_labels_3d']
        assert len(labels) > 1 and not labels.any()
    with pytest.raises(KeyError, match='bus'):  # what is replaced
        ObjectSample(dict(settings, type='DataBaseSampler'))


def test_a_missing_database_says_what_makes_it(sampler, tmp_path):
    settings = dict(sampler, type='GroundTruthSampler', info_path=str(tmp_path / 'none.pkl'))
    with pytest.raises(
        FileNotFoundError,
        match=f'no ground-truth database .*none.pkl: `python tools/create_data.py {tmp_path}',
    ):
        ObjectSample(settings)


def test_turned_objects_keep_their_points_and_what_the_sensor_saw(sampler):
    angles = set()
    for seed in range(5):
        transform = ObjectSample(dict(sampler, type='GroundTruthSampler', turned=True))
        np.random.seed(seed)
        result = transform.transform(frame())
        boxes = result['gt_bboxes_3d'].tensor[1:].numpy()
        assert len(boxes) == 2
        points = (
            result['points'].tensor[:-4].numpy().reshape(2, 8, 5)
        )  # those of the frame are last
        for box, cut in zip(boxes, points):
            # all yaws were 0, all velocities (1, 0), all points at (0.1, 0.1) from the center
            angle = box[6]
            cos, sin = np.cos(angle), np.sin(angle)
            np.testing.assert_allclose(box[7:9], [cos, sin], atol=1e-6)
            offset = 0.1 * np.array([cos - sin, sin + cos])
            np.testing.assert_allclose(cut[:, :2], np.tile(box[:2] + offset, (8, 1)), atol=1e-5)
            before = ground_truth_sampler.turn_vectors(box[:2], -angle)
            assert before[1] == pytest.approx(5, abs=1e-4)
            assert np.abs(before[0] - np.array([5, 15, 25])).min() < 1e-4
        assert len(set(boxes[:, 6].round(4))) == 1, 'one angle for all objects of a frame'
        angles.add(round(float(boxes[0, 6]), 3))
    assert len(angles) == 5


def test_turned_objects_overlap_no_box(sampler):
    for seed in range(20):
        transform = ObjectSample(dict(sampler, type='GroundTruthSampler', turned=True))
        np.random.seed(seed)
        crowded = frame()
        angle = np.random.RandomState(seed).uniform(-np.pi, np.pi)  # what the sampler will draw
        spot = ground_truth_sampler.turn_vectors(np.array([15.5, 5.5], np.float32), angle)
        crowded['gt_bboxes_3d'].tensor[0, :2] = torch.from_numpy(spot)
        crowded['gt_bboxes_3d'].tensor[0, 6] = angle
        boxes = transform.transform(crowded)['gt_bboxes_3d'].tensor[1:, :2].numpy()
        assert np.linalg.norm(boxes - spot, axis=1).min() > 5
