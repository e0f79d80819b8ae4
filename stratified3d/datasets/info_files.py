"""mmdet3d's info files: read with errors that say what is wrong, written whole or not at all."""
from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path


def read_infos(path: str | Path) -> tuple[dict, list[dict]]:
    """Metainfo and frames of an mmdet3d info file of version 2.

    Raises:
        FileNotFoundError, ValueError: a missing file; one that is damaged, or no info file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no info file {path}')
    try:
        content = pickle.loads(path.read_bytes())
        return dict(content['metainfo']), list(content['data_list'])
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError, IndexError,
            ImportError) as error:
        raise ValueError(f'{path}: damaged, or no mmdet3d info file of version 2 with metainfo and data_list '
                         f'({type(error).__name__}: {error}); delete it and have it written again') from error


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
