import functools
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from mmdet3d.datasets import NuScenesDataset
from mmdet3d.evaluation import NuScenesMetric
from mmdet3d.structures import LiDARInstance3DBoxes

from stratified3d.datasets.nuscenes.infos import create_infos
from stratified3d.evaluation.nuscenes_metric import NuScenesDevkitMetric

CLASSES = [
    'car',
    'truck',
    'construction_vehicle',
    'bus',
    'trailer',
    'barrier',
    'motorcycle',
    'bicycle',
    'pedestrian',
    'traffic_cone',
]
# the version that mmdet3d's dataset always states
META = dict(classes=CLASSES, version='v1.0-trainval')


@pytest.fixture(scope='module')
def frames(prepared_set):
    return pickle.loads((prepared_set / 'nuscenes_infos_val.pkl').read_bytes())['data_list']


def results(frames, boxes=None):
    """What a model hands over: per frame [K, 9] boxes and labels, none by default."""
    for i, frame in enumerate(frames):
        tensor, labels = boxes(frame) if boxes else (torch.zeros(0, 9), [])
        found = dict(
            bboxes_3d=LiDARInstance3DBoxes(tensor, box_dim=9),
            scores_3d=torch.ones(len(tensor)),
            labels_3d=torch.tensor(labels, dtype=torch.long),
        )
        yield dict(
            sample_idx=i,
            lidar_path=f'somewhere/{frame["lidar_points"]["lidar_path"]}',
            pred_instances_3d=found,
            pred_instances={},
        )


def ground_truth(frame):
    known = [i for i in frame['instances'] if i['bbox_label_3d'] >= 0 and i['num_lidar_pts']]
    boxes = torch.tensor([[*i['bbox_3d'], *np.nan_to_num(i['velocity'])] for i in known])
    boxes[:, 2] -= boxes[:, 5] / 2
    return boxes.float(), [
        CLASSES.index(NuScenesDataset.METAINFO['classes'][i['bbox_label_3d']]) for i in known
    ]


@pytest.fixture
def build(prepared_set):
    def make(
        kind=NuScenesDevkitMetric,
        meta=META,
        root=prepared_set,
        file='nuscenes_infos_val.pkl',
        **kwargs,
    ):
        metric = kind(data_root=str(root), ann_file=str(root / file), **kwargs)
        metric.dataset_meta = meta
        return metric

    return make


def score(metric, samples):
    for sample in samples:
        metric.process({}, [sample])
    return {
        key.split('/')[-1]: value for key, value in metric.evaluate(len(metric.results)).items()
    }


def test_results_without_boxes_score_zero(build, frames, tmp_path):
    found = score(build(classes=CLASSES, jsonfile_prefix=str(tmp_path / 'out')), results(frames))
    assert (
        found['mAP'] == 0
        and found['NDS'] == 0
        and found['car_AP_dist_0.5'] == 0
        and found['mATE'] == 1
    )
    summary = json.loads((tmp_path / 'out/pred_instances_3d/metrics_summary.json').read_text())
    assert summary['mean_ap'] == 0 and len(summary['mean_dist_aps']) == 10
    written = json.loads((tmp_path / 'out/pred_instances_3d/results_nusc.json').read_text())
    assert not any(written['results'].values())
    assert not list((tmp_path / 'out').rglob('*far_box*'))


def test_mmdet3d_fails_on_results_without_boxes_and_on_other_versions(build, frames):
    """What is replaced: if this fails, mmdet3d or the devkit has been fixed."""
    with pytest.raises(Exception, match='Invalid box type'):
        score(build(NuScenesMetric, dict(META, version='v1.0-mini')), results(frames))
    # the version is the info file's
    with pytest.raises(AssertionError, match='Database version'):
        score(build(NuScenesMetric), results(frames))


def test_ground_truth_scores_one(build, frames):
    """In every class that occurs, and alike in mmdet3d's metric; frames without a box are no
    trouble."""
    found = score(build(classes=CLASSES), results(frames, ground_truth))
    evaluated = {name for name in CLASSES if found[f'{name}_AP_dist_0.5'] > 0.99}
    assert len(evaluated) >= 8 and found['mAP'] == pytest.approx(len(evaluated) / 10)
    assert (
        found['car_trans_err'] < 1e-3
        and found['car_vel_err'] < 1e-2
        and found['car_orient_err'] < 1e-3
    )
    stock = build(NuScenesMetric, dict(META, version='v1.0-mini'))
    np.testing.assert_equal(score(stock, results(frames, ground_truth)), found)
    halves = [*list(results(frames, ground_truth))[:1], *list(results(frames))[1:]]
    assert 0 < score(build(classes=CLASSES), halves)['mAP'] < found['mAP']


@pytest.fixture
def own_set(prepared_set, tmp_path):
    """The simulated set under a version and with names of scenes that nuScenes does not have."""
    for part in ('samples', 'sweeps', 'maps'):
        (tmp_path / part).symlink_to(prepared_set / part)
    shutil.copytree(prepared_set / 'v1.0-mini', tmp_path / 'v1.0-mine')
    path = tmp_path / 'v1.0-mine/scene.json'
    rows = json.loads(path.read_bytes())
    names = {row['name']: f'ride {i}' for i, row in enumerate(rows)}
    path.write_text(json.dumps([dict(row, name=names[row['name']]) for row in rows]))
    create_infos(tmp_path, 'v1.0-mine', splits=dict(val=[names['scene-0103']]))
    return tmp_path


@pytest.mark.parametrize('boxes', [ground_truth, None])
def test_scenes_of_ones_own_are_scored_as_official_ones(build, frames, own_set, boxes):
    official = score(build(classes=CLASSES), results(frames, boxes))
    own = score(build(classes=CLASSES, root=own_set), results(frames, boxes))
    assert own.keys() == official.keys() and (own['mAP'] > 0.7) == (boxes is not None)
    np.testing.assert_equal(own, official)
    assert not list(own_set.glob('v1.0-mine/splits.json'))


def test_results_of_the_test_split_are_only_formatted(build, unannotated_set, tmp_path):
    (path,) = create_infos(unannotated_set, 'v1.0-test')
    unknown = pickle.loads(path.read_bytes())['data_list']
    with pytest.raises(ValueError, match='format_only=True'):
        build(root=unannotated_set, file=path.name)
    with pytest.raises(ValueError, match='set jsonfile_prefix'):
        build(root=unannotated_set, file=path.name, format_only=True)
    metric = build(
        root=unannotated_set, file=path.name, format_only=True, jsonfile_prefix=str(tmp_path)
    )

    def boxes(frame):
        return torch.tensor([[5.0, 0, -1, 4, 2, 1.5, 0.3, 3, 0]]), [0]

    assert score(metric, results(unknown, boxes)) == {}
    written = json.loads((tmp_path / 'pred_instances_3d/results_nusc.json').read_text())
    assert written['meta'] == dict(
        use_camera=False, use_lidar=True, use_radar=False, use_map=False, use_external=False
    )
    assert list(written['results']) == [frame['token'] for frame in unknown]
    (box,) = written['results'][unknown[0]['token']]
    assert box['detection_name'] == 'car' and box['attribute_name'] == 'vehicle.moving'
    assert np.hypot(*box['velocity']) == pytest.approx(3, abs=0.1)


def test_incomplete_or_repeated_results_are_refused(build, frames):
    with pytest.raises(ValueError, match='2 results .*val.pkl has 3'):
        score(build(), list(results(frames))[:2])
    twice = list(results(frames))[:1] * 3
    with pytest.raises(ValueError, match='3 results of 1 '):
        score(build(), twice)


def test_results_of_another_split_are_refused(build, prepared_set):
    others = pickle.loads((prepared_set / 'nuscenes_infos_train.pkl').read_bytes())['data_list']
    with pytest.raises(
        ValueError,
        match='frame 0, .* 3 frames of .*val.pkl',
    ):
        score(build(), results(others))
    with pytest.raises(ValueError, match='train.pkl: its 3 frames'):
        score(build(file='nuscenes_infos_train.pkl'), results(others))


def test_other_class_order_is_refused(build, prepared_set, tmp_path):
    with pytest.raises(ValueError, match='dataset orders .*metainfo='):
        build(classes=CLASSES, meta=dict(META, classes=NuScenesDataset.METAINFO['classes']))
    content = pickle.loads((prepared_set / 'nuscenes_infos_val.pkl').read_bytes())
    content['metainfo']['categories'] = {name: i for i, name in enumerate(CLASSES)}
    (tmp_path / 'infos.pkl').write_bytes(pickle.dumps(content))
    with pytest.raises(
        ValueError,
        match='infos.pkl: labels its classes .*create_data.py',
    ):
        build(root=tmp_path, file='infos.pkl')


def test_missing_and_damaged_info_files_are_named(build, prepared_set, tmp_path):
    with pytest.raises(FileNotFoundError, match=f'none.pkl: .*create_data.py {tmp_path}'):
        build(root=tmp_path, file='none.pkl')
    shutil.copy(prepared_set / 'nuscenes_infos_val.pkl', tmp_path / 'a.pkl')
    with pytest.raises(FileNotFoundError, match='v1.0-mini: no nuScenes tables'):
        build(root=tmp_path, file='a.pkl')
    (tmp_path / 'b.pkl').write_bytes((tmp_path / 'a.pkl').read_bytes()[:900])
    with pytest.raises(ValueError, match='b.pkl: damaged'):
        build(root=tmp_path, file='b.pkl')
    (tmp_path / 'c.pkl').write_bytes(pickle.dumps(functools.partial(print, 'harm')))
    with pytest.raises(ValueError, match='c.pkl: .*functools.partial'):
        build(root=tmp_path, file='c.pkl')
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file'):
        build(jsonfile_prefix=str(tmp_path / 'file/out'))
