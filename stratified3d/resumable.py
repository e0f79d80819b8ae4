"""Long commands that can be killed at any moment and rerun: atomic files, locks, folders that
belong to one command, worker processes and records of finished work."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

try:
    import fcntl
except ImportError:  # not a POSIX system: no locks
    fcntl = None  # type: ignore[assignment]

Result = TypeVar('Result')

PARTIAL = '.partial'  # suffix of files that are being written
PATIENCE = 5.0  # s; workers of a killed command need up to a second to end
_HINT = 'fix this and rerun the same command to resume'
_BUSY = (errno.EAGAIN, errno.EACCES)


@contextlib.contextmanager
def name_file(path: Path) -> Iterator[None]:
    """Let an OSError raised inside name the file that was being written, and say how to resume."""
    try:
        yield
    except OSError as error:
        if _HINT in str(error.strerror):  # named already, by a call inside
            raise
        message = f'{error.strerror or error}; {_HINT}'
        raise OSError(error.errno, message, str(path)) from error


def describe_error(error: Exception) -> str:
    """The text of an error for the command line: an OSError without its number."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f'{error.filename}: {error.strerror}' if error.filename else error.strerror


def atomic_write(path: Path, content: bytes, *, is_shared: bool = False) -> None:
    """Write a file that is complete or absent, whenever the process ends.

    Args:
        path: the file.
        content: its bytes.
        is_shared: other processes may write the same file at the same time.
    Raises:
        OSError: a full disk, a folder that cannot be written; it names the file.
    """
    writer = _process_suffix() if is_shared else ''
    partial = path.with_name(f'{path.name}{writer}{PARTIAL}')
    with name_file(path):
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


def _write_first(path: Path, content: bytes) -> None:
    """Write a complete file, unless there is one: of several processes the first one wins."""
    partial = path.with_name(f'{path.name}{_process_suffix()}{PARTIAL}')
    with name_file(path):
        partial.write_bytes(content)
        try:
            os.link(partial, path)  # unlike os.replace, it keeps the file of another process
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(partial, path)
        partial.unlink(missing_ok=True)


def _process_suffix() -> str:
    """Part of a file name that differs between processes that write to the same disk."""
    return f'.{socket.gethostname()}.{os.getpid()}'


def check_room(folder: Path, need: float, what: str) -> None:
    """Check that the disk of a folder has room for what will be written.

    Args:
        need: bytes.
        what: what the user can ask less of.
    Raises:
        OSError: fewer bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < need:
        raise OSError(
            errno.ENOSPC,
            f"'{folder}' has {free / 1e9:.2f} GB free, the dataset needs {need / 1e9:.2f} GB: "
            f'free some, or ask for fewer {what}',
        )


@contextlib.contextmanager
def file_lock(
    path: Path, *, is_shared: bool = False, wait: bool = True, if_unsupported: bool = True
) -> Iterator[bool]:
    """Hold the lock of a file until the block, or the process with all its forks, ends.

    Args:
        path: created if it is absent; its content stays.
        is_shared: hold it together with others that share it.
        wait: wait for whoever holds it, or else enter the block without it.
        if_unsupported: what to yield, after a warning, where the file system has no locks.
    Yields:
        Whether it is held.
    Raises:
        OSError: the file cannot be written; it names it.
    """
    with name_file(path):
        # on NFS a shared lock needs a file open for reading, an exclusive one for writing
        file = path.open('a+b')
    with file:
        try:
            is_held = _lock_open_file(file.fileno(), is_shared, wait)
        except OSError as error:
            is_held = if_unsupported
            warnings.warn(
                f'{path.parent} is on a file system without locks ({error.strerror}): do not start '
                'a second command that writes there at the same time',
                stacklevel=3,
            )
        yield is_held


def _lock_open_file(descriptor: int, is_shared: bool, wait: bool) -> bool:
    """Whether the lock was taken; OSError where there are no locks."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    operation = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, operation if wait else operation | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _BUSY:
            raise
        return False
    return True


@contextlib.contextmanager
def sole_writer(record: Path) -> Iterator[None]:
    """Keep other processes from writing a folder until the block ends, by the lock of its record.

    Raises:
        BlockingIOError: another process writes the folder, and did not end within PATIENCE.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        with file_lock(record, wait=False) as is_held:
            if is_held:
                yield
                return
        if time.monotonic() > deadline:
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                f"another process is writing '{record.parent}'; wait until it ends, or take "
                'another folder',
            )
        time.sleep(0.1)


def acquire_folder(
    folder: Path, settings: dict[str, Any], record_name: str, *, indent: int | None = None
) -> None:
    """Make a folder that of one command with one set of settings, kept as JSON in a record.

    What is in the folder is kept when the command is rerun, so the settings have to be the same.
    If several processes come at the same time, the settings of the first one count.

    Args:
        folder: new, empty, or acquired earlier.
        settings: JSON values.
        record_name: name of the record; each command has its own.
        indent: of the JSON.
    Raises:
        ValueError: the folder contains something else, or was made with other settings.
        OSError: the folder cannot be written.
    """
    record = folder / record_name
    if not record.is_file():
        _check_unused(folder, record)
        with name_file(folder):
            folder.mkdir(parents=True, exist_ok=True)
        _write_first(record, json.dumps(settings, indent=indent).encode())
    try:
        found = json.loads(record.read_bytes())
    except ValueError as error:
        raise ValueError(
            f'{record} is damaged ({error}); delete it to resume with {settings}'
        ) from error
    if found != settings:
        raise ValueError(
            f'{folder} was made with other settings ({_describe_difference(found, settings)}); '
            'take another folder or delete this one'
        )


def _check_unused(folder: Path, record: Path) -> None:
    """Raise for a folder that contains something else than what processes left of its record."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(errno.EEXIST, f"'{folder}' is a file; name a folder")
    unknown = folder.is_dir() and any(
        not path.name.startswith(record.name) for path in folder.iterdir()
    )
    if unknown and not record.is_file():  # another process may have acquired it meanwhile
        raise ValueError(
            f'{folder} is not empty and was not made by this command (it contains no '
            f'{record.name}); take another folder'
        )


def _describe_difference(found: object, settings: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return f'{found} instead of {settings}'
    keys = list(settings) + [key for key in found if key not in settings]
    return ', '.join(
        f'{key} {found.get(key)} instead of {settings.get(key)}'
        for key in keys
        if found.get(key) != settings.get(key)
    )


class LineRecord:
    """Lines of text that say what is finished, appended one by one to a file.

    What a killed process left of its last line is cut off.

    Attributes:
        path: the file; absent until the first line.
        lines: those of earlier runs and of this one.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lines: list[str] = []
        if path.is_file():
            content = path.read_bytes()
            complete = content[: content.rfind(b'\n') + 1]
            with name_file(path):
                os.truncate(path, len(complete))
            self.lines = complete.decode().splitlines()

    def append(self, line: str) -> None:
        """Record one more line.

        Raises:
            OSError: a full disk; it names the file.
        """
        with name_file(self.path), open(self.path, 'a') as file:
            file.write(line + '\n')
        self.lines.append(line)


@contextlib.contextmanager
def worker_pool(
    workers: int, initializer: Callable[[], object] | None = None, *, fork: bool = False
) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with this one, however it ends.

    Args:
        workers: how many.
        initializer: called first in each of them.
        fork: fork them where the system can; they have what is loaded and compiled here. torch's
            threads do not survive a fork, so where torch computes they are spawned.
    Raises:
        OSError: one of them was killed.
    """
    can_fork = 'fork' in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context('fork' if fork and can_fork else 'spawn')
    try:
        with _WorkerPool(workers, context, _begin_worker, (os.getpid(), initializer)) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise OSError(
            errno.ENOMEM,
            f'one of the {workers} worker processes was killed, most likely for lack of memory; '
            'finished work is kept: rerun the same command with fewer --workers to resume',
        ) from error


class _WorkerPool(ProcessPoolExecutor):
    """Starts workers that Ctrl-C cannot reach before `_begin_worker` lets it."""

    def submit(self, *args, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            return super().submit(*args, **kwargs)
        interrupts: list[int] = []
        # another thread may receive the signal, but the handler always runs in this one
        handler = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return super().submit(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            signal.signal(signal.SIGINT, handler)
            if interrupts:
                raise KeyboardInterrupt


def _begin_worker(parent: int, initializer: Callable[[], object] | None) -> None:
    """Let a worker end when its parent was killed, because it would wait for work forever, and at
    Ctrl-C, which reaches both, without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if initializer is not None:
        initializer()


def run_batches(
    function: Callable[..., Result],
    batches: Sequence[tuple],
    workers: int,
    *,
    before_fork: Callable[[], object],
) -> Iterator[Result]:
    """Yield function(*batch) of all batches, in the order in which they are finished.

    Args:
        function: pure Python, numpy and numba.
        workers: processes; with one, or for a single batch, all is done in this process.
        before_fork: called before workers are forked, so that they inherit compiled kernels.
    Raises:
        OSError: a worker was killed.
    """
    if workers == 1 or len(batches) < 2:
        for batch in batches:
            yield function(*batch)
        return
    before_fork()
    with worker_pool(workers, fork=True) as pool:
        futures = [pool.submit(function, *batch) for batch in batches]
        for future in as_completed(futures):
            yield future.result()
