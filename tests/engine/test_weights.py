"""Released weights are tested and fine-tuned; a file that would run code is refused wherever it is
loaded."""

import os

import pytest
import torch

from stratified3d.checkpoints import load_checkpoint_file, save_weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def released(trained, tmp_path_factory):
    content = load_checkpoint_file(str(trained / 'epoch_4.pth'), 'cpu')
    path = tmp_path_factory.mktemp('released') / 'weights.safetensors'
    save_weights(path, content['state_dict'], content['meta']['dataset_meta']['classes'])
    return path


def test_released_weights_are_tested(start, released, tmp_path):
    status, output = start('test.py', tmp_path, released).wait()
    assert status == 0, output[-3000:]
    assert (
        f'weights loaded from {released}' in output and 'pred_instances_3d_NuScenes/NDS' in output
    )


def test_fine_tuning_takes_what_fits_and_lists_what_does_not(start, released, losses, tmp_path):
    status, output = start(
        'train.py',
        tmp_path,
        options=[f'load_from={released}', 'model.head.shared_channels=8', 'train_cfg.max_epochs=1'],
    ).wait()
    assert status == 0, output[-3000:]
    assert 'head.heading.layers.2.weight (1, 16), not (1, 8)' in output
    assert 'these parts of the head start from random weights' in output
    assert len(losses(tmp_path)) == 3
    before = load_checkpoint_file(str(released))['state_dict']
    after = load_checkpoint_file(str(tmp_path / 'epoch_1.pth'), 'cpu')['state_dict']
    for name in (
        'encoder.input_proj.weight',
        'encoder.stages.0.blocks.1.mixer.qkv.weight',
    ):  # other weights are 1.4 away
        assert (after[name] - before[name]).norm() < 0.5 * before[name].norm()


class _Harm:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_malicious_file_is_refused_in_testing_resuming_and_fine_tuning(fails, trained, tmp_path):
    content = load_checkpoint_file(str(trained / 'epoch_4.pth'), 'cpu')
    content['meta']['extra'] = _Harm(tmp_path / 'harmed')
    path = tmp_path / 'evil.pth'
    torch.save(content, path)
    for message in (
        fails('test.py', tmp_path / 'out', path),
        fails('train.py', tmp_path / 'out', '--resume', path),
        fails('train.py', tmp_path / 'out', options=[f'load_from={path}']),
    ):
        assert f'{path}: not loaded' in message
        assert 'GLOBAL posix.mkdir' in message
    assert not (tmp_path / 'harmed').exists()
