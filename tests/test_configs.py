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


@pytest.fixture
def with_root(monkeypatch):
    """(config, variable, folder) -> the same config read again, with its dataset in the folder."""

    def read(config, variable, folder):
        monkeypatch.setenv(variable, str(folder))
        return Config.fromfile(config.filename)

    return read


all_configs = pytest.mark.parametrize('config', CONFIGS, indirect=True)
nuscenes_configs = pytest.mark.parametrize('config', NUSCENES, indirect=True)
waymo_config = pytest.mark.parametrize('config', [WAYMO], indirect=True)


def test_no_config_is_forgotten(root):
    assert sorted(p.stem for p in (root / 'configs/stratified').glob('*.py')) == sorted(CONFIGS)


@all_configs
@pytest.mark.slow
def test_model_of_each_config_learns_and_predicts(config):
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
def test_classes_ranges_and_tasks_agree(config):
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
def test_sweeps_are_not_random_in_a_test(config):
    for name in ('val_dataloader', 'test_dataloader'):
        (loader,) = (t for t in config[name].dataset.pipeline if 'Sweeps' in t.type)
        assert loader.type == 'LoadAlignedSweeps' and loader.test_mode


@nuscenes_configs
def test_test_pipeline_runs_on_a_file(config, tmp_path):
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


@pytest.mark.slow
@nuscenes_configs
def test_train_pipeline_runs_on_a_dataset(config, prepared_set, with_root):
    """All of it: resampling, keyframe, aligned sweeps, ground-truth sampling, augmentation,
    filters."""
    config = with_root(config, 'NUSCENES_ROOT', prepared_set)
    np.random.seed(0)
    dataset = DATASETS.build(config.train_dataloader.dataset)
    sample = dataset[dataset.sample_indices.index(2)]
    points = sample['inputs']['points']
    assert points.shape[1] == 5 and len(points) > 100000  # ten sweeps
    assert 0 < points[:, 4].max() < 0.5
    gt_instances = sample['data_samples'].gt_instances_3d
    assert len(gt_instances) > 10
    assert int(gt_instances.labels_3d.min()) >= 0
    assert gt_instances.bboxes_3d.tensor.isfinite().all()


@nuscenes_configs
def test_nuscenes_is_scored_by_the_devkit(config, prepared_set, with_root):
    config = with_root(config, 'NUSCENES_ROOT', prepared_set)
    for name in ('val_evaluator', 'test_evaluator'):
        metric = METRICS.build(config[name])
        assert type(metric).__name__ == 'NuScenesDevkitMetric'
        assert metric.classes == config.class_names


@pytest.mark.slow
@waymo_config
def test_waymo_pipelines_run_on_a_dataset(config, converted_set, with_root):
    """Points of one frame with intensity and elongation; objects of the database join those of a
    training frame."""
    config = with_root(config, 'WAYMO_ROOT', converted_set)
    np.random.seed(0)
    train = DATASETS.build(config.train_dataloader.dataset)
    val = DATASETS.build(config.val_dataloader.dataset)
    sample = train[0]
    gt_instances = sample['data_samples'].gt_instances_3d
    assert len(gt_instances) > len(train.get_ann_info(0)['gt_labels_3d'])
    assert gt_instances.bboxes_3d.tensor.shape[1] == 7
    for points in (sample['inputs']['points'], val[0]['inputs']['points']):
        assert points.shape[1] == 5 and len(points) > 100000
        assert points[:, 3].min() >= 0 and 0.7 < points[:, 3].max() <= 1  # tanh of up to 4
        assert points[:, 4].min() >= 0 and points[:, 4].max() <= 1.5
    frame = val[0]['data_samples'].metainfo  # what the score needs
    info = val.get_data_info(0)
    assert (frame['context_name'], frame['timestamp']) == (info['context_name'], info['timestamp'])


@waymo_config
def test_waymo_schedule_covers_its_epochs(config):
    for kind in ('CosineAnnealingLR', 'CosineAnnealingMomentum'):
        parts = [part for part in config.param_scheduler if part.type == kind]
        assert [(part.begin, part.end, part.T_max) for part in parts] == [(0, 10, 10), (10, 24, 14)]
    assert config.train_cfg.max_epochs == 24 and config.train_dataloader.batch_size == 2


def paths_of_data(part):
    """Values of a config's part that say where data is."""
    if isinstance(part, dict):
        for key, value in part.items():
            is_path = key in ('data_root', 'info_path')
            is_path |= key == 'ann_file' and '/' in value  # else it is relative to data_root
            yield from [value] if is_path else paths_of_data(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from paths_of_data(value)


@pytest.mark.parametrize('slash', ['', '/'])
@pytest.mark.parametrize(
    'path, variable',
    [
        (f'configs/stratified/{NUSCENES[0]}.py', 'NUSCENES_ROOT'),
        (f'configs/stratified/{WAYMO}.py', 'WAYMO_ROOT'),
        ('projects/quickstart/configs/quickstart.py', 'NUSCENES_ROOT'),
        ('projects/own_data/configs/own_data.py', 'CUSTOM_ROOT'),
    ],
)
def test_one_variable_moves_the_dataset(root, monkeypatch, path, variable, slash):
    """Of loaders, ground-truth sampler and evaluators, with or without a slash at its end."""
    monkeypatch.setenv(variable, f'/somewhere{slash}')
    config = Config.fromfile(root / path)
    for part in ('train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator'):
        paths = list(paths_of_data(config[part]))
        assert paths or config[part].type == 'CenterDistanceMetric'  # it reads no files
        assert all(path.startswith('/somewhere') for path in paths), paths
    assert config.test_evaluator == config.val_evaluator


def test_leaf_configs_hold_only_what_differs(root):
    for path in (root / 'configs/stratified').glob('*.py'):
        assert len(path.read_text().splitlines()) <= 40, path
