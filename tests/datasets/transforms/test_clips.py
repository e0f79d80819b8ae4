"""Clips of the simulated nuScenes: what the detector takes apart is what the sensor saw."""

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS
from mmengine.registry import DefaultScope

import stratified3d.plugin  # noqa: F401  (registers the transforms)
from stratified3d.datasets.transforms.clips import PackClip
from stratified3d.datasets.transforms.sweeps import LoadAlignedSweeps
from stratified3d.models.clips import split_clip

COLUMNS = [0, 1, 2, 3, 4]


def load(root, *transforms, every=1, frames=2):
    """The second keyframe of the training scene as a clip: (points, sample, files of sweeps)."""
    settings = dict(
        type='NuScenesDataset',
        data_root=str(root),
        ann_file='nuscenes_infos_train.pkl',
        data_prefix=dict(pts='samples/LIDAR_TOP', img='', sweeps='sweeps/LIDAR_TOP'),
        box_type_3d='LiDAR',
        pipeline=[
            dict(type='LoadKeyframe', coord_type='LIDAR', load_dim=5, use_dim=5),
            dict(type='LoadAlignedSweeps', sweeps_num=frames, use_dim=COLUMNS, every=every),
            dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
            *transforms,
            dict(type='PackClip', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d'], frames=frames),
        ],
    )
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        dataset = DATASETS.build(settings)
    np.random.seed(0)
    item = dataset[1]
    sweeps = dataset.get_data_info(1)['lidar_sweeps']
    files = [sweep['lidar_points']['lidar_path'] for sweep in sweeps]
    return item['inputs']['points'], item['data_samples'], files


AUGMENTATIONS = (
    dict(
        type='GlobalRotScaleTrans',
        rot_range=[-1.0, 1.0],
        scale_ratio_range=[0.9, 1.1],
        translation_std=[1.0, 1.0, 0.2],
    ),
    dict(
        type='RandomFlip3D',
        sync_2d=False,
        flip_ratio_bev_horizontal=1.0,
        flip_ratio_bev_vertical=0.0,
    ),
)


@pytest.mark.parametrize('every', [1, 2])
def test_sweeps_come_back_as_the_sensor_saw_them(prepared_set, every):
    points, sample, files = load(prepared_set, every=every)
    clip = sample.metainfo['clip']
    assert clip['frames'] == 2
    np.testing.assert_allclose(clip['ages'], np.array([0.05, 0.1]) * every, atol=1e-3)
    *sweeps, keyframe = split_clip([points], [sample])
    for i, step in enumerate(sweeps[::-1]):
        stored = np.fromfile(files[every - 1 :: every][i], np.float32).reshape(-1, 5)
        np.testing.assert_allclose(step.points[0][:, :4], stored[:, :4], atol=1e-4)
    travelled = np.linalg.norm(sweeps[0].poses[0, :3, 3])
    assert 0.05 < travelled < 4 and not np.allclose(sweeps[0].poses[0], keyframe.poses[0])


TILT = dict(type='TiltGround', degrees=3.0)


@pytest.mark.parametrize(
    'augmentations',
    [
        AUGMENTATIONS,
        (*AUGMENTATIONS, TILT),
        (TILT, AUGMENTATIONS[0], TILT, TILT, AUGMENTATIONS[1]),
    ],
)
def test_augmented_sweeps_are_augmented_as_the_keyframe(prepared_set, augmentations):
    """Taken apart, then augmented, a sweep is what it is augmented, then taken apart."""
    plain = split_clip(*([x] for x in load(prepared_set)[:2]))
    points, sample, _ = load(prepared_set, *augmentations)
    changed = split_clip([points], [sample])

    def fit(source, target):
        source = torch.cat([source[:, :3], torch.ones(len(source), 1)], 1).double()
        return torch.linalg.lstsq(source, target[:, :3].double()).solution

    matrix = fit(plain[-1].points[0], changed[-1].points[0])
    assert (matrix[:3].T @ matrix[:3] - torch.eye(3)).abs().max() > 0.01, 'it is scaled'
    for before, after in zip(plain, changed):
        expected = torch.cat([before.points[0][:, :3], torch.ones(len(before.points[0]), 1)], 1)
        torch.testing.assert_close(
            after.points[0][:, :3].double(), expected.double() @ matrix, rtol=1e-4, atol=2e-3
        )


def test_a_clip_needs_frames_and_loaded_sweeps():
    with pytest.raises(ValueError, match='at least 1'):
        PackClip(keys=['points'], frames=0)
    with pytest.raises(ValueError, match='every'):
        LoadAlignedSweeps(sweeps_num=1, every=0)
    with pytest.raises(ValueError, match='LoadAlignedSweeps'):
        PackClip(keys=['points'], frames=1).transform(dict(points=torch.zeros(1, 5)))
