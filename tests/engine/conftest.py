"""A training that takes seconds: one scene of three keyframes, a detector of a few thousand
parameters."""

import contextlib
import json
import pickle
import runpy
import sys
from unittest import mock

import numpy as np
import pytest

import stratified3d.plugin  # noqa: F401  (registers the parts of configs)

TINY = """_base_ = '{root}/projects/quickstart/configs/quickstart.py'

model = dict(
    voxel_size=(1.2, 1.2, 1.0),
    voxel_encoder=dict(hidden_channels=8, out_channels=8),
    encoder=dict(
        _delete_=True, type='StratifiedEncoder', channels=16, num_heads=1,
        mixer=dict(num_strata=8, selection='random'), stem_depth=0,
        stages=[dict(depth=2, window_shape=(8, 6, 6), stride=(8, 1, 1))]),
    backbone=dict(channels=(16, 16), depths=(1, 1), strides=(2, 2), out_channels=16),
    head=dict(shared_channels=16))
sample = dict(type='ObjectSample', db_sampler=dict(
    type='GroundTruthSampler', data_root='{data}', info_path='{data}/database.pkl', rate=1.0,
    classes=_base_.class_names, prepare=dict(), sample_groups=dict(car=2, pedestrian=2),
    points_loader=_base_.db_sampler.points_loader))
train_pipeline = [sample if t['type'] == 'ObjectSample' else t for t in _base_.train_pipeline]
train_dataloader = dict(batch_size=1, dataset=dict(pipeline=train_pipeline))
log_processor = dict(window_size=1)
default_hooks = dict(logger=dict(interval=1))
train_cfg = dict(max_epochs=4, val_interval=9)
param_scheduler = [dict(_base_.param_scheduler[0], total_steps=4)]
"""


@pytest.fixture(scope='session', autouse=True)
def plain_config_dumps():
    """Not laid out by yapf, which takes longer than the trainings here."""
    with mock.patch('mmengine.config.config.FormatCode', lambda text, **settings: (text, True)):
        yield


@pytest.fixture(scope='session')
def tiny_config(root, prepared_set, tmp_path_factory):
    """Path of a config with ground-truth sampling and strata drawn at random: randomness
    everywhere."""
    folder = tmp_path_factory.mktemp('tiny')
    for part in prepared_set.iterdir():
        (folder / part.name).symlink_to(part)
    database = {name: [] for name in ('car', 'pedestrian')}
    rng = np.random.default_rng(0)
    for i in range(14):
        name = ('car', 'pedestrian')[i % 2]
        rng.normal(0, 0.3, (20, 5)).astype(np.float32).tofile(folder / f'{i}.bin')
        database[name].append(
            dict(
                name=name,
                path=f'{i}.bin',
                image_idx=0,
                gt_idx=i,
                num_points_in_gt=9,
                difficulty=0,
                group_id=i,
                box3d_lidar=np.array([7 * i - 49, 45, -1, 1, 1, 1.5, 0, 1, 0], np.float32),
            )
        )
    (folder / 'database.pkl').write_bytes(pickle.dumps(database))
    path = folder / 'tiny.py'
    path.write_text(TINY.format(root=root, data=folder))
    return path


@pytest.fixture(scope='session')
def use_data():
    """Folder -> a context in which configs read it, here and in processes that are started."""

    @contextlib.contextmanager
    def context(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('NUSCENES_ROOT', str(folder))
            yield

    return context


@pytest.fixture(scope='session')
def command(root, tiny_config):
    """(tool, work folder, arguments, options) -> the command line that runs mmdet3d's script with
    the tiny config."""

    def make(tool, work_dir, *arguments, options=()):
        return [
            str(root / 'tools' / tool),
            str(tiny_config),
            *map(str, arguments),
            '--work-dir',
            str(work_dir),
            *(['--cfg-options', *options] if options else []),
        ]

    return make


@pytest.fixture(scope='session')
def start(command, tool_process, use_data, tiny_config):
    """Start a tool on the tiny set; see ToolProcess."""

    def call(tool, work_dir, *arguments, options=(), name='output', **settings):
        words = command(tool, work_dir, *arguments, options=options)
        with use_data(tiny_config.parent):
            return tool_process(words, work_dir / f'{name}.txt', **settings)

    return call


@pytest.fixture(scope='session')
def trained(start, tmp_path_factory):
    """Work folder of an unbroken training, which writes every epoch's checkpoint."""
    folder = tmp_path_factory.mktemp('unbroken')
    status, output = start('train.py', folder).wait()
    assert status == 0, output[-3000:]
    return folder


@pytest.fixture(scope='session')
def losses():
    """Work folder -> {iteration: loss}; of an iteration run twice, the last."""

    def read(folder):
        lines = [
            json.loads(line)
            for path in sorted(folder.glob('*/vis_data/scalars.json'))
            for line in path.read_text().splitlines()
        ]
        return {line['step']: line['loss'] for line in lines if 'loss' in line}

    return read


@pytest.fixture
def fails(command, monkeypatch, use_data, tiny_config):
    """Run a tool in this process, on the tiny set or other data, and return what it ends with."""

    def call(tool, *arguments, data=tiny_config.parent, **settings):
        words = command(tool, *arguments, **settings)
        monkeypatch.setattr(sys, 'argv', words)
        monkeypatch.setattr(
            'mmengine.runner.runner.collect_env', dict
        )  # asks compilers for their versions
        with use_data(data), pytest.raises(SystemExit) as end:
            runpy.run_path(words[0], run_name='__main__')
        assert isinstance(end.value.code, str)  # printed, and the status is 1
        return end.value.code

    return call
