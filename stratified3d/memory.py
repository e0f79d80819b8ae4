"""Memory of long runs on a CPU: large blocks are kept for reuse while there is room."""

import ctypes
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import psutil

ROOT = Path('/')
# parameters of glibc's mallopt, and the defaults that its manual gives
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_TRIM_THRESHOLD, _MMAP_MAX = 128 * 1024, 65536


def keep_large_blocks() -> bool:
    """Keep freed blocks of any size in this process's heap for reuse; returns whether it does.

    glibc maps every large block anew, and the kernel fills it with zeros page by page. Nothing
    changes with other C libraries or allocators, or where the environment has settings of its own
    (MALLOC_*). Processes forked from this one (workers of a data loader) give back what was free in
    it, or they would keep it as it was then.
    """
    is_kept = _set_malloc(0, 2**31 - 1)
    _free_in_children()
    return is_kept


def map_large_blocks() -> None:
    """Undo `keep_large_blocks`, and give free pages back to the system."""
    _set_malloc(_MMAP_MAX, _TRIM_THRESHOLD)
    return_free_pages()


def return_free_pages() -> None:
    """Give free pages inside the heap back to the system, where `keep_large_blocks` has effect."""
    if library := _find_glibc():
        library.malloc_trim(0)


def _set_malloc(mmap_max: int, trim_threshold: int) -> bool:
    if library := _find_glibc():
        library.mallopt(_M_MMAP_MAX, mmap_max)
        library.mallopt(_M_TRIM_THRESHOLD, trim_threshold)
    return library is not None


@cache
def _find_glibc() -> ctypes.CDLL | None:
    is_set = any(name.startswith('MALLOC_') for name in os.environ)
    library = ctypes.CDLL(None) if sys.platform == 'linux' and not is_set else None
    return library if hasattr(library, 'mallopt') else None


@cache
def _free_in_children() -> None:
    os.register_at_fork(after_in_child=return_free_pages)


def is_memory_short(min_available: float = 0.25, max_own: float = 0.5) -> bool:
    """Whether memory runs short on this machine or in a control group (container, batch job).

    Args:
        min_available: share of the memory, below which it is short.
        max_own: share of the machine's memory that the addresses of this process's data may span,
            free ones too: a process that spans more than all cannot fork.
    """
    machine = psutil.virtual_memory()
    rooms = [(machine.total, machine.available), *_group_rooms()]
    own = getattr(psutil.Process().memory_info(), 'data', 0)  # not on every system
    is_short = any(available < min_available * total for total, available in rooms)
    return is_short or own > max_own * machine.total


def _group_rooms() -> Iterator[tuple[int, int]]:
    """(limit, available) bytes of the control groups of this process that have a limit."""
    for line in _read(ROOT / 'proc/self/cgroup').splitlines():  # hierarchy:controllers:path
        controllers, _, path = line.partition(':')[2].partition(':')
        is_first_version = 'memory' in controllers.split(',')
        if is_first_version or not controllers:
            mount = ROOT / 'sys/fs/cgroup' / ('memory' if is_first_version else '')
            group = mount / path.lstrip('/')
            # also the mount itself: a container may see its own group there
            for folder in (group, *group.parents):
                if folder.is_relative_to(mount):
                    yield from _group_room(folder)


def _group_room(group: Path) -> Iterator[tuple[int, int]]:
    """(limit, available) bytes of a group, if it has a limit; names of version 1 come last."""
    limits = [_read(group / f'memory.{name}') for name in ('max', 'high', 'limit_in_bytes')]
    used = _read(group / 'memory.current') or _read(group / 'memory.usage_in_bytes')
    numbers = [int(limit) for limit in limits if limit.isdigit()]  # or 'max'
    if numbers and used:
        sizes = dict(line.split() for line in _read(group / 'memory.stat').splitlines())
        # files in memory make room when it is needed
        spare = ('inactive_file', 'active_file', 'slab_reclaimable')
        freed = sum(int(sizes.get(f'total_{name}', sizes.get(name, 0))) for name in spare)
        yield min(numbers), min(numbers) - int(used) + freed


def _read(path: Path) -> str:
    return path.read_text(errors='surrogateescape').strip() if path.is_file() else ''
