"""What both writers of datasets share: whole files, a folder of one's own, worker processes."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

PARTIAL = '.partial'
STATE = 'simulation.json'


def write_file(path: Path, data: bytes) -> None:
    """Write a file that is either whole or absent."""
    partial = path.with_name(f'{path.name}.{os.getpid()}{PARTIAL}')
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:  # an error of write() does not say where
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _end_with_parent(parent: int) -> None:
    """Let a worker end when its parent was killed; it would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def claim_folder(root: Path, wanted: dict) -> None:
    """Make the folder that of a dataset with these settings, or say why it cannot be."""
    state = root / STATE
    if root.exists() and not root.is_dir():
        raise FileExistsError(errno.EEXIST, f"'{root}' is a file; name a folder for the dataset")
    if state.exists():
        try:
            found = json.loads(state.read_text())
        except ValueError:
            found = {}
        if found != wanted:
            differ = ', '.join(
                f'{key} {found.get(key)} instead of {wanted[key]}'
                for key in wanted
                if found.get(key) != wanted[key]
            )
            raise ValueError(
                f"'{root}' holds a simulated dataset of other settings ({differ}); name another folder, or "
                'delete this one'
            )
    elif root.exists() and any(root.iterdir()):
        raise ValueError(
            f"'{root}' is not empty and holds no simulated dataset; name another folder"
        )
    root.mkdir(parents=True, exist_ok=True)
    write_file(state, json.dumps(wanted, indent=1).encode())


@contextlib.contextmanager
def explaining() -> Iterator[None]:
    """Let an OSError that names a file say how the simulation goes on."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise OSError(
            error.errno,
            f'{error.strerror}; mend that, then run the same command again to go on',
            error.filename,
        ) from error


def check_room(root: Path, need: float, what: str) -> None:
    """Raise OSError where a disk has less than `need` bytes free; `what` to ask less of."""
    free = shutil.disk_usage(root).free
    if free < need:
        raise OSError(
            errno.ENOSPC,
            f"'{root}' has {free / 1e9:.2f} GB free, the dataset needs {need / 1e9:.2f} GB: free some, or ask for "
            f'fewer {what}',
        )


def run_batches(
    simulate: Callable[..., int],
    batches: Sequence[tuple],
    *,
    workers: int,
    warm: Callable[[], object],
    done: int,
    total: int,
    progress: Callable[[int, int], None],
) -> None:
    """Call `simulate(*batch)`, which returns how much it did, for all batches.

    Args:
        workers: processes; `warm` is called first, so that forked ones have compiled kernels.
        done, total: handed to `progress`, `done` growing.
    Raises:
        OSError: a worker was killed.
    """
    progress(done, total)
    if workers == 1 or not batches:
        for batch in batches:
            done += simulate(*batch)
            progress(done, total)
        return
    warm()
    method = 'fork' if 'fork' in multiprocessing.get_all_start_methods() else 'spawn'
    with ProcessPoolExecutor(
        workers,
        multiprocessing.get_context(method),
        initializer=_end_with_parent,
        initargs=(os.getpid(),),
    ) as pool:
        futures = [pool.submit(simulate, *batch) for batch in batches]
        try:
            for future in as_completed(futures):
                done += future.result()
                progress(done, total)
        except BrokenProcessPool as error:
            raise OSError(
                errno.ENOMEM,
                f'one of the {workers} worker processes was killed, most likely for want of memory; what is done is '
                'kept: run the same command with fewer --workers to go on',
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
