"""How much memory a process on Linux may have: its machine's, or less where a container or a batch system limits it."""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path('/')


class _Version(NamedTuple):
    """Of control groups: mount; limit, used: files of a group; files: entries of memory.stat that count files held in
    memory, which make room when it is needed."""

    mount: str
    limit: str
    used: str
    files: tuple[str, ...]


# by the controller that /proc/self/cgroup names
_VERSIONS = {
    '': _Version('sys/fs/cgroup', 'memory.max', 'memory.current', ('inactive_file', 'active_file')),
    'memory': _Version('sys/fs/cgroup/memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes',
                       ('total_inactive_file', 'total_active_file')),
}


def is_memory_short(available: float = 0.25, own: float = 0.5) -> bool:
    """Whether less than a share of the memory is available, or the addresses of this process's data, free ones too,
    span more than a share of it: a process that spans more than all cannot fork. False where nobody says."""
    try:
        data = int((ROOT / 'proc/self/statm').read_text().split()[5]) * os.sysconf('SC_PAGE_SIZE')
    except OSError:  # another system
        return False
    return any(free < available * total or data > own * total for total, free in [*_machine(), *_groups()])


def _machine() -> Iterator[tuple[int, int]]:
    """(total, available) bytes, unless the kernel is too old to say."""
    sizes = _numbers(ROOT / 'proc/meminfo')
    if {'MemTotal:', 'MemAvailable:'} <= sizes.keys():
        yield 1024 * sizes['MemTotal:'], 1024 * sizes['MemAvailable:']


def _groups() -> Iterator[tuple[int, int]]:
    """(limit, available) bytes of each control group that this process is in and that has a limit."""
    try:
        lines = (ROOT / 'proc/self/cgroup').read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(':', 2)
        for version in (_VERSIONS[name] for name in controllers.split(',') if name in _VERSIONS):
            mount = ROOT / version.mount
            group = mount / path.lstrip('/')
            # a container may see its own group as the mount itself, though the path is the one outside of it
            for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(mount))):
                yield from _limit(folder, version)


def _limit(group: Path, version: _Version) -> Iterator[tuple[int, int]]:
    try:
        limit, used = (int((group / name).read_text()) for name in (version.limit, version.used))
    except (OSError, ValueError):  # no such group here, or no limit: 'max'
        return
    stat = _numbers(group / 'memory.stat')
    yield limit, limit - used + sum(stat.get(name, 0) for name in version.files)


def _numbers(path: Path) -> dict[str, int]:
    """{name: number} of a file that has one of each in every line."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in map(str.split, lines)}
