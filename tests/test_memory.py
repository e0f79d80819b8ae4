"""When memory is short, on machines and in control groups that are folders of files here."""

import os
from types import SimpleNamespace

import pytest

from stratified3d import memory
from stratified3d.memory import is_memory_short

PAGE = os.sysconf('SC_PAGE_SIZE')


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes a machine of 10,000 pages, and writes files of /proc and /sys: {path: text}."""
    monkeypatch.setattr(memory, 'ROOT', tmp_path)

    def make(files=(), available=5000, data=100):
        total = SimpleNamespace(total=10000 * PAGE, available=available * PAGE)
        own = SimpleNamespace(data=data * PAGE)
        process = SimpleNamespace(memory_info=lambda: own)
        psutil = SimpleNamespace(virtual_memory=lambda: total, Process=lambda: process)
        monkeypatch.setattr(memory, 'psutil', psutil)
        for path, text in dict(files).items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text, errors='surrogateescape')

    return make


@pytest.mark.parametrize(
    'available, data, short', [(2600, 4900, False), (2400, 100, True), (9000, 5100, True)]
)
def test_memory_is_short_below_a_quarter_or_where_half_is_taken(available, data, short, machine):
    machine(available=available, data=data)
    assert is_memory_short() == short


def test_memory_of_this_machine_is_read():
    assert is_memory_short(min_available=1.1)
    assert is_memory_short(min_available=0.0, max_own=0.0)
    assert not is_memory_short(min_available=0.0, max_own=1e3)


def group(folder, version, limit, used, spare):
    """Files of a group; what can make room is split over all entries that count."""
    limit, used = (
        value if isinstance(value, str) else str(value * PAGE) for value in (limit, used)
    )
    if version == 2:
        return {
            f'{folder}/memory.max': limit,
            f'{folder}/memory.high': 'max',
            f'{folder}/memory.current': used,
            f'{folder}/memory.stat': f'anon 9\ninactive_file {spare * PAGE // 2}\n'
            f'active_file {spare * PAGE // 4}\nslab_reclaimable {spare * PAGE // 4}\n',
        }
    return {
        f'{folder}/memory.limit_in_bytes': limit,
        f'{folder}/memory.usage_in_bytes': used,
        f'{folder}/memory.stat': f'active_file 9\ntotal_inactive_file {spare * PAGE // 2}\n'
        f'total_active_file {spare * PAGE // 2}\n',
    }


@pytest.mark.parametrize('used, spare, short', [(700, 0, False), (800, 0, True), (990, 280, False)])
@pytest.mark.parametrize(
    'version, line, mount',
    [(2, '0::/', 'sys/fs/cgroup'), (1, '3:cpu,memory:/', 'sys/fs/cgroup/memory')],
)
@pytest.mark.parametrize(
    'own, limited',
    [
        ('', ''),  # a container that sees its own group at the root
        ('batch/job', 'batch/job'),
        ('batch/job', 'batch'),  # the limit is one above
        ('outside/of/this', ''),  # the path is the one outside of the container
    ],
)
def test_what_a_control_group_allows_counts(
    own, limited, version, line, mount, used, spare, short, machine
):
    machine(
        {
            'proc/self/cgroup': f'1:cpuset:/other\n{line}{own}\n',
            **group(f'{mount}/{limited}'.rstrip('/'), version, 1000, used, spare),
        }
    )
    assert is_memory_short() == short


def test_a_group_that_is_slowed_down_at_its_limit_counts(machine):
    folder = 'sys/fs/cgroup/user'
    machine(
        {
            'proc/self/cgroup': '0::/user\n',
            **group(folder, 2, 'max', 900, 0),
            f'{folder}/memory.high': f'{1000 * PAGE}\n',
        }
    )
    assert is_memory_short()


def test_groups_without_a_limit_allow_everything(machine):
    machine({'proc/self/cgroup': '0::/user\n', **group('sys/fs/cgroup/user', 2, 'max', 4000, 0)})
    assert not is_memory_short()
    machine(
        {
            'proc/self/cgroup': '4:memory:/user\n',
            **group('sys/fs/cgroup/memory/user', 1, '9223372036854771712', 4000, 0),
        }
    )
    assert not is_memory_short()


def test_damaged_groups_are_no_reason_to_stop(machine):
    machine({'proc/self/cgroup': '\n0\n0:memory\n0::/\udcff\n'})
    assert not is_memory_short()
    machine({'sys/fs/cgroup/memory.max': '1'})
    assert not is_memory_short()
