"""Points as lines of numbers or as records of bytes, which .pcd and .ply files share."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from stratified3d.datasets.io.formats.columns import (
    Columns,
    PointFileError,
    check_length,
    parse_numbers,
)


class Layout(NamedTuple):
    """The fields of every point.

    Attributes:
        names: of the fields.
        types: of their numbers.
        counts: how many numbers each has; those with more than one are left out.
    """

    names: list[str]
    types: list[np.dtype]
    counts: list[int]

    @property
    def row_bytes(self) -> int:
        """Size of a point in bytes."""
        return sum(kind.itemsize * count for kind, count in zip(self.types, self.counts))


def read_lines(path: Path, file: BinaryIO, layout: Layout, rows: int) -> Columns:
    """Read one line of numbers for each point from where the file stands.

    Raises:
        PointFileError: truncated or damaged.
    """
    numbers = sum(layout.counts)
    needed = 2 * rows * numbers - 1  # a number takes a digit and a space
    check_length(path, 'bytes', needed, path.stat().st_size - file.tell())
    table = parse_numbers(path, file, rows) if rows else np.zeros((0, numbers))
    if table.shape[1] != numbers:
        raise PointFileError(
            f'{path}: truncated or damaged: a line has {table.shape[1]} numbers, its header '
            f'announces {numbers}; write it again'
        )
    check_length(path, 'points', rows, len(table))

    starts = np.cumsum([0, *layout.counts])
    fields = zip(layout.names, starts, layout.counts)
    return {name: table[:, start] for name, start, count in fields if count == 1}


def read_records(path: Path, file: BinaryIO, layout: Layout, rows: int) -> Columns:
    """Read the bytes of point after point from where the file stands.

    Raises:
        PointFileError: truncated.
    """
    needed = rows * layout.row_bytes
    check_length(path, 'bytes', needed, path.stat().st_size - file.tell())
    content = np.frombuffer(file.read(needed), np.uint8).reshape(rows, layout.row_bytes)
    columns = {}
    start = 0
    for name, kind, count in zip(*layout):
        end = start + kind.itemsize * count
        if count == 1:
            columns[name] = np.ascontiguousarray(content[:, start:end]).view(kind)[:, 0]
        start = end
    return columns
