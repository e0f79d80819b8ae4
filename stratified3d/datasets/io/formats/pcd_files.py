"""Point clouds of PCL (.pcd): ascii, binary and binary_compressed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stratified3d.datasets.io.formats.columns import (
    POINT_BYTES,
    Columns,
    PointFileError,
    check_length,
    check_memory,
    errors_named,
)
from stratified3d.datasets.io.formats.lzf import decompress_lzf
from stratified3d.datasets.io.formats.records import Layout, read_lines, read_records

_MAX_HEADER = 65_536  # bytes
_DATA = re.compile(rb'^DATA[ \t]+(\w+)[ \t]*\r?\n', re.MULTILINE)
_TYPES = {
    **{('F', size): f'<f{size}' for size in (4, 8)},
    **{('I', size): f'<i{size}' for size in (1, 2, 4, 8)},
    **{('U', size): f'<u{size}' for size in (1, 2, 4, 8)},
}


class _Header(NamedTuple):
    """Layout of a point; number of points; encoding; start of the data in bytes."""

    layout: Layout
    points: int
    encoding: str
    start: int


def read_pcd(path: Path) -> Columns:
    """Read the fields of every point; those with a COUNT above 1 are left out.

    Raises:
        PointFileError: damaged or truncated.
    """
    with path.open('rb') as file:
        header = _read_header(path, file.read(_MAX_HEADER))
        file.seek(header.start)
        if header.encoding == 'ascii':
            return read_lines(path, file, header.layout, header.points)
        if header.encoding == 'binary':
            return read_records(path, file, header.layout, header.points)
        content = _decompress(path, file.read(), header)
    return _split_blocks(header, content)


def _read_header(path: Path, content: bytes) -> _Header:
    data = _DATA.search(content)
    if data is None:
        raise PointFileError(
            f'{path}: no points could be read; the file has no complete .pcd header, which ends '
            'in a line DATA; write it again'
        )
    encoding = data[1].decode('ascii', 'replace')
    if encoding not in ('ascii', 'binary', 'binary_compressed'):
        raise PointFileError(
            f'{path}: DATA is {encoding!r}, not ascii, binary or binary_compressed'
        )

    lines = content[: data.start()].decode('latin-1').splitlines()
    words = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    points = _whole_numbers(path, words, 'POINTS')
    if len(points) != 1:
        raise PointFileError(f'{path}: its header has no number of POINTS; write it again')
    return _Header(_read_layout(path, words), points[0], encoding, data.end())


def _read_layout(path: Path, words: dict[str, list[str]]) -> Layout:
    names = words.get('FIELDS', [])
    letters = words.get('TYPE', [])
    sizes = _whole_numbers(path, words, 'SIZE')
    counts = _whole_numbers(path, words, 'COUNT') or [1] * len(names)
    lengths = [len(names), len(sizes), len(letters), len(counts)]
    if not names or len(set(lengths)) > 1:
        raise PointFileError(
            f'{path}: its header has {lengths} words in FIELDS, SIZE, TYPE and COUNT, not as many '
            'in each; write it again'
        )

    kinds = list(zip(letters, sizes))
    unknown = [kind for kind in kinds if kind not in _TYPES]
    if unknown:
        raise PointFileError(f'{path}: TYPE and SIZE {unknown[0]} of its header are no number')
    return Layout(names, [np.dtype(_TYPES[kind]) for kind in kinds], counts)


def _whole_numbers(path: Path, words: dict[str, list[str]], key: str) -> list[int]:
    """Numbers of a header's line, none if it is absent."""
    for word in words.get(key, []):
        if not re.fullmatch('[0-9]{1,9}', word):
            raise PointFileError(
                f'{path}: {key} {word[:40]!r} of its header is no size of a file; write it again'
            )
    return [int(word) for word in words.get(key, [])]


def _decompress(path: Path, body: bytes, header: _Header) -> bytes:
    """The fields of all points, one field after the other."""
    needed = header.points * header.layout.row_bytes
    if not needed:
        return b''
    check_length(path, 'bytes', 8, len(body))
    compressed, announced = np.frombuffer(body, '<u4', 2).tolist()
    if announced != needed:
        raise PointFileError(
            f'{path}: damaged: its fields and POINTS need {needed} bytes, the compressed part '
            f'announces {announced}; write it again'
        )
    check_length(path, 'bytes', compressed, len(body) - 8)
    as_points = header.points * POINT_BYTES
    check_memory(path, needed + as_points)
    with errors_named(path, 'LZF after its header'):
        data = memoryview(body)[8 : 8 + compressed]
        return decompress_lzf(data, needed)


def _split_blocks(header: _Header, content: bytes) -> Columns:
    """Columns of fields that follow each other."""
    columns = {}
    start = 0
    for name, kind, count in zip(*header.layout):
        if count == 1:
            columns[name] = np.frombuffer(content, kind, header.points, start)
        start += kind.itemsize * count * header.points
    return columns
