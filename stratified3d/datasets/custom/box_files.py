"""Annotated boxes of a dataset of one's own, from a CSV or JSON file; what is wrong is named with
its row."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_NUMBERS = ('x', 'y', 'z', 'dx', 'dy', 'dz', 'yaw')
_VELOCITY = ('vx', 'vy')


class NamedBox(NamedTuple):
    """Bottom center x, y, z, size dx (along the heading), dy, dz in meters, yaw in radians from +x
    towards +y, and velocity vx, vy in m/s, NaN where it is not annotated."""

    name: str
    numbers: tuple[float, ...]


def read_box_table(
    path: str | Path, origin: str = 'center', use_degrees: bool = False
) -> dict[str, list[NamedBox]]:
    """Read the boxes of all frames.

    Args:
        path: .csv with the columns frame, name, x, y, z, dx, dy, dz, yaw and, if annotated, vx, vy
        (further ones are
            left out), one row a box; or .json, {frame: [{"name": ..., "x": ..., ...}, ...]} with
        the same names. origin: what z is of, 'center' or 'bottom'. use_degrees: yaw is in degrees.
    Returns:
        {frame: its boxes}.
    Raises:
        FileNotFoundError, ValueError: a missing file, another format, or a box that cannot be, by
        row or frame.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no box file {path}')
    if origin not in ('center', 'bottom'):
        raise ValueError(f"origin is 'center' or 'bottom', not {origin!r}")
    if path.suffix not in ('.csv', '.json'):
        raise ValueError(f'{path}: boxes are read from .csv and .json files')
    frames: dict[str, list[NamedBox]] = defaultdict(list)
    for place, frame, fields in _csv_rows(path) if path.suffix == '.csv' else _json_rows(path):
        if fields is None:
            frames[frame] = []
        else:
            frames[frame].append(_box(f'{path}, {place}', fields, origin, use_degrees))
    return dict(frames)


def _csv_rows(path: Path) -> Iterator[tuple[str, str, dict]]:
    with path.open(newline='', encoding='utf-8-sig') as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        needed = ('frame', 'name', *_NUMBERS)
        missing = [column for column in needed if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f'{path}: the first line names the columns {", ".join(needed)}; {", ".join(missing)} '
                f'missing, found {", ".join(reader.fieldnames or ["nothing"])}'
            )
        for row in reader:
            yield f'line {reader.line_num}', (row['frame'] or '').strip(), row


def _json_rows(path: Path) -> Iterator[tuple[str, str, dict | None]]:
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path}: no valid JSON ({error})') from error
    if not isinstance(content, dict) or not all(
        isinstance(boxes, list) for boxes in content.values()
    ):
        raise ValueError(f'{path}: holds no {{frame: [boxes]}}')
    for frame, boxes in content.items():
        if not boxes:
            yield '', frame, None
        for i, fields in enumerate(boxes):
            if not isinstance(fields, dict):
                raise ValueError(
                    f'{path}, frame {frame}, box {i}: {fields!r} is no object with name, x, y, ...'
                )
            yield f'frame {frame}, box {i}', frame, fields


def _box(place: str, fields: dict, origin: str, use_degrees: bool) -> NamedBox:
    name = str(fields.get('name') or '').strip()
    if not name:
        raise ValueError(f'{place}: the box has no name')
    values = [_number(place, key, fields.get(key)) for key in _NUMBERS]
    if not all(map(math.isfinite, values)):
        raise ValueError(
            f'{place}: {dict(zip(_NUMBERS, values))} holds numbers that are not finite'
        )
    x, y, z, dx, dy, dz, yaw = values
    if min(dx, dy, dz) <= 0:
        raise ValueError(f'{place}: the size is {dx:g} x {dy:g} x {dz:g} m, all three are above 0')
    if use_degrees:
        yaw = math.radians(yaw)
    elif abs(yaw) > 2 * math.pi + 1e-3:
        raise ValueError(
            f'{place}: a yaw of {yaw:g} is beyond a full turn in radians: is it in degrees (--degrees)?'
        )
    velocity = [
        math.nan if fields.get(key) in (None, '') else _number(place, key, fields[key])
        for key in _VELOCITY
    ]
    return NamedBox(
        name, (x, y, z - dz / 2 if origin == 'center' else z, dx, dy, dz, yaw, *velocity)
    )


def _number(place: str, key: str, value: object) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f'{place}: {key} is {value!r}, no number') from None
