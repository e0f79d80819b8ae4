"""How much memory a process on Linux may have: its machine's, or less where a container or a batch
system limits it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path('/')


class _Version(NamedTuple):
    """Of control groups: mount; limits, used: files of a group; spare: entries of memory.stat that
    make room when it is needed, as files held in memory do."""

    mount: str
    limits: tuple[str, ...]
    used: str
    spare: tuple[str, ...]


# by the controller that /proc/self/cgroup names
_VERSIONS = {
    '': _Version(
        'sys/fs/cgroup',
        ('memory.max', 'memory.high'),
        'memory.current',
        ('inactive_file', 'active_file', 'slab_reclaimable'),
    ),
    'memory': _Version(
        'sys/fs/cgroup/memory',
        ('memory.limit_in_bytes',),
        'memory.usage_in_bytes',
        ('total_inactive_file', 'total_active_file'),
    ),
}


def is_memory_short(available: float = 0.25, own: float = 0.5) -> bool:
    """Whether less than a share of the memory is available, or the addresses of this process's
    data, free ones too, span more than a share of the machine's: one that spans more than all
    cannot fork. False where nobody says."""
    machine = [*_machine()]
    return any(free < available * total for total, free in [*machine, *_groups()]) or any(
        _data() > own * total for total, _ in machine
    )


def _machine() -> Iterator[tuple[int, int]]:
    """(total, available) bytes, unless the kernel is too old to say."""
    sizes = _numbers(ROOT / 'proc/meminfo')
    if {'MemTotal:', 'MemAvailable:'} <= sizes.keys():
        yield 1024 * sizes['MemTotal:'], 1024 * sizes['MemAvailable:']


def _data() -> int:
    """Bytes that the addresses of this process's data span, 0 where nobody says."""
    counts = [*_lines(ROOT / 'proc/self/statm'), ''][0].split()
    return int(counts[5]) * os.sysconf('SC_PAGE_SIZE') if len(counts) > 5 else 0


def _groups() -> Iterator[tuple[int, int]]:
    """(limit, available) bytes of each control group that this process is in and that has a
    limit."""
    for line in _lines(ROOT / 'proc/self/cgroup'):
        _, _, entry = line.partition(':')
        controllers, _, path = entry.partition(':')
        for version in (_VERSIONS[name] for name in controllers.split(',') if name in _VERSIONS):
            mount = ROOT / version.mount
            group = mount / path.lstrip('/')
            # a container may see its own group as the mount itself, though the path is the one
            # outside of it
            for folder in (
                group,
                *(parent for parent in group.parents if parent.is_relative_to(mount)),
            ):
                yield from _limit(folder, version)


def _limit(group: Path, version: _Version) -> Iterator[tuple[int, int]]:
    """(limit, available) bytes of a group, unless it is not there or has none."""
    limits = [
        int(line) for name in version.limits for line in _lines(group / name) if line.isdigit()
    ]  # or 'max'
    used = [int(line) for line in _lines(group / version.used)]
    if limits and used:
        entries = _numbers(group / 'memory.stat')
        yield (
            min(limits),
            min(limits) - used[0] + sum(entries.get(name, 0) for name in version.spare),
        )


def _numbers(path: Path) -> dict[str, int]:
    """{name: number} of a file that has one of each in a line."""
    rows = [line.split() for line in _lines(path)]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _lines(path: Path) -> list[str]:
    """Of a text file; none where it cannot be read."""
    try:
        return path.read_text(errors='surrogateescape').splitlines()
    except OSError:
        return []
