"""Pickles of plain data, read without running code of the file.

Info files, databases and records are pickles of dicts, lists, tuples, texts, bytes, numbers and
numpy's arrays. `pickle.load` runs whatever function a file names. Here the file is first looked
over (`pickle_scan`), and then it may name no more than what arrays need.
"""

from __future__ import annotations

import contextlib
import gc
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from mmengine.fileio import register_handler
from mmengine.fileio.handlers import PickleHandler

from stratified3d.datasets.io.pickle_scan import find_problem
from stratified3d.plain_arrays import MULTIARRAY, NUMERIC, Array, Kind, from_buffer, scalar, unwrap

_REMEDY = (
    'create info files anew with tools/create_data.py (tools/waymo_convert.py, '
    'tools/convert_custom.py); what you wrote yourself and trust, pickle.load reads'
)


class DamagedPickle(ValueError):
    """A pickle that is cut short or makes no sense."""


class _Refused(Exception):
    """A pickle names a function or class that plain data does not need."""


class _Function:
    """A function that a pickle may call; it can set no attribute of it."""

    __slots__ = ('_function',)

    def __init__(self, function: Callable):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError('a function has no state')


def _empty_bytes() -> bytes:
    """Replaces bytes, by which protocol 2 writes empty ones."""
    return b''


class _Encoder:
    """Replaces codecs.encode, by which protocol 2 writes bytes."""

    def __init__(self, room: int):
        self._room = room  # a file can name the same text for any number of bytes

    def encode(self, text: str, encoding: str) -> bytes:
        self._room -= len(text)
        if encoding != 'latin1' or self._room < 0:
            raise pickle.UnpicklingError('more bytes than the file has')
        return text.encode(encoding)


class _PlainUnpickler(pickle.Unpickler):
    """Knows what protocols 2 to 5 name for arrays, and nothing else."""

    def __init__(self, data: bytes):
        # buffered, because protocols 2 and 3 are read in tiny pieces
        super().__init__(io.BufferedReader(io.BytesIO(data), 2**17))
        self.has_arrays = False
        self._known: dict[tuple[str, str], Any] = {
            ('numpy', 'dtype'): Kind,
            ('numpy', 'ndarray'): Array,
            ('_codecs', 'encode'): _Function(_Encoder(len(data)).encode),
            ('__builtin__', 'bytes'): _Function(_empty_bytes),
        }
        for module in MULTIARRAY:
            self._known[module, '_reconstruct'] = Array
            self._known[module, 'scalar'] = _Function(scalar)
        for module in NUMERIC:
            self._known[module, '_frombuffer'] = _Function(from_buffer)

    def find_class(self, module: str, name: str) -> Any:
        """What the file gets for a name."""
        found = self._known.get((module, name))
        if found is None:
            raise _Refused(f'{module}.{name}')
        self.has_arrays |= name in ('ndarray', '_reconstruct', '_frombuffer')
        return found


@contextlib.contextmanager
def _garbage_kept() -> Iterator[None]:
    """No search for garbage: among millions of new objects it takes most of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_plain_pickle(file: str | Path | IO[bytes]) -> Any:
    """Read a pickle of plain data.

    Args:
        file: path, or an open file.
    Raises:
        DamagedPickle: the file is damaged, or built to take much more memory than its size.
        ValueError: the file names a function or class that plain data does not need.
    """
    if isinstance(file, (str, Path)):
        with open(file, 'rb') as opened:
            return read_plain_pickle(opened)

    data = file.read()
    name = getattr(file, 'name', 'a pickle')
    problem = find_problem(data)
    if problem:
        raise DamagedPickle(f'{name}: damaged, or no pickle of plain data: it {problem}; {_REMEDY}')
    try:
        with _garbage_kept():
            unpickler = _PlainUnpickler(data)
            content = unpickler.load()
            return unwrap(content, len(data)) if unpickler.has_arrays else content
    except _Refused as error:
        raise ValueError(
            f'{name}: not read, because it names {error}, which no info file needs and which may '
            f'run code; {_REMEDY}'
        ) from None
    # a damaged pickle fails in any way; what it could name has been refused above
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        raise DamagedPickle(
            f'{name}: damaged, or no pickle of plain data ({reason}); {_REMEDY}'
        ) from error


class PlainPickleHandler(PickleHandler):
    """mmengine's reader of .pkl files, for plain data only."""

    def load_from_fileobj(self, file: IO[bytes], **kwargs: Any) -> Any:
        """See `read_plain_pickle`; what pickle.load takes besides the file changes nothing here."""
        return read_plain_pickle(file)


def register_reader() -> None:
    """Make mmengine, and so mmdet3d's datasets and samplers, read pickles by
    `read_plain_pickle`."""
    register_handler(['pkl', 'pickle'])(PlainPickleHandler)
