"""Commands that are killed, rerun, or started twice at the same time."""

import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from stratified3d import resumable
from stratified3d.datasets.io.workers import limit_worker
from stratified3d.resumable import (
    LineRecord,
    acquire_folder,
    atomic_write,
    check_room,
    describe_error,
    file_lock,
    name_file,
    run_batches,
    sole_writer,
    worker_pool,
)
from stratified3d.simulation import NuScenesSettings, simulate_dataset

RECORD = 'conversion.json'


def test_folder_of_two_processes_has_the_settings_of_the_first(tmp_path, monkeypatch):
    """Another process writes its settings just before ours would be."""
    link, path = os.link, tmp_path / 'out' / RECORD

    def late(source, target):
        path.write_text(json.dumps(dict(a=2)))
        link(source, target)

    monkeypatch.setattr(resumable.os, 'link', late)
    with pytest.raises(ValueError, match='a 2 instead of 1'):
        acquire_folder(tmp_path / 'out', dict(a=1), RECORD)
    assert json.loads(path.read_text()) == dict(a=2)
    assert os.listdir(path.parent) == [RECORD]
    acquire_folder(tmp_path / 'out', dict(a=2), RECORD)


def test_folder_without_links_and_with_partial_records(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, 'no links')

    monkeypatch.setattr(resumable.os, 'link', refuse)
    (tmp_path / f'{RECORD}.host.1.partial').write_text('{')  # of a killed process
    acquire_folder(tmp_path, dict(a=1), RECORD)
    acquire_folder(tmp_path, dict(a=1), RECORD)
    (tmp_path / RECORD).write_text('{"a"')
    with pytest.raises(ValueError, match=f'{RECORD} is damaged .*delete it'):
        acquire_folder(tmp_path, dict(a=1), RECORD)


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / 'thesis.txt').write_text('precious')
    with pytest.raises(ValueError, match='not empty'):
        acquire_folder(tmp_path, dict(a=1), RECORD)
    with pytest.raises(FileExistsError, match='is a file'):
        acquire_folder(tmp_path / 'thesis.txt', dict(a=1), RECORD)
    acquire_folder(tmp_path / 'new/folder', dict(a=1, b=[2]), RECORD)
    assert (tmp_path / 'new/folder' / RECORD).read_bytes() == b'{"a": 1, "b": [2]}'
    with pytest.raises(ValueError, match='b .2. instead of 3, c None instead of 4.*another folder'):
        acquire_folder(tmp_path / 'new/folder', dict(a=1, b=3, c=4), RECORD)
    (tmp_path / 'new/folder' / RECORD).write_text('[]')
    with pytest.raises(ValueError, match='other settings'):
        acquire_folder(tmp_path / 'new/folder', dict(a=1, b=3), RECORD)


def test_locks_are_exclusive_or_shared(tmp_path, monkeypatch):
    path = tmp_path / 'lock'
    with file_lock(path, is_shared=True) as first, file_lock(path, is_shared=True) as second:
        assert first and second
        with file_lock(path, wait=False) as third:
            assert not third
    with file_lock(path, wait=False) as alone:
        assert alone

    def none(*_):
        raise OSError(errno.ENOSYS, 'Function not implemented')

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, 'flock', none)
        for answer in (True, False):
            with (
                pytest.warns(UserWarning, match='without locks'),
                file_lock(path, if_unsupported=answer) as held,
            ):
                assert held == answer
    monkeypatch.setattr(resumable, 'fcntl', None)
    with pytest.warns(UserWarning, match='without locks'), file_lock(path) as held:
        assert held
    with pytest.raises(OSError, match='rerun'), file_lock(tmp_path / 'none/lock'):
        pass


def test_second_writer_waits_a_moment_and_is_refused(tmp_path, monkeypatch):
    record = tmp_path / RECORD
    monkeypatch.setattr(resumable, 'PATIENCE', 0.2)
    with sole_writer(record):
        refused = pytest.raises(BlockingIOError, match=f'another process .*{tmp_path}')
        with refused, sole_writer(record):
            pass
        with file_lock(record, wait=False) as is_held:
            assert not is_held
    with sole_writer(record):
        assert record.read_bytes() == b''


@pytest.mark.slow
def test_two_simulations_in_one_folder_end_in_one_sentence(root, tmp_path, monkeypatch):
    """The second one is refused and does no harm to the first one."""
    out = tmp_path / 'out'
    command = [sys.executable, str(root / 'tools/simulate.py'), str(out), '--scenes', '1+1']
    command += ['--keyframes', '3', '--workers', '1']
    monkeypatch.setattr(resumable, 'PATIENCE', 0.0)
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list(out.glob('.simulation/*/*.json')):
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGSTOP)
        with pytest.raises(BlockingIOError) as error:
            simulate_dataset(out, NuScenesSettings(train=1, val=1, keyframes=3), workers=1)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert describe_error(error.value) == (
        f"another process is writing '{out}'; wait until it ends, or take another folder"
    )
    assert first.wait() == 0
    assert (out / 'v1.0-mini').is_dir() and not list(out.rglob('*.partial'))


def test_failed_write_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / 'frame.bin'
    for is_shared in (False, True):
        atomic_write(path, b'whole', is_shared=is_shared)
        with monkeypatch.context() as patch:
            patch.setattr(resumable.os, 'replace', _fill_disk)
            with pytest.raises(OSError, match='No space left.*rerun') as error:
                atomic_write(path, b'other', is_shared=is_shared)
        assert error.value.filename == str(path) and error.value.errno == errno.ENOSPC
        assert os.listdir(tmp_path) == ['frame.bin'] and path.read_bytes() == b'whole'


def _fill_disk(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')


def test_errors_keep_the_name_of_the_inner_file(tmp_path):
    with pytest.raises(OSError) as error, name_file(tmp_path), name_file(tmp_path / 'inner'):
        _fill_disk()
    assert error.value.filename == str(tmp_path / 'inner')
    assert str(error.value).count('rerun') == 1
    assert describe_error(error.value).startswith(f'{tmp_path}/inner: No space left on device; fix')
    assert describe_error(ValueError('wrong')) == describe_error(OSError('wrong')) == 'wrong'


def test_too_small_a_disk_is_refused(tmp_path):
    check_room(tmp_path, 0, 'frames')
    with pytest.raises(OSError, match='fewer frames') as error:
        check_room(tmp_path, 1e30, 'frames')
    assert error.value.errno == errno.ENOSPC


def test_lines_of_a_killed_process_end_with_the_last_complete_one(tmp_path):
    path = tmp_path / 'progress.jsonl'
    record = LineRecord(path)
    assert record.lines == [] and not path.exists()
    record.append('[1]')
    with open(path, 'a') as file:
        file.write('[2')
    record = LineRecord(path)
    assert record.lines == ['[1]']
    record.append('[3]')
    assert path.read_text() == '[1]\n[3]\n' and record.lines == ['[1]', '[3]']


def _square(number):
    return number**2


def _end(number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_batches_are_done_by_any_number_of_workers():
    calls = []
    for workers in (1, 2):
        batches = [(number,) for number in range(5)]
        results = run_batches(_square, batches, workers, before_fork=lambda: calls.append(1))
        assert sorted(results) == [0, 1, 4, 9, 16]
    assert calls == [1]


def test_killed_worker_is_explained():
    batches = [(number,) for number in range(5)]
    with pytest.raises(OSError, match='one of the 2 .*killed') as error:
        list(run_batches(_end, batches, 2, before_fork=lambda: None))
    assert error.value.errno == errno.ENOMEM


def _count_threads_and_faults():
    """Threads of torch, and page faults of large arrays after the first."""
    np.ones(1 << 23)  # 64 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for i in range(4):
        np.ones((1 << 23) - (i + 1) * (1 << 15))
    return torch.get_num_threads(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason="the settings are glibc's")
def test_workers_have_one_thread_and_reuse_their_memory():
    with worker_pool(1, limit_worker) as pool:
        threads, faults = pool.submit(_count_threads_and_faults).result()
    assert threads == 1
    assert faults < 1000  # 4 x 16,384 pages when they are mapped anew
