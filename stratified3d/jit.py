"""One decorator for every kernel that numba compiles."""

from __future__ import annotations

from collections.abc import Callable

import numba


def compiled(function: Callable) -> Callable:
    """Compile for the CPU, kept on disk where that is possible.

    numba stores machine code beside the module, else in the user's cache folder (or
    `$NUMBA_CACHE_DIR`). Where none of them is writable (a read-only installation without a home),
    it raises when the decorator runs; the kernel is then compiled once per process instead. IEEE
    division and no reassociation, so that results are the same on every call.
    """
    try:
        return numba.njit(cache=True, nogil=True, error_model='numpy')(function)
    except RuntimeError:
        return numba.njit(nogil=True, error_model='numpy')(function)
