"""Writing files that are whole or absent, with errors that say which and what to do."""
from __future__ import annotations

import contextlib
import json
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


def claim_folder(out: Path, settings: dict, writer: str = '') -> None:
    """Make a new folder that of a conversion with these settings: what is there is kept when a conversion is repeated,
    so it has to be the same one.

    Args:
        writer: see `write_whole`.
    Raises:
        ValueError: the folder holds something else, or a conversion with other settings.
    """
    path = out / 'conversion.json'
    if path.is_file():
        before = json.loads(path.read_text())
        if before != settings:
            raise ValueError(f'{out} was converted with {before}, not {settings}: take another folder or delete it')
        return
    is_strange = out.is_dir() and any(not other.name.startswith(path.name) for other in out.iterdir())
    if is_strange and not path.is_file():  # another process may have claimed it meanwhile
        raise ValueError(f'{out} is not empty and no conversion made it (it has no conversion.json)')
    with naming(out):
        out.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(settings).encode(), writer)
