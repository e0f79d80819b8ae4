import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

import stratified3d.plugin  # noqa: F401  (registers the parts of configs)

RANGE = (-12.8, -12.8, -2.0, 12.8, 12.8, 2.0)
TASKS = [['car'], ['truck', 'bus'], ['pedestrian']]


@pytest.fixture(scope='session', autouse=True)
def scope():
    init_default_scope('mmdet3d')


@pytest.fixture
def small_config() -> dict:
    """A detector of a few thousand parameters with every part of the real one."""
    return dict(
        type='StratifiedCenterPoint',
        voxel_size=(0.4, 0.4, 0.5),
        point_cloud_range=RANGE,
        data_preprocessor=dict(type='Det3DDataPreprocessor'),
        voxel_encoder=dict(type='DynamicVoxelEncoder', hidden_channels=8, out_channels=8),
        encoder=dict(
            type='StratifiedEncoder',
            channels=16,
            num_heads=2,
            mixer=dict(num_strata=8),
            stem_depth=1,
            stages=[
                dict(depth=2, window_shape=(8, 8, 8), stride=(4, 1, 1)),
                dict(depth=2, window_shape=(2, 8, 8), stride=(2, 1, 1)),
            ],
        ),
        backbone=dict(
            type='ResidualBEVBackbone',
            channels=(16, 16),
            depths=(1, 1),
            strides=(2, 2),
            out_channels=16,
        ),
        head=dict(type='StratifiedCenterHead', tasks=TASKS, shared_channels=16),
    )


@pytest.fixture
def build():
    def make(config, seed=0):
        torch.manual_seed(seed)
        model = MODELS.build(config)
        model.init_weights()
        return model

    return make


@pytest.fixture
def batch():
    """(inputs, samples) of clouds of given sizes, with boxes in every one, in range or not."""

    def make(sizes, num_boxes=4, box_dim=9, seed=0):
        generator = torch.Generator().manual_seed(seed)
        points, samples = [], []
        for size in sizes:
            points.append(
                (torch.rand(size, 5, generator=generator) - 0.5)
                * torch.tensor([30.0, 30, 5, 200, 0.5])
            )
            boxes = torch.rand(num_boxes, 9, generator=generator) * torch.tensor(
                [28.0, 28, 1, 4, 2, 2, 6, 4, 4]
            )
            boxes += torch.tensor([-14.0, -14, -1, 0.5, 0.5, 0.5, -3, -2, -2])
            sample = Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes))
            sample.gt_instances_3d = InstanceData(
                bboxes_3d=LiDARInstance3DBoxes(boxes[:, :box_dim], box_dim=box_dim),
                labels_3d=torch.randint(0, 4, (num_boxes,), generator=generator),
            )
            samples.append(sample)
        return dict(points=points), samples

    return make


@pytest.fixture
def clip_config(small_config):
    small_config['encoder']['mixer'].update(memory=dict(frames=2), strata_offset=0.0)
    return small_config


@pytest.fixture
def clip_batch(batch):
    """(inputs, samples) of clips: ages of points are those of the keyframe or of two sweeps."""

    def make(sizes, ages=((0.05, 0.1), (0.05,), ()), **settings):
        inputs, samples = batch(sizes, **settings)
        generator = torch.Generator().manual_seed(5)
        for i, (points, sample) in enumerate(zip(inputs['points'], samples)):
            own = ages[i % len(ages)]
            choices = torch.tensor([0.0, *own])
            points[:, 4] = choices[torch.randint(len(choices), (len(points),), generator=generator)]
            poses = [torch.eye(4).double() for _ in own]
            for age, pose in zip(own, poses):
                pose[:2, 3] = torch.tensor([-8 * age, age])
            sample.set_metainfo(dict(clip=dict(frames=2, ages=list(own), poses=poses)))
        return inputs, samples

    return make
