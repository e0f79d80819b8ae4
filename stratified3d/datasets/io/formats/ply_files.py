"""Polygon files (.ply): the vertices of ascii and binary ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from stratified3d.datasets.io.formats.columns import Columns, PointFileError
from stratified3d.datasets.io.formats.records import Layout, read_lines, read_records

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
        if found is None or not _fits(found, elements):
            raise PointFileError(
                f'{path}: its header has a line {line[:60]!r}, which is damaged; write it again'
            )

        if found['format']:
            order = _ORDERS[found['order']]
        elif found['element']:
            elements.append(_Element(found['title'], int(found['count']), [], []))
        elif found['list']:
            elements[-1].names.append('')
            elements[-1].types.append(None)
        elif found['property']:
            elements[-1].names.append(found['name'])
            elements[-1].types.append(np.dtype((order or '') + _TYPES[found['kind']]))

    if order is None:
        raise PointFileError(f'{path}: its header has no line of its format; write it again')
    return order, elements


def _fits(found: re.Match[str], elements: list[_Element]) -> bool:
    """Whether a property has an element before it and a type that is known."""
    is_property = found['property'] or found['list']
    if is_property and not elements:
        return False
    return not found['kind'] or found['kind'] in _TYPES


def _read_vertices(path: Path, file: BinaryIO, order: str, elements: list[_Element]) -> Columns:
    skipped_bytes = 0
    skipped_lines = 0
    for element in elements:
        kinds = [kind for kind in element.types if kind is not None]
        if len(kinds) < len(element.types) and (order or element.title == 'vertex'):
            raise PointFileError(
                f'{path}: lists of the element {element.title[:40]!r} come before or among its '
                'vertices; write the vertices alone'
            )
        layout = Layout(element.names, kinds, [1] * len(kinds))
        if element.title == 'vertex':
            if order:
                file.seek(skipped_bytes, 1)
                return read_records(path, file, layout, element.rows)
            for _ in range(skipped_lines):
                if not file.readline():
                    break
            return read_lines(path, file, layout, element.rows)
        skipped_bytes += element.rows * layout.row_bytes
        skipped_lines += element.rows
    raise PointFileError(f'{path}: its header has no element vertex; write points as vertices')
