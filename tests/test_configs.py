import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

NUSCENES = [
    f'stratified-centerpoint_{name}_{schedule}_nus-3d'
    for name, schedule in (
        ('voxel03', '8xb4-cyclic-20e'),
        ('voxel03-large', '8xb4-cyclic-20e'),
        ('voxel03-two-scale', '8xb4-cyclic-20e'),
        ('pillar03', '8xb4-cyclic-20e'),
        ('tiny', '1xb2-cyclic-20e'),
    )
]
NUSCENES.append('stratified-transfusion_voxel03_8xb4-cyclic-20e_nus-3d')
WAYMO = 'stratified-centerpoint_voxel032_8xb2-cyclic-24e_waymo-3d'
CONFIGS = [*NUSCENES, WAYMO]


@pytest.fixture
def config(root, request):
    config = Config.fromfile(root / 'configs/stratified' / f'{request.param}.py')
    init_default_scope('mmdet3d')
    return config


all_configs = pytest.mark.parametrize('config', CONFIGS, indirect=True)
nuscenes_configs = pytest.mark.parametrize('config', NUSCENES, indirect=True)
waymo_config = pytest.mark.parametrize('config', [WAYMO], indirect=True)


def test_no_config_is_forgotten(root):
    assert sorted(p.stem for p in (root / 'configs/stratified').glob('*.py')) == sorted(CONFIGS)


@all_configs
def test_it_builds_learns_and_predicts(config):
    torch.manual_seed(0)
    # a quick step does without most of the map
    config.model.point_cloud_range = (
        [-27, -27, -5, 27, 27, 3]
        if 'nus' in config.filename
        else [-18.72, -18.72, -2.0, 18.72, 18.72, 4.0]
    )
    model = MODELS.build(config.model)
    box_dim = 9 if config.model.head.get('use_velocity', True) else 7
    model.init_weights()
    rng = np.random.default_rng(0)
    points = torch.from_numpy(
        np.hstack(
            [
                rng.normal(0, 12, (1500, 2)),
                rng.uniform(-3, 1, (1500, 1)),
                rng.uniform(0, 1, (1500, 2)),
            ]
        ).astype(np.float32)
    )
    sample = Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes))
    sample.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(
            torch.tensor([[3.0, 4, -1, 4, 2, 1.6, 0.3, 1, 0][:box_dim]]), box_dim=box_dim
        ),
        labels_3d=torch.tensor([0]),
    )
    losses = model.loss(dict(points=[points]), [sample])
    assert sum(losses.values()).isfinite()
    with torch.no_grad():
        found = model.eval().predict(dict(points=[points]), [sample])[0].pred_instances_3d
    assert found.bboxes_3d.tensor.shape[1] == box_dim and found.scores_3d.isfinite().all()


@all_configs
def test_one_fact_in_one_place(config):
    """Classes, range and tasks agree everywhere; labels count the classes in the order of the
    head's tasks."""
    names = [name for task in config.model.head.tasks for name in task]
    assert names == config.class_names == config.metainfo.classes
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = config[loader].dataset
        while 'pipeline' not in dataset:
            dataset = dataset.dataset
        assert dataset.metainfo.classes == names
        ranges = [t.point_cloud_range for t in dataset.pipeline if 'point_cloud_range' in t]
        assert ranges and all(tuple(r) == tuple(config.model.point_cloud_range) for r in ranges)


@nuscenes_configs
def test_sweeps_are_not_drawn_at_random_in_a_test(config):
    for name in ('val_dataloader', 'test_dataloader'):
        (loader,) = (t for t in config[name].dataset.pipeline if 'Sweeps' in t.type)
        assert loader.type == 'LoadAlignedSweeps' and loader.test_mode


@nuscenes_configs
def test_the_test_pipeline_runs_on_a_file(config, tmp_path):
    points = np.random.default_rng(0).normal(0, 20, (300, 5)).astype(np.float32)
    path = tmp_path / 'a.pcd.bin'
    points.tofile(path)
    data = dict(
        lidar_points=dict(lidar_path=str(path), num_pts_feats=5),
        timestamp=0.0,
        sample_idx=0,
        box_type_3d=LiDARInstance3DBoxes,
    )
    for transform in config.test_dataloader.dataset.pipeline:
        data = TRANSFORMS.build(transform)(data)
    loaded = data['inputs']['points']
    assert 0 < len(loaded) < 3000 and loaded.shape[1] == 5 and not loaded[:, 4].any()


@nuscenes_configs
def test_the_train_pipeline_runs_on_a_data_set(config, prepared_set):
    """All of it: resampling, keyframe, aligned sweeps, ground-truth sampling, augmentation,
    filters."""
    settings = config.train_dataloader.dataset
    settings.dataset.data_root = str(prepared_set)
    for transform in settings.dataset.pipeline:
        if transform.type == 'ObjectSample':
            transform.db_sampler.update(
                data_root=f'{prepared_set}/',
                info_path=str(prepared_set / 'nuscenes_dbinfos_train.pkl'),
            )
    np.random.seed(0)
    dataset = DATASETS.build(settings)
    sample = dataset[dataset.sample_indices.index(2)]
    points, truth = sample['inputs']['points'], sample['data_samples'].gt_instances_3d
    assert points.shape[1] == 5 and len(points) > 100000  # ten sweeps
    assert 0 < points[:, 4].max() < 0.5
    assert (
        len(truth) > 10
        and int(truth.labels_3d.min()) >= 0
        and truth.bboxes_3d.tensor.isfinite().all()
    )


@nuscenes_configs
def test_it_is_scored_by_the_devkit(config, prepared_set):
    for name in ('val_evaluator', 'test_evaluator'):
        settings = config[name]
        settings.update(
            data_root=str(prepared_set), ann_file=str(prepared_set / 'nuscenes_infos_val.pkl')
        )
        metric = METRICS.build(settings)
        assert (
            type(metric).__name__ == 'NuScenesDevkitMetric' and metric.classes == config.class_names
        )


@waymo_config
def test_waymos_pipelines_run_on_a_data_set(config, converted_set):
    """Points of one frame with intensity and elongation; objects of the database join those of a
    training frame."""
    for part in (config.train_dataloader.dataset, config.val_dataloader.dataset):
        part.data_root = f'{converted_set}/'
        for transform in part.pipeline:
            if transform.type == 'ObjectSample':
                transform.db_sampler.update(
                    data_root=f'{converted_set}/',
                    info_path=str(converted_set / 'waymo_dbinfos_train.pkl'),
                )
    np.random.seed(0)
    train, val = (
        DATASETS.build(config.train_dataloader.dataset),
        DATASETS.build(config.val_dataloader.dataset),
    )
    sample = train[0]
    truth = sample['data_samples'].gt_instances_3d
    assert (
        len(truth) > len(train.get_ann_info(0)['gt_labels_3d'])
        and truth.bboxes_3d.tensor.shape[1] == 7
    )
    for points in (sample['inputs']['points'], val[0]['inputs']['points']):
        assert points.shape[1] == 5 and len(points) > 100000
        assert points[:, 3].min() >= 0 and 0.7 < points[:, 3].max() <= 1  # tanh of up to 4
        assert points[:, 4].min() >= 0 and points[:, 4].max() <= 1.5
    frame = val[0]['data_samples'].metainfo  # what the score needs
    info = val.get_data_info(0)
    assert (frame['context_name'], frame['timestamp']) == (info['context_name'], info['timestamp'])


@waymo_config
def test_waymos_schedule_covers_its_epochs(config):
    for kind in ('CosineAnnealingLR', 'CosineAnnealingMomentum'):
        parts = [part for part in config.param_scheduler if part.type == kind]
        assert [(part.begin, part.end, part.T_max) for part in parts] == [(0, 10, 10), (10, 24, 14)]
    assert config.train_cfg.max_epochs == 24 and config.train_dataloader.batch_size == 2


def test_leaf_configs_hold_only_what_differs(root):
    for path in (root / 'configs/stratified').glob('*.py'):
        assert len(path.read_text().splitlines()) <= 40, path
