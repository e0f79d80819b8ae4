"""Ctrl-C in the conversions of own data and of Waymo; the quickstart's steps have theirs in
`test_quickstart.py`."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from stratified3d.datasets.io.info_files import read_info_file

pytestmark = pytest.mark.slow


@pytest.fixture
def custom_command(root, tmp_path):
    """Converts frames enough to be interrupted in; the file that shows that it is at work."""
    folder = tmp_path / 'raw'
    folder.mkdir()
    points = np.random.default_rng(0).uniform(0, 50, (20_000, 4)).astype(np.float32)
    for i in range(300):
        np.save(folder / f'{i:03d}.npy', points)
    out = tmp_path / 'out'
    arguments = [str(folder), '--out', str(out), '--split', 'test']
    return [sys.executable, str(root / 'tools/convert_custom.py'), *arguments], out


@pytest.fixture
def waymo_command(root, waymo_set, tmp_path):
    out = tmp_path / 'out'
    return [sys.executable, str(root / 'tools/waymo_convert.py'), str(waymo_set), str(out)], out


def interrupt_at_work(process, out):
    """Press Ctrl-C once there are results; the status and all that was printed."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not list(out.glob('*/*')):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


@pytest.mark.parametrize('name', ['custom', 'waymo'])
def test_interrupted_conversion_ends_with_one_line_and_resumes(
    name, request, start_group, check_group_is_gone
):
    command, out = request.getfixturevalue(f'{name}_command')
    process = start_group(command)
    status, output = interrupt_at_work(process, out)
    check_group_is_gone(process.pid)
    assert status == 130, output[-3000:]
    assert 'Traceback' not in output and output.count('interrupted') == 1
    assert output.endswith('interrupted; rerun the same command to resume\n')
    assert not list(out.glob('*infos*.pkl')), 'it ended before it was interrupted'

    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    infos = sorted(out.glob('*infos*.pkl'))
    assert infos and all(
        read_info_file(path)['data_list'] for path in infos if 'db' not in path.name
    )
