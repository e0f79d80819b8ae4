"""Polygon files (.ply): the vertices of ascii and binary ones."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from stratified3d.datasets.io.formats.columns import (
    Columns,
    PointFileError,
    check_length,
    parse_numbers,
)

_MAX_HEADER = 65_536  # bytes
_END = re.compile(rb'^end_header[ \t]*\r?\n', re.MULTILINE)
_LINE = re.compile(
    r'(?P<format>format (?P<order>ascii|binary_little_endian|binary_big_endian) \S+)'
    r'|(?P<element>element (?P<title>\S+) (?P<count>[0-9]{1,9}))'
    r'|(?P<list>property list \w+ \w+ \S+)'
    r'|(?P<property>property (?P<kind>\w+) (?P<name>\S+))'
    r'|comment.*|obj_info.*|'
)
_ORDERS = {'ascii': '', 'binary_little_endian': '<', 'binary_big_endian': '>'}
_TYPES = {
    'char': 'i1',
    'uchar': 'u1',
    'int8': 'i1',
    'uint8': 'u1',
    'short': 'i2',
    'ushort': 'u2',
    'int16': 'i2',
    'uint16': 'u2',
    'int': 'i4',
    'uint': 'u4',
    'int32': 'i4',
    'uint32': 'u4',
    'float': 'f4',
    'float32': 'f4',
    'double': 'f8',
    'float64': 'f8',
}


class _Element(NamedTuple):
    """title; rows; names and types of its properties, None for a list."""

    title: str
    rows: int
    names: list[str]
    types: list[np.dtype | None]


def read_ply(path: Path) -> Columns:
    """Read the properties of the vertices; faces and other elements are left out.

    Raises:
        PointFileError: damaged or truncated.
    """
    with path.open('rb') as file:
        content = file.read(_MAX_HEADER)
        end = _END.search(content)
        if end is None or not content.startswith(b'ply'):
            raise PointFileError(
                f'{path}: no points could be read; the file has no complete .ply header, from ply '
                'to end_header; write it again'
            )
        lines = content[: end.start()].decode('latin-1').splitlines()[1:]
        order, elements = _read_header(path, lines)
        file.seek(end.end())
        return _read_vertices(path, file, order, elements)


def _read_header(path: Path, lines: list[str]) -> tuple[str, list[_Element]]:
    """Byte order, empty for ascii, and the elements in the order of the file."""
    order = None
    elements: list[_Element] = []
    for line in lines:
        found = _LINE.fullmatch(' '.join(line.split()))
        is_property = found is not None and (found['property'] or found['list'])
        if (
            found is None
            or is_property
            and not elements
            or found['kind']
            and found['kind'] not in _TYPES
        ):
            raise PointFileError(
                f'{path}: its header has a line {line[:60]!r}, which is damaged; write it again'
            )
        if found['format']:
            order = _ORDERS[found['order']]
        elif found['element']:
            elements.append(_Element(found['title'], int(found['count']), [], []))
        elif is_property:
            elements[-1].names.append(found['name'] or '')
            kind = None if found['list'] else np.dtype((order or '') + _TYPES[found['kind']])
            elements[-1].types.append(kind)

    if order is None:
        raise PointFileError(f'{path}: its header has no line of its format; write it again')
    return order, elements


def _read_vertices(path: Path, file: BinaryIO, order: str, elements: list[_Element]) -> Columns:
    skipped_bytes = 0
    skipped_rows = 0
    for element in elements:
        kinds = [kind for kind in element.types if kind is not None]
        if len(kinds) < len(element.types) and (order or element.title == 'vertex'):
            raise PointFileError(
                f'{path}: lists of the element {element.title[:40]!r} come before or among its '
                'vertices; write the vertices alone'
            )
        row_bytes = sum(kind.itemsize for kind in kinds)
        if element.title == 'vertex':
            if not order:
                list(islice(file, skipped_rows))
                return _read_lines(path, file, element)
            file.seek(skipped_bytes, 1)
            return _read_records(path, file, element, row_bytes)
        skipped_bytes += element.rows * row_bytes
        skipped_rows += element.rows
    raise PointFileError(f'{path}: its header has no element vertex; write points as vertices')


def _read_lines(path: Path, file: BinaryIO, element: _Element) -> Columns:
    # a number takes a digit and a space
    needed = 2 * element.rows * len(element.names) - 1
    check_length(path, 'bytes', needed, path.stat().st_size - file.tell())
    if not element.rows:
        return {name: np.zeros(0, np.float32) for name in element.names}

    rows = parse_numbers(path, file, element.rows)
    if rows.shape[1] != len(element.names):
        raise PointFileError(
            f'{path}: truncated or damaged: a line has {rows.shape[1]} numbers, its header '
            f'announces {len(element.names)}; write it again'
        )
    check_length(path, 'points', element.rows, len(rows))
    return dict(zip(element.names, rows.T))


def _read_records(path: Path, file: BinaryIO, element: _Element, row_bytes: int) -> Columns:
    needed = element.rows * row_bytes
    check_length(path, 'bytes', needed, path.stat().st_size - file.tell())
    content = file.read(needed)
    columns: Columns = {}
    start = 0
    for name, kind in zip(element.names, element.types):
        assert kind is not None
        columns[name] = np.ndarray(element.rows, kind, content, start, (row_bytes,))
        start += kind.itemsize
    return columns
