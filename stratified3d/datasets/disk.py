"""Writing files that are whole or absent, with errors that say which and what to do."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError raised inside name the file that was being written, which that of a full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f'{error.strerror or error}; mend that, then run the same command again to go on',
                      str(path)) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there in full or not at all, whenever the process ends.

    Raises:
        OSError: a full disk, a folder that cannot be written; it names the file.
    """
    partial = path.with_name(f'{path.name}.partial')
    with naming(path):
        partial.write_bytes(content)
        os.replace(partial, path)
