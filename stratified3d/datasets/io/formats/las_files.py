"""Point clouds of surveys (.las, .laz), which laspy reads."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stratified3d.datasets.io.formats.columns import (
    POINT_BYTES,
    Columns,
    PointFileError,
    check_length,
    check_memory,
    errors_named,
)

if TYPE_CHECKING:
    from laspy import LasHeader

_CHUNK = 2**15  # bytes; a damaged file may announce points of 65,535
_ROW_BYTES = 16 + POINT_BYTES  # x, y, z and intensity in float32, and once more as points
# bytes of the shortest header, of a record after it, and of the first point of a chunk
_HEADER, _RECORD, _SMALLEST_CHUNK = 227, 54, 20
_ITEMS = 32  # where a record of compression counts the parts of a point


def read_las(path: Path) -> Columns:
    """Read coordinates and intensity (0 to 65535).

    Raises:
        PointFileError: laspy is not installed; damaged.
    """
    try:
        import laspy

        is_installed = path.suffix.lower() == '.las' or bool(laspy.LazBackend.detect_available())
    except ImportError:
        is_installed = False
    if not is_installed:
        raise PointFileError(
            f'{path}: .las and .laz files are read by laspy, which is not installed: '
            'pip install laspy lazrs'
        )

    with errors_named(path, 'a .las or .laz file'):
        _check_header(path)
        # threads of lazrs would hang in forked workers
        backends = (laspy.LazBackend.Lazrs, laspy.LazBackend.Laszip)
        with laspy.open(path, laz_backend=backends, read_evlrs=False) as reader:
            header = reader.header
            check_memory(path, header.point_count * _ROW_BYTES)
            if header.are_points_compressed:
                _check_items(path, header)
                _check_chunks(path, header.offset_to_point_data)
            else:
                needed = header.offset_to_point_data + header.point_count * header.point_format.size
                check_length(path, 'bytes', needed, path.stat().st_size)

            rows = np.empty((4, header.point_count), np.float32)
            filled = 0
            step = max(1, _CHUNK // header.point_format.size)
            for chunk in reader.chunk_iterator(step):
                columns = (chunk.x, chunk.y, chunk.z, chunk.intensity)
                rows[:, filled : filled + len(chunk)] = columns
                filled += len(chunk)
            check_length(path, 'points', header.point_count, filled)
    return dict(zip(('x', 'y', 'z', 'intensity'), rows))


def _check_header(path: Path) -> None:
    """Refuse a header that announces more records than the file has room for.

    laspy would look for each of them.
    """
    size = path.stat().st_size
    with path.open('rb') as file:
        head = file.read(_HEADER)
    if len(head) < _HEADER or not head.startswith(b'LASF'):
        raise PointFileError(f'{path}: empty, truncated, or no .las or .laz file; write it again')

    (header_size,) = struct.unpack_from('<H', head, 94)
    points_start, records = struct.unpack_from('<II', head, 96)
    if header_size + _RECORD * records > points_start or points_start > size:
        raise PointFileError(
            f'{path}: truncated or damaged: its header announces {records} records and points from '
            f'byte {points_start} of {size}; write it again'
        )


def _check_items(path: Path, header: LasHeader) -> None:
    """Refuse compressed points of another size than the header's: lazrs would take the memory."""
    (record,) = header.vlrs.get('LasZipVlr')
    (count,) = struct.unpack_from('<H', record.record_data, _ITEMS)
    items = struct.unpack_from(f'<{3 * count}H', record.record_data, _ITEMS + 2)
    size = sum(items[1::3])  # type, size and version of each
    expected = header.point_format.size
    if size != expected:
        raise PointFileError(
            f'{path}: damaged: its header announces points of {expected} bytes, its compression '
            f'of {size}; write it again'
        )


def _check_chunks(path: Path, points_start: int) -> None:
    """Refuse a table of more chunks than the file has room for; lazrs ends the process by it."""
    size = path.stat().st_size
    with path.open('rb') as file:
        file.seek(points_start)
        (table,) = struct.unpack('<q', file.read(8))
        if table == -1:  # a file that was written as a stream ends in it
            file.seek(-8, 2)
            (table,) = struct.unpack('<q', file.read(8))
        file.seek(table)
        _, chunks = struct.unpack('<II', file.read(8))
    check_length(path, 'bytes', _SMALLEST_CHUNK * chunks, size)
