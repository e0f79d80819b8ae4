"""Arrays of numpy: .npy and .npz."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from stratified3d.datasets.io.formats.columns import (
    INTENSITY_NAMES,
    POINT_BYTES,
    Columns,
    PointFileError,
    check_length,
    check_memory,
    errors_named,
    name_rows,
)

_TABLE_NAMES = ('points', 'xyz', 'positions', 'data', 'arr_0')
_MOST_COLUMNS = 12  # of a point
_PIECE = 2**16  # bytes
_READ_HEADER = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}


def read_npy(path: Path) -> Columns:
    """Read an array [P, >= 3], or a structured one with fields x, y, z.

    Raises:
        PointFileError: damaged, or another array, such as the transposed one [4, P] of nuScenes'
            devkit.
    """
    with path.open('rb') as file, errors_named(path, 'an .npy file'):
        array = _read_array(path, file, path.stat().st_size)
    return _name_columns(path, array)


def read_npz(path: Path) -> Columns:
    """Read arrays x, y, z [P] and an intensity, or one array [P, >= 3] (points, xyz, positions).

    An intensity may also lie beside an array of three columns.

    Raises:
        PointFileError: damaged, or without such arrays.
    """
    with errors_named(path, 'an .npz file'), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix('.npy').lower(): info for info in archive.infolist()}
        wanted = _choose_members(path, list(members))
        unpacked = sum(members[name].file_size for name in wanted)
        check_memory(path, unpacked)
        arrays = {}
        for name in wanted:
            with archive.open(members[name]) as file:
                arrays[name] = _read_array(path, file, members[name].file_size)

        lengths = [len(np.atleast_1d(array)) for array in arrays.values()]
        needed = max(lengths) * POINT_BYTES
        check_memory(path, unpacked + needed)

    tables = [array for name, array in arrays.items() if name not in (*'xyz', *INTENSITY_NAMES)]
    columns = _name_columns(path, tables[0]) if tables else {}
    return columns | {name: arrays[name] for name in (*'xyz', *INTENSITY_NAMES) if name in arrays}


def _choose_members(path: Path, names: list[str]) -> list[str]:
    """Names of the arrays that contain points."""
    intensity = [name for name in INTENSITY_NAMES if name in names][:1]
    if {'x', 'y', 'z'} <= set(names):
        return ['x', 'y', 'z', *intensity]
    if len(names) == 1:
        return names
    for name in _TABLE_NAMES:
        if name in names:
            return [name, *intensity]
    raise PointFileError(
        f'{path}: its arrays are {", ".join(repr(name[:40]) for name in names[:20]) or "none"}; '
        f'points are arrays x, y, z, or one array with a name of {", ".join(_TABLE_NAMES)}'
    )


def _read_array(path: Path, file: IO[bytes], size: int) -> np.ndarray:
    """The array of a file of so many bytes, never an object."""
    version = npy_format.read_magic(file)
    if version not in _READ_HEADER:
        raise PointFileError(f'{path}: version {version} of .npy is not read; save with np.save')
    shape, is_fortran, dtype = _READ_HEADER[version](file)  # at most 10,000 bytes
    if dtype.hasobject or not dtype.itemsize or any(length < 0 for length in shape):
        raise PointFileError(f'{path}: an array of {dtype} {shape}, points are numbers')

    expected = math.prod(shape) * dtype.itemsize
    check_length(path, 'bytes', expected, size - file.tell())
    content = np.empty(expected, np.uint8)
    filled = 0
    while part := file.read(min(_PIECE, expected - filled)):  # zipfile holds a piece twice
        end = filled + len(part)
        content[filled:end] = np.frombuffer(part, np.uint8)
        filled = end
    check_length(path, 'bytes', expected, filled)
    return content.view(dtype).reshape(shape, order='F' if is_fortran else 'C')


def _name_columns(path: Path, array: np.ndarray) -> Columns:
    if array.dtype.names:
        return {name: array[name].reshape(-1) for name in array.dtype.names}
    if array.ndim == 2 and 3 <= array.shape[0] <= _MOST_COLUMNS < array.shape[1]:
        raise PointFileError(
            f'{path}: contains an array {array.shape}, which looks like one column for '
            f'each of {array.shape[1]} points: transpose it (points.T) to one row for each'
        )
    return name_rows(path, array)
