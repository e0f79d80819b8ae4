import copy
import functools
import importlib
import os
import pickle
import random
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import CosineAnnealingLR, OneCycleLR
from mmengine.runner import CheckpointLoader

from stratified3d.checkpoints import latest_checkpoint, load_checkpoint_file, save_weights


@pytest.fixture
def checkpoint(tmp_path):
    """What mmengine's CheckpointHook saves: weights, optimizer, and a message hub full of
    HistoryBuffers."""
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    schedules = [
        OneCycleLR(optimizer, eta_max=0.1, total_steps=5),
        CosineAnnealingLR(optimizer, T_max=5),
    ]
    content = dict(
        param_schedulers=[schedule.state_dict() for schedule in schedules],
        state_dict=dict(weight=torch.arange(4.0)),
        optimizer=dict(lr=np.float64(0.1)),
        meta=dict(dataset_meta=dict(classes=['car']), seed=np.int64(3)),
        message_hub=dict(log_scalars=dict(loss=buffer), resumed_keys=dict(loss=True)),
    )
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


def test_mmengine_loads_checkpoints_by_our_loader(checkpoint):
    import stratified3d.plugin  # noqa: F401  (registers the parts of configs)

    assert CheckpointLoader.load_checkpoint(str(checkpoint), 'cpu')['meta']['dataset_meta'][
        'classes'
    ] == ['car']


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
    yield 'object array', np.array([_Reduce(os.system, f'touch {marker}')], dtype=object)
    yield 'record dtype', np.zeros(1, dtype=[('a', 'O')])
    yield 'text dtype', np.array(['text'])
    yield 'subprocess', _Reduce(subprocess.check_call, ['touch', str(marker)])
    yield 'import', _Reduce(importlib.import_module, 'antigravity')
    yield 'dict key', {_Reduce(os.mkdir, str(marker)): 1}
    yield 'deep inside', HistoryBuffer([1.0], [_Reduce(os.mkdir, str(marker))])
    yield 'a class of ours', _Reduce(Path, str(marker))
    yield 'module of torch', torch.nn.Linear(1, 1)
    yield 'getattr of a schedule', _Reduce(getattr, OneCycleLR, 'load_state_dict')
    yield 'getattr of an instance', _Reduce(getattr, HistoryBuffer([1.0], [1]), 'mean')
    yield 'partial', functools.partial(os.mkdir, str(marker))


@pytest.mark.parametrize('number', range(20))
def test_malicious_checkpoints_are_refused(tmp_path, number):
    marker = tmp_path / 'harmed'
    name, payload = list(evil_pickles(marker))[number]
    path = tmp_path / 'evil.pth'
    torch.save(dict(state_dict={}, meta=payload), path)
    with pytest.raises(ValueError, match='evil.pth: (not loaded|damaged)') as error:
        load_checkpoint_file(str(path))
    assert 'weights_only' not in str(error.value)  # torch's advice would be to switch the check off
    assert not marker.exists(), name


def test_a_bare_pickle_is_refused(tmp_path):
    path, marker = tmp_path / 'old.pth', tmp_path / 'harmed'
    path.write_bytes(
        pickle.dumps(dict(state_dict={}, x=_Reduce(os.system, f'touch {marker}')), protocol=2)
    )
    with pytest.raises(ValueError, match='old.pth: not loaded'):
        load_checkpoint_file(str(path))
    assert not marker.exists()


HAND_WRITTEN = {
    'GLOBAL os.system': b'cos\nsystem\n(S"touch harmed"\ntR.',
    'Unsupported operand 105': b'(ios\nsystem\n.',
    'Unsupported operand 130': b'\x80\x02\x82\x01.',
    'GLOBAL posix.system': b'\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch harmed\x85R.',
    'stack global': b'\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch harmed\x85R.',
    'setstate': (
        b'\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R'
        b'(K\x03X\x01\x00\x00\x00|NNNK\x01K\x01K\xfftb.'
    ),
}


@pytest.mark.parametrize('reason', HAND_WRITTEN)
def test_hand_written_pickles_are_refused(checkpoint, monkeypatch, reason):
    """Opcodes that pickle itself no longer writes, inside an otherwise sound archive with right
    checksums."""
    monkeypatch.chdir(checkpoint.parent)
    path = checkpoint.with_name('evil.pth')
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(path, 'w') as out:
        for name in source.namelist():
            out.writestr(
                name, HAND_WRITTEN[reason] if name.endswith('/data.pkl') else source.read(name)
            )
    with pytest.raises(ValueError, match='evil.pth: ') as error:
        load_checkpoint_file(str(path))
    assert ' ' not in reason or not reason[0].isupper() or reason in str(error.value)
    assert 'weights_only' not in str(error.value) and not checkpoint.with_name('harmed').exists()
    assert np.dtype('f8').isnative and np.zeros(2).sum() == 0  # the interpreter's own are as before


def test_compressed_parts_are_refused_before_they_are_inflated(checkpoint):
    """Two gigabytes of zeros in two megabytes would be written to memory."""
    path = checkpoint.with_name('bomb.pth')
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(path, 'w') as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))
        part = zipfile.ZipInfo(source.namelist()[0].split('/')[0] + '/data/9')
        part.compress_type = zipfile.ZIP_DEFLATED
        with out.open(part, 'w') as file:
            for _ in range(200):
                file.write(bytes(2**20))
    begin = time.perf_counter()
    with pytest.raises(ValueError, match='bomb.pth: .*compressed'):
        load_checkpoint_file(str(path))
    assert time.perf_counter() - begin < 3  # inflated it would take longer


def test_parts_larger_than_the_file_are_refused(checkpoint):
    """Many names for the same bytes."""
    path = checkpoint.with_name('bomb.pth')
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(path, 'w') as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))
        for _ in range(20):
            twin = copy.copy(max(out.filelist, key=lambda part: part.file_size))
            out.filelist.append(twin)
        out.filelist.sort(key=lambda part: part.header_offset)
        out._didModify = True
    with pytest.raises(ValueError, match='bomb.pth: .*larger than the file'):
        load_checkpoint_file(str(path))


def test_shared_tuples_of_a_checkpoint_are_visited_once(tmp_path):
    """Sixty tuples that contain the one before twice: 2^60 paths."""
    content = (np.arange(2),)
    for _ in range(60):
        content = (content, content)
    torch.save(dict(state_dict={}, meta=content), tmp_path / 'a.pth')
    found = load_checkpoint_file(str(tmp_path / 'a.pth'))['meta']
    while isinstance(found, tuple):
        found = found[0]
    assert found.tolist() == [0, 1]


def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / 'script.pth'))
    with pytest.raises(ValueError, match=r'script.pth: .*TorchScript archive'):
        load_checkpoint_file(str(tmp_path / 'script.pth'))


@pytest.mark.parametrize('is_zip', [True, False])
def test_damaged_checkpoints_are_named_or_harmless(checkpoint, is_zip):
    content = load_checkpoint_file(str(checkpoint))
    torch.save(content, checkpoint, _use_new_zipfile_serialization=is_zip)
    whole, rng = checkpoint.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 3, 20])):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
        checkpoint.write_bytes(damaged)
        try:
            found = load_checkpoint_file(str(checkpoint))
        except ValueError as error:
            assert str(error).startswith(f'{checkpoint}: ')
        else:
            assert not is_zip or torch.equal(found['state_dict']['weight'], torch.arange(4.0))


def test_arrays_in_checkpoints_are_as_they_were(tmp_path):
    arrays = dict(
        f=np.arange(6.0).reshape(2, 3),
        t=np.arange(6, dtype='>i4').reshape(2, 3).T,
        b=np.array([True]),
        e=np.zeros((0, 3), np.float16),
        s=np.float32(2.5),
        nested=[(np.uint8(3), np.arange(2))],
    )
    torch.save(dict(state_dict={}, meta=arrays), tmp_path / 'a.pth')
    found = load_checkpoint_file(str(tmp_path / 'a.pth'))['meta']
    for name in 'ftbe':
        np.testing.assert_array_equal(found[name], arrays[name])
        assert type(found[name]) is np.ndarray and found[name].flags.writeable
    assert (
        found['s'] == 2.5
        and type(found['s']) is np.float32
        and found['nested'][0][1].tolist() == [0, 1]
    )
    torch.save(
        dict(state_dict={}, meta=found), tmp_path / 'b.pth'
    )  # what was loaded can be saved and loaded again
    assert load_checkpoint_file(str(tmp_path / 'b.pth'))['meta']['f'].shape == (2, 3)


def test_safetensors_keep_weights_and_classes(tmp_path):
    state = dict(
        w=torch.randn(3, 4).t(), n=torch.tensor(3), half=torch.ones(2, dtype=torch.bfloat16)
    )
    path = tmp_path / 'w.safetensors'
    save_weights(path, state, ['car', 'bus'])
    found = CheckpointLoader.load_checkpoint(str(path), 'cpu')
    assert all(torch.equal(found['state_dict'][name], value) for name, value in state.items())
    assert found['meta'] == dict(dataset_meta=dict(classes=['car', 'bus'])) and list(
        tmp_path.iterdir()
    ) == [path]
    save_weights(path, state)
    assert load_checkpoint_file(str(path))['meta'] == {}
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match='w.safetensors: damaged'):
        load_checkpoint_file(str(path))
    with pytest.raises(ValueError, match='released as .safetensors'):
        save_weights(tmp_path / 'a.pth', state)


@pytest.mark.slow
def test_weights_are_exported(root, checkpoint):
    out = checkpoint.with_suffix('.safetensors')
    command = [sys.executable, '-W', 'ignore', str(root / 'tools/export_weights.py')]
    result = subprocess.run([*command, str(checkpoint), str(out)], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout == f'{out}: 1 tensors, 4 numbers, classes car\n'
    assert load_checkpoint_file(str(out))['meta']['dataset_meta']['classes'] == ['car']
    result = subprocess.run(
        [*command, str(checkpoint), str(out), '--half'], capture_output=True, text=True
    )
    assert result.returncode == 0
    (state,) = load_checkpoint_file(str(out))['state_dict'].values()
    assert state.dtype == torch.float16
    result = subprocess.run([*command, 'none.pth', str(out)], capture_output=True, text=True)
    assert (
        result.returncode == 1
        and result.stderr == 'export_weights.py: there is no checkpoint none.pth\n'
    )


def test_weights_that_fp16_cannot_represent_are_named(tmp_path):
    state = dict(fine=torch.ones(2), large=torch.tensor([1.0, -7e4]))
    with pytest.raises(ValueError, match='large: fp16 .* 70000'):
        save_weights(tmp_path / 'w.safetensors', state, half=True)
    assert not list(tmp_path.iterdir())


def test_the_latest_checkpoint_is_found(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for name in (
        'epoch_9.pth',
        'epoch_10.pth',
        'epoch_11.pth.partial',
        'best_NDS_epoch_12.pth',
        'weights_13.txt',
    ):
        (tmp_path / name).write_text('')
    assert latest_checkpoint(tmp_path) == str(tmp_path / 'epoch_10.pth')
    for note, found in (
        ('', 10),
        ('gone.pth', 10),
        (f'{tmp_path}/epoch_9.pth\n', 9),
        ('/moved/away/epoch_9.pth', 9),
    ):
        (tmp_path / 'last_checkpoint').write_text(note)
        assert latest_checkpoint(tmp_path) == str(tmp_path / f'epoch_{found}.pth')


@pytest.mark.parametrize('keep', [0, 10, 500, -40])
def test_truncated_checkpoints_are_named(checkpoint, keep):
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    with pytest.raises(ValueError, match='epoch_1.pth: .*damaged'):
        load_checkpoint_file(str(checkpoint))


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint .*none.pth'):
        load_checkpoint_file(str(tmp_path / 'none.pth'))
