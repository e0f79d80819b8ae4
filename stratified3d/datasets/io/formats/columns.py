"""Named columns of points, which every reader returns, and what all readers share."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

Columns = dict[str, np.ndarray]

# in lower case, the most telling first
INTENSITY_NAMES = (
    'intensity',
    'i',
    'reflectivity',
    'reflectance',
    'scalar_intensity',
    'remission',
)
POINT_BYTES = 16  # of a row of `stack_points`
# a damaged or hostile file must not make its reader take more than ten times its size: the file
# itself and what is read of it at once take up to two
_MAX_INFLATION = 8
_FREE_BYTES = 2**20


class PointFileError(ValueError):
    """A point file that cannot be read; names the file, what is wrong and the remedy."""


@contextmanager
def errors_named(path: Path, kind: str) -> Iterator[None]:
    """Make a PointFileError of whatever numpy or a library raises on a damaged file.

    Args:
        path: of the file.
        kind: what the file should be, such as 'an .npy file'.
    Raises:
        PointFileError: in place of any other error.
    """
    try:
        yield
    except PointFileError:
        raise
    except BaseException as error:
        # lazrs panics, which is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != 'PanicException':
            raise
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        raise PointFileError(
            f'{path}: empty, truncated or damaged, or not {kind} ({reason}); write it again'
        ) from error


def check_memory(path: Path, wanted: int) -> None:
    """Refuse a file whose content would take far more memory than the file has bytes.

    Args:
        path: of the file.
        wanted: bytes of its unpacked content and of its points, as announced.
    Raises:
        PointFileError: the announced size is not credible.
    """
    size = path.stat().st_size
    if wanted > _MAX_INFLATION * size + _FREE_BYTES:
        raise PointFileError(
            f'{path}: damaged: its {size} bytes would take {wanted} bytes of memory, over '
            f'{_MAX_INFLATION} times as many; write it again, uncompressed if it is right'
        )


def check_length(path: Path, unit: str, expected: int, found: int) -> None:
    """Refuse a file that is shorter than its header says.

    Raises:
        PointFileError: fewer bytes or numbers than announced.
    """
    if found < expected:
        raise PointFileError(
            f'{path}: truncated: its header announces {expected} {unit}, {found} are there; copy '
            'or write it again'
        )


def parse_numbers(
    path: Path,
    file: BinaryIO,
    rows: int | None,
    delimiter: str | None = None,
    empty: int | None = None,
) -> np.ndarray:
    """Read lines of numbers from where the file stands.

    Args:
        path: of the file.
        file: the open file.
        rows: number of lines; None reads all.
        delimiter: between numbers; None: white space.
        empty: index of a column in which no line has anything; it is returned as 0.
    Returns:
        [rows, columns] float64.
    Raises:
        PointFileError: a word that is no number, or lines of different lengths.
    """
    text = io.TextIOWrapper(file, encoding='latin-1')
    with warnings.catch_warnings(), errors_named(path, 'lines of numbers of one length'):
        warnings.simplefilter('ignore')  # of no lines; their count is checked
        try:
            return np.loadtxt(
                text,
                delimiter=delimiter,
                comments=None,
                max_rows=rows,
                ndmin=2,
                converters=None if empty is None else {empty: _read_nothing},
            )
        finally:
            text.detach()  # the file is not its own


def _read_nothing(word: str | bytes) -> float:
    if word.strip():
        raise ValueError(word)
    return 0.0


def name_rows(path: Path, rows: np.ndarray) -> Columns:
    """Name the columns of an array without names.

    Args:
        path: of the file.
        rows: [P, >= 3] x, y, z, intensity, others.
    Raises:
        PointFileError: another shape.
    """
    if rows.ndim != 2 or rows.shape[1] < 3:
        raise PointFileError(
            f'{path}: contains an array {rows.shape}, points are an array [P, >= 3] of x, y, z, '
            'intensity'
        )
    return dict(zip(('x', 'y', 'z', 'intensity'), rows.T))


def stack_points(path: Path | str, columns: Columns) -> np.ndarray:
    """Choose coordinates and intensity by their names; warn where there is no intensity.

    Args:
        path: of the file, or a name for what is read.
        columns: [P] each, by name; upper and lower case are the same.
    Returns:
        [P, 4] float32 x, y, z, intensity, which is 0 where the file has none.
    Raises:
        PointFileError: a coordinate is missing, or is no column of numbers.
    """
    columns = {name.strip().lower(): column for name, column in columns.items()}
    listed = ', '.join(repr(name[:40]) for name in list(columns)[:20]) or 'none'
    missing = [name for name in 'xyz' if name not in columns]
    if missing:
        raise PointFileError(
            f'{path}: has no column {", ".join(missing)}; its columns are {listed}, points need '
            'x, y and z'
        )

    chosen = ['x', 'y', 'z']
    chosen += [name for name in INTENSITY_NAMES if name in columns][:1]
    if len(chosen) == 3:
        warnings.warn(
            f'{path}: has no intensity, which is taken as 0; a column with one of the names '
            f'{", ".join(INTENSITY_NAMES)} is looked for, and its columns are {listed}',
            stacklevel=3,
        )

    points = np.zeros((len(columns['x']), 4), np.float32)
    for index, name in enumerate(chosen):
        column = columns[name]
        if column.shape != (len(points),) or column.dtype.kind not in 'fiu':
            raise PointFileError(
                f'{path}: column {name} is {column.dtype} {column.shape}, not {len(points)} '
                'numbers; write it as float32'
            )
        with np.errstate(all='ignore'):
            points[:, index] = column
    return points
