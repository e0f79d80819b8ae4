"""Annotated boxes of a dataset of one's own, from a CSV or JSON file."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_NUMBERS = ('x', 'y', 'z', 'dx', 'dy', 'dz', 'yaw')
_VELOCITY = ('vx', 'vy')


class NamedBox(NamedTuple):
    """A box with the name of its class.

    Attributes:
        name: the class.
        numbers: [9] bottom center x, y, z, size dx (along the heading), dy, dz (m), yaw from +x
            towards +y (rad), velocity vx, vy (m/s, NaN where it is not annotated).
    """

    name: str
    numbers: tuple[float, ...]


def read_box_table(
    path: str | Path, origin: str = 'center', use_degrees: bool = False
) -> dict[str, list[NamedBox]]:
    """Read the boxes of all frames.

    Args:
        path: .csv or .json file. A .csv has one row per box with the columns frame, name, x, y, z,
            dx, dy, dz, yaw and, if annotated, vx, vy; further columns are left out. A .json is
            {frame: [{"name": ..., "x": ..., ...}, ...]} with the same names.
        origin: what z refers to, 'center' or 'bottom'.
        use_degrees: yaw is in degrees.
    Returns:
        {frame: its boxes}.
    Raises:
        FileNotFoundError, ValueError: a missing file, another format, or an impossible box, named
            by its row or frame.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no box file {path}')
    if origin not in ('center', 'bottom'):
        raise ValueError(f"origin is 'center' or 'bottom', not {origin!r}")
    if path.suffix not in ('.csv', '.json'):
        raise ValueError(f'{path}: boxes are read from .csv and .json files')
    frames: dict[str, list[NamedBox]] = defaultdict(list)
    read_rows = _csv_rows if path.suffix == '.csv' else _json_rows
    for place, frame, fields in read_rows(path):
        if fields is None:
            frames[frame] = []
        else:
            frames[frame].append(_parse_box(f'{path}, {place}', fields, origin, use_degrees))
    return dict(frames)


def _csv_rows(path: Path) -> Iterator[tuple[str, str, dict | None]]:
    """(line, frame, columns of a box)."""
    with path.open(newline='', encoding='utf-8-sig') as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        needed = ('frame', 'name', *_NUMBERS)
        found = list(reader.fieldnames or [])
        missing = [column for column in needed if column not in found]
        if missing:
            raise ValueError(
                f'{path}: the first line names the columns {", ".join(needed)}; '
                f'{", ".join(missing)} missing, found {", ".join(found or ["nothing"])}'
            )
        for row in reader:
            yield f'line {reader.line_num}', (row['frame'] or '').strip(), row


def _json_rows(path: Path) -> Iterator[tuple[str, str, dict | None]]:
    """(place, frame, fields of a box); no fields for a frame without boxes."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path}: not valid JSON ({error})') from error
    is_table = isinstance(content, dict)
    if not is_table or not all(isinstance(boxes, list) for boxes in content.values()):
        raise ValueError(f'{path}: not of the form {{frame: [boxes]}}')
    for frame, boxes in content.items():
        if not boxes:
            yield '', frame, None
        for i, fields in enumerate(boxes):
            if not isinstance(fields, dict):
                raise ValueError(
                    f'{path}, frame {frame}, box {i}: {fields!r} is not an object with name, x, '
                    'y, ...'
                )
            yield f'frame {frame}, box {i}', frame, fields


def _parse_box(place: str, fields: dict, origin: str, use_degrees: bool) -> NamedBox:
    """A box from its fields; place is where they are, for messages."""
    name = str(fields.get('name') or '').strip()
    if not name:
        raise ValueError(f'{place}: the box has no name')
    values = [_number(place, key, fields.get(key)) for key in _NUMBERS]
    if not all(map(math.isfinite, values)):
        numbers = dict(zip(_NUMBERS, values))
        raise ValueError(f'{place}: {numbers} contains numbers that are not finite')
    x, y, z, dx, dy, dz, yaw = values
    if min(dx, dy, dz) <= 0:
        raise ValueError(f'{place}: the size is {dx:g} x {dy:g} x {dz:g} m, all three are above 0')

    if use_degrees:
        yaw = math.radians(yaw)
    elif abs(yaw) > 2 * math.pi + 1e-3:
        raise ValueError(
            f'{place}: a yaw of {yaw:g} is more than a full turn in radians: is it in degrees '
            '(--degrees)?'
        )
    if origin == 'center':
        z -= dz / 2
    velocity = [_velocity(place, key, fields.get(key)) for key in _VELOCITY]
    return NamedBox(name, (x, y, z, dx, dy, dz, yaw, *velocity))


def _velocity(place: str, key: str, value: Any) -> float:
    return math.nan if value is None or value == '' else _number(place, key, value)


def _number(place: str, key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f'{place}: {key} is {value!r}, not a number') from None
