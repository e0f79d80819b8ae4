"""Datasets on disk: settings, workers, and what survives kills and full disks."""

import errno
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stratified3d.simulation import NuScenesSettings, simulate_dataset
from stratified3d.simulation.nuscenes import dataset

ROOT = Path(__file__).parents[3]
TINY = NuScenesSettings(train=1, val=1, keyframes=3)


def digest(root: Path) -> dict[str, str]:
    """{relative path: hash} of every file."""
    return {
        str(path.relative_to(root)): hashlib.md5(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def test_settings_are_checked():
    for settings, text in (
        (NuScenesSettings(version='v1.0-test'), 'none of v1.0-mini'),
        (NuScenesSettings(train=9), 'at most 8'),
        (NuScenesSettings(keyframes=1), '2 to 41'),
        (NuScenesSettings(sweeps=11), '1 to 10'),
        (NuScenesSettings(seed=-1), 'seed -1'),
        (NuScenesSettings(train=0, val=0), 'at least one'),
    ):
        with pytest.raises(ValueError, match=text):
            settings.check()
    assert NuScenesSettings().bytes() < 1.5e9


def test_the_same_bytes_for_any_number_of_workers(tiny_set, tmp_path):
    seen = []
    assert simulate_dataset(
        tmp_path / 'two', TINY, workers=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[0] == (0, 6)
    assert seen[-1] == (6, 6)
    assert digest(tmp_path / 'two') == digest(tiny_set)
    assert not simulate_dataset(tmp_path / 'two', TINY)  # complete already


def test_a_dataset_of_another_sensor_has_its_turns_and_mount(tmp_path):
    settings = NuScenesSettings(train=1, val=0, keyframes=2, sweeps=3, sensor='vlp16')
    assert simulate_dataset(tmp_path / 'vlp16', settings, workers=1)
    # 10 Hz: of the half second before the last keyframe, every second sweep of 20 Hz
    files = sorted((tmp_path / 'vlp16').rglob('*.pcd.bin'))
    assert len(files) == 1 + 3
    assert {file.stat().st_size for file in files} == {1800 * 16 * 5 * 4}
    stamps = sorted(int(file.name.split('__')[2].split('.')[0]) for file in files)
    assert [b - a for a, b in zip(stamps[1:], stamps[2:])] == [100_000, 100_000]
    total = sum(file.stat().st_size for file in files)
    assert total <= settings.bytes() < 1.1 * total
    with pytest.raises(ValueError, match='other settings|sensor'):
        simulate_dataset(
            tmp_path / 'vlp16', NuScenesSettings(train=1, val=0, keyframes=2, sweeps=3)
        )


def command(*arguments, **options):
    return [sys.executable, str(ROOT / 'tools/simulate.py'), *map(str, arguments)]


@pytest.mark.skipif(os.name != 'posix', reason='signals')
@pytest.mark.slow
def test_killed_and_resumed(tiny_set, tmp_path):
    """kill -9 in the middle, rubbish left behind: the next run finishes with the same bytes."""
    out = tmp_path / 'killed'
    process = subprocess.Popen(
        command(out, '--scenes', '1+1', '--keyframes', 3, '--workers', 2), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(out.glob('.simulation/*/*.json')):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)  # the parent alone: its workers must notice
    process.wait()
    assert list(out.glob('.simulation/*/*.json')), 'it had begun'
    assert not (out / 'v1.0-mini').exists(), 'tables come last'
    whole = {path.name: path.stat().st_size for path in out.rglob('*.pcd.bin')}
    assert set(whole.values()) <= {dataset.SWEEP_BYTES}
    (out / 'sweeps/LIDAR_TOP/x.pcd.bin.99.partial').write_bytes(b'half')
    (out / 'v1.0-mini.partial').mkdir()
    (out / 'v1.0-mini.partial/scene.json').write_text('[')
    assert simulate_dataset(out, TINY, workers=1)
    time.sleep(1.0)  # whatever a worker of the killed run may still do
    assert digest(out) == digest(tiny_set)


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_write_that_fails_leaves_nothing_half_written(tmp_path):
    """A file-size limit below a sweep's size stands for a disk that fills up while the file is
    written."""
    out = tmp_path / 'full'
    result = subprocess.run(
        command(out, '--scenes', '1+1', '--keyframes', 2, '--sweeps', 1, '--workers', 1),
        text=True,
        capture_output=True,
        preexec_fn=lambda: limit_files(300_000),
    )
    assert result.returncode == 1
    assert 'File too large' in result.stderr
    assert '.pcd.bin' in result.stderr
    assert 'Traceback' not in result.stderr
    assert not list(out.rglob('*.pcd.bin'))
    assert not (out / 'v1.0-mini').exists()


def test_a_disk_that_fills_up_in_a_worker(tmp_path, monkeypatch):
    calls = []

    def full(path, data):
        calls.append(path)  # counted in each worker
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        return write(path, data)

    write = Path.write_bytes
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError, match='rerun') as error:
        simulate_dataset(tmp_path / 'out', TINY, workers=2)
    assert error.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert not (tmp_path / 'out/v1.0-mini').exists()


def test_too_small_a_disk_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10, 9, 1_000_000)
    )
    with pytest.raises(OSError, match='0.00 GB free, the dataset needs 0.03 GB'):
        simulate_dataset(tmp_path / 'out', TINY)


def test_folders_that_hold_something_else(tiny_set, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(tiny_set, copy)
    with pytest.raises(ValueError, match='other settings .*seed 0 instead of 7'):
        simulate_dataset(copy, NuScenesSettings(train=1, val=1, keyframes=3, seed=7))
    (tmp_path / 'foreign').mkdir()
    (tmp_path / 'foreign/thesis.txt').write_text('precious')
    with pytest.raises(ValueError, match='not empty'):
        simulate_dataset(tmp_path / 'foreign', TINY)
    (tmp_path / 'file').write_text('')
    with pytest.raises(FileExistsError, match='is a file'):
        simulate_dataset(tmp_path / 'file', TINY)
    with pytest.raises(ValueError, match="'samples'"):
        simulate_dataset(tmp_path / 'my_samples', TINY)


def test_command_line_errors(tmp_path):
    for arguments, text in (
        (('--version', 'v2'), "version 'v2' is none of"),
        (('--scenes', 'x'), "'x' is neither"),
        (('--scenes', '9+1'), 'at most 8 training'),
        (('--sensor', 'hdl'), "no simulated sensor 'hdl'"),
        (('--sensor', 'kitti', '--format', 'waymo'), "--sensor are nuScenes'"),
    ):
        result = subprocess.run(
            command(tmp_path / 'out', *arguments), capture_output=True, text=True
        )
        assert result.returncode != 0
        assert text in result.stderr
        assert 'Traceback' not in result.stderr
    result = subprocess.run(command('/proc/nothing/here'), capture_output=True, text=True)
    assert result.returncode == 1
    assert '/proc/nothing' in result.stderr
    assert 'Traceback' not in result.stderr
    text = subprocess.run(command('--help'), capture_output=True, text=True).stdout
    assert 'examples:' in text


def test_it_runs_where_nothing_can_be_cached(tmp_path):
    """No writable cache folder for numba: the kernels are compiled in the process."""
    code = (
        'from stratified3d import jit\n'
        'import numba\n'
        'def njit(*args, cache=False, **options):\n'
        "    if cache: raise RuntimeError('cannot cache function: no locator available')\n"
        '    return numba.core.decorators.njit(*args, **options)\n'
        'jit.numba = type("numba", (), {"njit": staticmethod(njit)})\n'
        'print(jit.compiled(lambda x: x + 1)(41))\n'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == '42', result.stderr
