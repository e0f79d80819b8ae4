"""Lines of numbers (.txt, .csv) with or without a line of names."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stratified3d.datasets.io.formats.columns import (
    Columns,
    PointFileError,
    name_rows,
    parse_numbers,
)

_MAX_LINE = 10_000  # bytes
_COMMENTS = ('#', '//')


def read_text(path: Path) -> Columns:
    """Read numbers between commas, semicolons or white space.

    The first line may name the columns, also as a comment (# or //). Without names the columns are
    x, y, z, intensity, others.

    Raises:
        PointFileError: damaged, or not such lines.
    """
    with path.open('rb') as file:
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        names, first = _read_names(path, file)
        if not first:
            rows = np.zeros((0, len(names) or 3))
        else:
            mark = _delimiter(first)
            width = len(_split(first))
            is_closed = mark is not None and first.rstrip().endswith(mark)
            empty = width if is_closed else None
            rows = parse_numbers(path, file, None, mark, empty)[:, :width]
    if not names:
        return name_rows(path, rows)
    if len(names) != rows.shape[1]:
        raise PointFileError(
            f'{path}: names {len(names)} columns but has {rows.shape[1]}; name each, with a comma '
            'between them where numbers have one'
        )
    return dict(zip(names, rows.T))


def _read_names(path: Path, file: BinaryIO) -> tuple[list[str], str]:
    """Names of the columns, if there are any, and the first line of numbers, where the file then
    stands."""
    names: list[str] = []
    number = 0
    while True:
        number += 1
        start = file.tell()
        line = file.readline(_MAX_LINE).decode('utf-8', 'replace')
        if len(line) >= _MAX_LINE:
            raise PointFileError(f'{path}: its first line is too long for the numbers of a point')
        is_comment = line.startswith(_COMMENTS)
        words = _split(line.lstrip('#/'))
        if not line or words and not is_comment and _are_numbers(words):
            file.seek(start)
            return names, line
        has_names = _has_coordinates(words)
        if words and not is_comment and _has_coordinates(names) and not has_names:
            raise PointFileError(
                f'{path}: line {number} is not numbers: {line.rstrip()[:60]!r}; give every column '
                'a number, or leave the line out'
            )
        if words and (not is_comment or has_names):
            names = words


def _delimiter(line: str) -> str | None:
    return next((mark for mark in ';,' if mark in line), None)


def _split(line: str) -> list[str]:
    """Words of a line, which may end in a delimiter."""
    words = [word.strip(' \t"\'') for word in line.strip().split(_delimiter(line))]
    return words if words and words[-1] else words[:-1]


def _has_coordinates(words: list[str]) -> bool:
    return {'x', 'y', 'z'} <= {word.lower() for word in words}


def _are_numbers(words: list[str]) -> bool:
    try:
        return [float(word) for word in words] != []
    except ValueError:
        return False
