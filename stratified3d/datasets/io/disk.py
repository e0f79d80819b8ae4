"""Writing files that are whole or absent, with errors that say which and what to do; locks between
processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

_BUSY = (errno.EAGAIN, errno.EACCES)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError raised inside name the file that was being written, which that of a full disk
    does not."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f'{error.strerror or error}; mend that, then run the same command again to go on',
            str(path),
        ) from error


def write_whole(path: Path, content: bytes, writer: str = '') -> None:
    """Write a file that is there in full or not at all, whenever the process ends.

    Args:
        writer: tells processes apart that may write the same file at the same time.
    Raises:
        OSError: a full disk, a folder that cannot be written; it names the file.
    """
    partial = path.with_name(f'{path.name}{writer}.partial')
    with naming(path):
        partial.write_bytes(content)
        os.replace(partial, path)


def this_process() -> str:
    """What tells this process apart from others that write to the same disk, as part of a file's
    name."""
    return f'.{socket.gethostname()}.{os.getpid()}'


def claim_folder(out: Path, settings: dict) -> None:
    """Make a new folder that of a conversion with these settings: what is there is kept when a
    conversion is repeated, so it has to be the same one. Of several processes that come at the same
    time, the first one's settings hold.

    Raises:
        ValueError: the folder holds something else, or a conversion with other settings.
        OSError: the folder cannot be written.
    """
    path = out / 'conversion.json'
    if not path.is_file():
        is_strange = out.is_dir() and any(
            not other.name.startswith(path.name) for other in out.iterdir()
        )
        if is_strange and not path.is_file():  # another process may have claimed it meanwhile
            raise ValueError(
                f'{out} is not empty and no conversion made it (it has no conversion.json)'
            )
        with naming(out):
            out.mkdir(parents=True, exist_ok=True)
        _write_first(path, json.dumps(settings).encode())
    try:
        before = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f'{path}: damaged ({error}): delete it to go on with {settings}'
        ) from error
    if before != settings:
        raise ValueError(
            f'{out} was converted with {before}, not {settings}: take another folder or delete it'
        )


def _write_first(path: Path, content: bytes) -> None:
    """Write a file, whole, unless it is there."""
    partial = path.with_name(f'{path.name}{this_process()}.partial')
    with naming(path):
        partial.write_bytes(content)
        try:
            os.link(partial, path)  # unlike a renamed one, it takes no other's place
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(partial, path)
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(
    path: Path, is_shared: bool = False, wait: bool = True, without: bool = True
) -> Iterator[bool]:
    """Hold the lock of a file, alone or with others that share it; it ends with the block, or with
    the process.

    Args:
        wait: until whoever holds it has ended; else go on without it.
        without: what to yield on a file system that has no locks, after a warning.
    Yields:
        Whether it is held.
    Raises:
        OSError: the file cannot be written; it names it.
    """
    with naming(path):
        file = path.open(
            'a+b'
        )  # on NFS a shared lock needs a file open for reading, another one for writing
    with file:
        try:
            fcntl.flock(
                file,
                (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB),
            )
            is_held = True
        except OSError as error:
            is_held = False if error.errno in _BUSY else without
            if error.errno not in _BUSY:
                warnings.warn(
                    f'{path.parent} is on a file system without locks ({error.strerror}): start no second '
                    'command that writes there at the same time',
                    stacklevel=3,
                )
        yield is_held
