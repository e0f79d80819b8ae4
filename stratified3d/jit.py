"""One decorator for every kernel that numba compiles."""

from __future__ import annotations

from collections.abc import Callable

import numba


def compiled(function: Callable) -> Callable:
    """Compile a function for the CPU and keep the machine code on disk where that is possible.

    numba stores it beside the module, else in the user's cache folder (or `$NUMBA_CACHE_DIR`).
    Where neither can be written (a read-only installation without a home), numba raises when the
    decorator runs; then the kernel is compiled once per process. Division follows IEEE and sums
    keep their order, so that results are the same on every call.
    """
    try:
        return numba.njit(cache=True, nogil=True, error_model='numpy')(function)
    except RuntimeError:
        return numba.njit(nogil=True, error_model='numpy')(function)
