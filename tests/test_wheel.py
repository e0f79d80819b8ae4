"""The wheel in a fresh environment, outside the repository, in a path with a space.

Configs, weights and commands are found by their names, by mmdet3d's own scripts, too.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# as small as a detector can be, one step, no score
OWN_CONFIG = """
_base_ = 'stratified3d::quickstart/quickstart.py'
model = dict(
    voxel_size=(1.2, 1.2, 1.0),
    voxel_encoder=dict(hidden_channels=8, out_channels=16),
    encoder=dict(channels=16, mixer=dict(num_strata=8)),
    backbone=dict(channels=(16, 16), depths=(1, 1), strides=(2, 2), out_channels=16),
    head=dict(shared_channels=16),
)
train_pipeline = [t for t in _base_.train_pipeline if t['type'] != 'ObjectSample']
train_dataloader = dict(
    num_workers=0, persistent_workers=False, num_batch_per_epoch=1,
    dataset=dict(pipeline=train_pipeline),
)
param_scheduler = []
train_cfg = dict(max_epochs=1, val_begin=9)
"""
NAMES = """
from mmengine.config import Config  # nothing of ours is imported before it
for name in ('stratified/stratified-centerpoint_tiny_1xb2-cyclic-20e_nus-3d.py',
             'quickstart/any_sensor.py', 'own_data/own_data.py', 'attention_zoo/attention_zoo.py'):
    config = Config.fromfile(f'stratified3d::{name}')
    assert config.model.type == 'StratifiedCenterPoint', name
assert Config.fromfile('own.py').model.encoder.channels == 16
from mmengine.hub import get_config
tiny = 'stratified3d::stratified/stratified-centerpoint_tiny_1xb2-cyclic-20e_nus-3d.py'
assert get_config(tiny).model.type == 'StratifiedCenterPoint'

import stratified3d
from stratified3d.apis import init_detector
print(stratified3d.__file__)
print(type(init_detector('stratified3d::attention_zoo/attention_zoo.py').encoder.stages[0]
           .blocks[0].mixer).__name__)
"""


@pytest.fixture(scope='module')
def wheel(root, tmp_path_factory):
    """Built from a copy, so that nothing is left in the repository."""
    folder = tmp_path_factory.mktemp('source')
    listing = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard'],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listing.stdout.splitlines():
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, folder / name)
    out = tmp_path_factory.mktemp('wheel')
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--quiet']
    subprocess.run([*command, '--wheel-dir', str(out), str(folder)], check=True)
    (path,) = out.glob('stratified3d-*-py3-none-any.whl')
    return path


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """The interpreter of a new environment with the wheel, which borrows everything else from this
    one, and an empty folder to work in."""
    folder = tmp_path_factory.mktemp('a stranger')
    venv.create(folder / 'environment', symlinks=True)
    python = folder / 'environment/bin/python'
    site = subprocess.run(
        [python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # not this environment's own stratified3d: a path of a .pth file reads no .pth files itself
    Path(site.stdout.strip(), 'zz_others.pth').write_text(sysconfig.get_path('purelib') + '\n')
    pip = [sys.executable, '-m', 'pip', '--python', str(python), 'install', '--no-deps', '--quiet']
    subprocess.run([*pip, str(wheel)], check=True)
    (folder / 'work').mkdir()
    (folder / 'work/own.py').write_text(OWN_CONFIG)
    return python, folder / 'work'


def run(installed, *words, **variables):
    python, folder = installed
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | variables
    result = subprocess.run(
        [str(word) for word in words], cwd=folder, env=environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def test_wheel_has_what_its_users_need_and_nothing_else(wheel, root):
    names = zipfile.ZipFile(wheel).namelist()
    mim = {name.removeprefix('stratified3d/.mim/') for name in names if '/.mim/' in name}
    assert {
        'model-index.yml',
        'configs/stratified/metafile.yml',
        'configs/_base_/datasets/waymo.py',
        'projects/quickstart/configs/any_sensor.py',
        'projects/quickstart/any-sensor.safetensors',
        'projects/attention_zoo/register.py',
        'projects/own_data/configs/own_data.py',
        'tools/train.py',
        'tools/test.py',
    } <= mim
    assert {'stratified3d.pth', 'stratified3d/py.typed'} <= {*names}
    tops = {name.split('/')[0] for name in names}
    assert {top for top in tops if 'dist-info' not in top} == {'stratified3d', 'stratified3d.pth'}
    assert not [name for name in mim if 'benchmark' in name or '__pycache__' in name]


def test_names_of_configs_are_found_from_any_folder(installed):
    python, folder = installed
    file, mixer = run(installed, python, '-W', 'ignore', '-c', NAMES).splitlines()[-2:]
    assert Path(file).is_relative_to(folder.parent / 'environment') and mixer == 'SetAttention'


def test_detect_finds_its_weights(installed, prepared_set):
    python, folder = installed
    sweep = next((prepared_set / 'samples/LIDAR_TOP').glob('*.bin'))
    command = python.with_name('stratified3d')
    output = run(
        installed, command, 'detect', sweep,
        '--draw', '--no-perspective', '--json', 'boxes.json', '--device', 'cpu',
    )  # fmt: skip
    found = json.loads((folder / 'boxes.json').read_text())[str(sweep)]
    assert len(found['names']) >= 3 and {'car', 'pedestrian'} & {*found['names']}
    assert f'{len(found["names"])} objects' in output
    assert len(list((folder / 'work_dirs/detections/bev').glob('*.png'))) == 1


def test_mmdet3d_trains_a_config_based_on_ours(installed, prepared_set):
    """The script that `mim train mmdet3d` runs; nothing of ours is imported before the config."""
    import mmdet3d

    python, folder = installed
    script = Path(mmdet3d.__file__).parent / '.mim/tools/train.py'
    data = dict(NUSCENES_ROOT=str(prepared_set))
    run(installed, python, '-W', 'ignore', script, 'own.py', '--work-dir', 'out', **data)
    assert (folder / 'out/epoch_1.pth').is_file()


def test_commands_start_without_torch(installed):
    python, _ = installed
    output = run(installed, python, '-X', 'importtime', '-m', 'stratified3d.cli', '--help')
    assert 'quickstart' in output and '| torch' not in output and 'numpy' not in output
