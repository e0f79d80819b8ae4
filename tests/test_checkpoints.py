import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import CosineAnnealingLR, OneCycleLR
from mmengine.runner import CheckpointLoader

from stratified3d.checkpoints import load_checkpoint_file


@pytest.fixture
def checkpoint(tmp_path):
    """What mmengine's CheckpointHook saves: weights, optimizer, and a message hub full of HistoryBuffers."""
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    schedules = [OneCycleLR(optimizer, eta_max=0.1, total_steps=5), CosineAnnealingLR(optimizer, T_max=5)]
    content = dict(
        param_schedulers=[schedule.state_dict() for schedule in schedules],
        state_dict=dict(weight=torch.arange(4.0)), optimizer=dict(lr=np.float64(0.1)),
        meta=dict(dataset_meta=dict(classes=['car']), seed=np.int64(3)),
        message_hub=dict(log_scalars=dict(loss=buffer), resumed_keys=dict(loss=True)))
    path = tmp_path / 'epoch_1.pth'
    torch.save(content, path)
    return path


def test_mmengine_checkpoints_load(checkpoint):
    content = load_checkpoint_file(str(checkpoint), 'cpu')
    buffer = content['message_hub']['log_scalars']['loss']
    assert buffer.mean() == 1.5 and buffer.statistics('max') == 2.0 and buffer.current() == 2.0
    assert torch.equal(content['state_dict']['weight'], torch.arange(4.0))
    assert content['param_schedulers'][0]['total_steps'] == 5
    assert content['optimizer']['lr'] == 0.1 and content['meta']['seed'] == 3


def test_the_plugin_makes_mmengine_use_it(checkpoint):
    import stratified3d.plugin  # noqa: F401
    assert CheckpointLoader.load_checkpoint(str(checkpoint), 'cpu')['meta']['dataset_meta']['classes'] == ['car']


class _Reduce:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def evil_pickles(marker):
    yield 'os.system', _Reduce(os.system, f'touch {marker}')
    yield 'eval', _Reduce(eval, f'open({str(marker)!r}, "w")')
    yield 'getattr', _Reduce(getattr, HistoryBuffer, '__dict__')
    yield 'another global', _Reduce(pickle.loads, b'')
    yield 'getattr of a buffer', _Reduce(getattr, HistoryBuffer, '__init__')
    yield 'getattr chain', _Reduce(getattr, _Reduce(getattr, HistoryBuffer, 'mean'), '__globals__')
    yield 'torch.load', _Reduce(torch.load, str(marker))
    yield 'numpy.load', _Reduce(np.load, str(marker), None, True)


@pytest.mark.parametrize('number', range(8))
def test_malicious_checkpoints_are_refused(tmp_path, number):
    marker = tmp_path / 'harmed'
    name, payload = list(evil_pickles(marker))[number]
    path = tmp_path / 'evil.pth'
    torch.save(dict(state_dict={}, meta=payload), path)
    with pytest.raises(ValueError, match='evil.pth: not loaded, because it holds more than weights and logs') as error:
        load_checkpoint_file(str(path))
    assert 'weights_only' not in str(error.value)  # torch's advice would be to switch the check off
    assert not marker.exists(), name


def test_a_bare_pickle_is_refused(tmp_path):
    path, marker = tmp_path / 'old.pth', tmp_path / 'harmed'
    path.write_bytes(pickle.dumps(dict(state_dict={}, x=_Reduce(os.system, f'touch {marker}')), protocol=2))
    with pytest.raises(ValueError, match='old.pth: not loaded'):
        load_checkpoint_file(str(path))
    assert not marker.exists()


@pytest.mark.parametrize('keep', [0, 10, 500, -40])
def test_truncated_checkpoints_are_named(checkpoint, keep):
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    with pytest.raises(ValueError, match='epoch_1.pth: .*damaged'):
        load_checkpoint_file(str(checkpoint))


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no checkpoint .*none.pth'):
        load_checkpoint_file(str(tmp_path / 'none.pth'))
