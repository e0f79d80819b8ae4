"""Large blocks that keep their pages: glibc's malloc, told not to map every large array anew."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

# of glibc's malloc.h, and what its manual gives as the defaults
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_TRIM_THRESHOLD, _MMAP_MAX = 128 * 1024, 65536


def _find_glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == 'linux' else None
    is_free = hasattr(library, 'mallopt') and not any(
        name.startswith('MALLOC_') for name in os.environ
    )
    return library if is_free else None


def keep_large_blocks() -> bool:
    """Let freed blocks of any size stay in this process's heap, to be used again; returns whether
    they do.

    glibc maps every large block anew and the kernel fills it with zeros page by page. Does nothing
    under other C libraries or allocators, or where the environment has settings of its own
    (MALLOC_*). Processes forked from this one (a data loader's workers) give back what was free in
    it, or they would keep it as it was then.
    """
    library = _find_glibc()
    if library is not None:
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        _free_in_children()
    return library is not None


def map_large_blocks() -> None:
    """Undo `keep_large_blocks`: large blocks are mapped anew and unmapped when freed, and free
    pages go back now."""
    library = _find_glibc()
    if library is not None:
        library.mallopt(_M_MMAP_MAX, _MMAP_MAX)
        library.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
        library.malloc_trim(0)


def return_free_pages() -> None:
    """Give what the heap's fragments hold back to the system, where `keep_large_blocks` can keep
    any."""
    library = _find_glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _free_in_children() -> None:
    os.register_at_fork(after_in_child=return_free_pages)
