"""What a user can fix is one message and a non-zero status, before anything is lost."""

import functools
import os
import pickle
import resource
import shutil

import pytest
import torch
from mmengine.config import Config

from stratified3d.checkpoints import load_checkpoint_file, save_weights

pytestmark = pytest.mark.slow


@pytest.fixture
def own_set(tiny_config, tmp_path):
    """A copy of the tiny set whose files may be changed."""
    folder = tmp_path / 'set'
    folder.mkdir()
    for part in tiny_config.parent.iterdir():
        if part.suffix == '.pkl':
            shutil.copy(part, folder)
        elif part.is_dir():
            (folder / part.name).symlink_to(part)
    return folder


def test_a_missing_data_set_says_which_command_makes_it(fails, own_set, tmp_path):
    (own_set / 'nuscenes_infos_train.pkl').unlink()
    message = fails('train.py', tmp_path / 'out', data=own_set)
    assert message.startswith(
        f'train.py: there is no info file {own_set}/nuscenes_infos_train.pkl: '
    )
    assert (
        f'python tools/create_data.py {own_set}' in message
        and f'python tools/simulate.py {own_set}' in message
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_mixed_precision_without_a_gpu_is_refused(fails, tmp_path):
    message = fails('train.py', tmp_path / 'out', '--amp')
    assert message.startswith('train.py: mixed precision needs a GPU')


def test_a_missing_info_file_of_the_metric_is_noticed_before_the_test(fails, trained, tmp_path):
    message = fails(
        'test.py',
        tmp_path / 'out',
        trained / 'epoch_4.pth',
        options=[f'test_evaluator.ann_file={tmp_path}/none.pkl'],
    )
    assert f'there is no info file {tmp_path}/none.pkl' in message


def test_a_missing_database_is_named(fails, tmp_path, tiny_config):
    pipeline = Config.fromfile(tiny_config).train_pipeline
    place = [transform.type for transform in pipeline].index('ObjectSample')
    message = fails(
        'train.py',
        tmp_path / 'out',
        options=[f'train_dataloader.dataset.pipeline.{place}.db_sampler.info_path=nowhere.pkl'],
    )
    assert (
        'there is no ground-truth database nowhere.pkl' in message
        and 'without ObjectSample' in message
    )


@pytest.mark.parametrize(
    'damage',
    [
        lambda content: pickle.dumps(content)[:5000],
        lambda content: b'',
        lambda content: b'no pickle at all',
        lambda content: pickle.dumps([content]),
        lambda content: pickle.dumps(dict(content, data_list=[dict(token='a')])),
    ],
)
def test_corrupt_info_files_are_named(fails, own_set, tmp_path, damage):
    path = own_set / 'nuscenes_infos_train.pkl'
    path.write_bytes(damage(pickle.loads(path.read_bytes())))
    message = fails('train.py', tmp_path / 'out', data=own_set)
    assert f'{path}: damaged' in message and 'create_data.py' in message


def test_an_info_file_that_would_run_code_is_named(fails, own_set, tmp_path):
    path, marker = own_set / 'nuscenes_infos_train.pkl', tmp_path / 'harmed'
    content = pickle.loads(path.read_bytes())
    content['evil'] = functools.partial(os.mkdir, str(marker))
    path.write_bytes(pickle.dumps(content))
    message = fails('train.py', tmp_path / 'out', data=own_set)
    assert f'{path}: ' in message and 'functools.partial' in message and 'create_data.py' in message
    assert not marker.exists()


def test_an_empty_data_set_is_named(fails, own_set, tmp_path):
    path = own_set / 'nuscenes_infos_train.pkl'
    path.write_bytes(pickle.dumps(dict(pickle.loads(path.read_bytes()), data_list=[])))
    assert (
        fails('train.py', tmp_path / 'out', data=own_set) == f'train.py: {path}: contains no frames'
    )


def test_classes_in_another_order_are_named(fails, trained, tmp_path):
    swapped = (
        "['truck','car','construction_vehicle','bus','trailer','barrier','motorcycle','bicycle',"
        "'pedestrian']"
    )
    for tool, part, checkpoint in (
        ('train.py', 'train', ()),
        ('test.py', 'test', (trained / 'epoch_4.pth',)),
    ):
        message = fails(
            tool,
            tmp_path / 'out',
            *checkpoint,
            options=[f'{part}_dataloader.dataset.metainfo.classes={swapped}'],
        )
        assert "its labels would count the classes ['truck', 'car', " in message
        assert "the model's head counts ['car', 'truck', " in message


def test_an_info_file_of_another_order_of_classes_is_named(fails, own_set, tmp_path):
    path = own_set / 'nuscenes_infos_train.pkl'
    content = pickle.loads(path.read_bytes())
    content['metainfo']['categories'].update(car=1, truck=0)
    path.write_bytes(pickle.dumps(content))
    message = fails('train.py', tmp_path / 'out', data=own_set)
    assert f'{path}: numbers the class ' in message and 'another order of the classes' in message


def test_absent_sweeps_are_named(fails, own_set, tmp_path, trained):
    (own_set / 'sweeps').unlink()
    for tool, checkpoint in (('train.py', ()), ('test.py', (trained / 'epoch_4.pth',))):
        message = fails(tool, tmp_path / 'out', *checkpoint, data=own_set)
        assert (
            f'there is no point file {own_set}/sweeps/LIDAR_TOP/' in message
            and 'unpack all' in message
        )


def test_a_file_that_is_cut_short_is_named_from_the_loaders_process(fails, own_set, tmp_path):
    source = (own_set / 'samples').resolve()
    (own_set / 'samples').unlink()
    shutil.copytree(source, own_set / 'samples', symlinks=False)
    for path in (own_set / 'samples/LIDAR_TOP').iterdir():
        path.write_bytes(path.read_bytes()[:1002])  # not even whole numbers
    message = fails('train.py', tmp_path / 'out', data=own_set)
    assert (
        message.startswith(f'train.py: {own_set}/samples/LIDAR_TOP/') and 'Traceback' not in message
    )
    assert 'the file is truncated' in message


def test_an_unwritable_work_folder_is_named(fails, tmp_path):
    (tmp_path / 'file').write_text('mine')
    message = fails('train.py', tmp_path / 'file/out')
    assert (
        f'{tmp_path}/file/out: the work folder cannot be written' in message
        and '--work-dir' in message
    )


@pytest.mark.skipif(
    os.geteuid() == 0, reason='root may write everywhere; the test above needs no permissions'
)
def test_a_protected_work_folder_is_named(fails, tmp_path):
    (tmp_path / 'out').mkdir(mode=0o500)
    assert 'cannot be written (Permission denied)' in fails('train.py', tmp_path / 'out')


def test_a_full_disk_loses_no_checkpoint(start, trained, tmp_path):
    """A limit on the size of files stands for the disk: the log fits, a checkpoint does not."""
    shutil.copy(trained / 'epoch_3.pth', tmp_path)
    limit = (tmp_path / 'epoch_3.pth').stat().st_size // 2
    status, output = start(
        'train.py',
        tmp_path,
        '--resume',
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        options=['train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False'],
    ).wait()
    assert status == 1
    last = output.strip().splitlines()[-1]
    assert last.startswith(
        f'train.py: {tmp_path}/epoch_4.pth: the checkpoint could not be written (File too large)'
    )
    assert last.endswith(f'--resume continues from {tmp_path}/epoch_3.pth')
    assert [path.name for path in tmp_path.glob('*.p*')] in (
        ['epoch_3.pth', 'tiny.py'],
        ['tiny.py', 'epoch_3.pth'],
    )


def other_model(trained, path):
    content = load_checkpoint_file(str(trained / 'epoch_4.pth'), 'cpu')
    state = content['state_dict']
    state['encoder.extra'] = torch.zeros(1)
    state['encoder.input_proj.weight'] = torch.zeros(3, 3)
    del state['encoder.input_proj.bias']
    torch.save(content, path)


def test_weights_of_another_model_list_what_does_not_fit(fails, trained, tmp_path):
    path = tmp_path / 'other.pth'
    other_model(trained, path)
    for message in (
        fails('test.py', tmp_path / 'out', path),
        fails('train.py', tmp_path / 'out', '--resume', path),
        fails('train.py', tmp_path / 'out', options=[f'load_from={path}']),
    ):
        assert f'{path}: weights of another model' in message
        assert '1 missing (encoder.input_proj.bias), 1 unknown (encoder.extra)' in message
        assert 'encoder.input_proj.weight (3, 3), not (16, 8)' in message


def test_damaged_checkpoints_are_named_and_the_one_before_is_offered(fails, trained, tmp_path):
    for i in (2, 3):
        shutil.copy(trained / f'epoch_{i}.pth', tmp_path)
    (tmp_path / 'epoch_4.pth').write_bytes((trained / 'epoch_4.pth').read_bytes()[:-100])
    (tmp_path / 'epoch_3.pth').write_bytes((trained / 'epoch_3.pth').read_bytes()[:1000])
    (tmp_path / 'last_checkpoint').write_text('')  # killed while it was written
    for message in (
        fails('train.py', tmp_path, '--resume'),
        fails('test.py', tmp_path, tmp_path / 'epoch_4.pth'),
    ):
        assert f'{tmp_path}/epoch_4.pth: damaged or cut short' in message
        whole = f'{tmp_path}/epoch_2.pth'
        assert f'{whole} (in training: --resume {whole})' in message


def test_weights_alone_cannot_be_resumed(fails, trained, tmp_path):
    content = load_checkpoint_file(str(trained / 'epoch_4.pth'), 'cpu')
    path = tmp_path / 'weights.safetensors'
    save_weights(path, content['state_dict'], content['meta']['dataset_meta']['classes'])
    assert 'nothing to resume' in fails('train.py', tmp_path / 'out', '--resume', path)
    save_weights(path, content['state_dict'], ['car'])
    assert "trained on classes ['car'], the config has ['car', 'truck'" in fails(
        'test.py', tmp_path / 'out', path
    )


def test_a_missing_checkpoint_is_named(fails, tmp_path):
    assert (
        fails('test.py', tmp_path / 'out', 'none.pth') == 'test.py: there is no checkpoint none.pth'
    )
