"""Components of Waymo's perception v2: the parquet files of a segment, read a row at a time or
whole."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise ImportError(
        "Waymo's files are parquet, and pyarrow cannot be imported: `pip install 'pyarrow<26'`"
    ) from error

LASERS = {1: 'TOP', 2: 'FRONT', 3: 'SIDE_LEFT', 4: 'SIDE_RIGHT', 5: 'REAR'}
TOP = 1
IMAGES = [f'[LiDARComponent].range_image_return{i}' for i in (1, 2)]
POSE = '[LiDARPoseComponent].range_image_return1'
_SEGMENT, _FRAME, _LASER = (
    'key.segment_context_name',
    'key.frame_timestamp_micros',
    'key.laser_name',
)
Image = tuple[np.ndarray, list[int]] | None  # values and shape


class Box(NamedTuple):
    """One label: id; center x, y, z, length, width, height (m), heading (rad) in the vehicle frame;
    Waymo's type (1 vehicle, 2 pedestrian, 3 sign, 4 cyclist); points inside; level of difficulty
    (1, 2; 0 where it is not given)."""

    name: str
    numbers: tuple[float, ...]
    type: int
    num_points: int
    difficulty: int


class Laser(NamedTuple):
    """Calibration of a LiDAR: extrinsic [4, 4] sensor to vehicle; values, lowest and highest of its
    beams' inclinations, as `beam_inclinations` takes them."""

    extrinsic: np.ndarray
    inclinations: tuple


@contextlib.contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Let what is wrong inside be a ValueError that names the file and says what to do."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f'{path}: damaged, or not of perception v2 ({type(error).__name__}: {error}); download it '
            'again'
        ) from error


def read_rows(path: Path, images: list[str]) -> Iterator[tuple]:
    """(timestamp, laser, one (values, shape) or None an image) of every row; one row in memory at a
    time.

    Raises:
        ValueError: damaged, or of another segment than its name says; names it.
    """
    columns = [
        _SEGMENT,
        _FRAME,
        _LASER,
        *(f'{name}.{part}' for name in images for part in ('values', 'shape')),
    ]
    with naming_damage(path):
        file = pq.ParquetFile(
            path, buffer_size=1 << 18, pre_buffer=False, page_checksum_verification=True
        )
        batches = file.iter_batches(1, columns=columns, use_threads=False)
    with contextlib.closing(file):
        while True:
            with naming_damage(path):
                batch = next(batches, None)
                if batch is None:
                    return
                if batch.num_rows == 0:
                    continue
                _check_segment(path, {batch[_SEGMENT][0].as_py()})
                keys = tuple(_whole(key, batch[key][0].as_py()) for key in (_FRAME, _LASER))
                found = [
                    _image(batch[f'{name}.values'][0], batch[f'{name}.shape'][0]) for name in images
                ]
            yield (*keys, *found)


def _check_segment(path: Path, found: set) -> None:
    if strange := found - {path.stem}:
        raise ValueError(
            f'holds rows of the segment {strange.pop()!r}, its name says {path.stem!r}'
        )


def _whole(key: str, value: object) -> int:
    if type(value) is not int:
        raise ValueError(f'{key} is {value!r}, which is no whole number')
    return value


def _image(values: pa.ListScalar, shape: pa.ListScalar) -> Image:
    if not values.is_valid or not shape.is_valid or not len(values):
        return None
    return values.values.to_numpy(), shape.as_py()


def _table(path: Path, name: str, fields: dict[str, str], keys: list[str]) -> list[dict]:
    """Rows of a small component; fields {short name: that in the component}."""
    with naming_damage(path):
        wanted = {short: f'[{name}].{field}' for short, field in fields.items()}
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if missing := {_SEGMENT, *keys, *wanted.values()} - set(
                map(str, file.schema_arrow.names)
            ):
                raise ValueError(f'there is no column {", ".join(sorted(missing))}')
            rows = file.read([_SEGMENT, *keys, *wanted.values()], use_threads=False).to_pylist()
        _check_segment(path, {row[_SEGMENT] for row in rows})
        for key in {_FRAME, _LASER} & set(keys):
            for row in rows:
                _whole(key, row[key])
        return [
            {
                **{key: row[key] for key in keys},
                **{short: row[column] for short, column in wanted.items()},
            }
            for row in rows
        ]


def _matrix(numbers: list[float]) -> np.ndarray:
    matrix = np.array(numbers, np.float64).reshape(4, 4)
    turn = matrix[:3, :3]
    if not (
        np.isfinite(matrix).all()
        and np.allclose(turn @ turn.T, np.eye(3), atol=1e-3)
        and np.linalg.det(turn) > 0
        and np.allclose(matrix[3], [0, 0, 0, 1])
    ):
        raise ValueError(f'{numbers} is no rigid transform')
    return matrix


def read_vehicle_poses(path: Path) -> dict[int, np.ndarray]:
    """{timestamp: [4, 4] vehicle to world}; ValueError where the file is damaged, as below."""
    rows = _table(path, 'VehiclePoseComponent', dict(pose='world_from_vehicle.transform'), [_FRAME])
    with naming_damage(path):
        return {row[_FRAME]: _matrix(row['pose']) for row in rows}


def read_calibrations(path: Path) -> dict[int, Laser]:
    """{laser: its calibration}; TOP's is there."""
    rows = _table(
        path,
        'LiDARCalibrationComponent',
        dict(
            extrinsic='extrinsic.transform',
            values='beam_inclination.values',
            low='beam_inclination.min',
            high='beam_inclination.max',
        ),
        [_LASER],
    )
    with naming_damage(path):
        lasers = {
            row[_LASER]: Laser(
                _matrix(row['extrinsic']), (row['values'] or None, row['low'], row['high'])
            )
            for row in rows
        }
        if TOP not in lasers or lasers.keys() - LASERS.keys():
            raise ValueError(
                f'calibrates the lasers {sorted(lasers)}; they are {LASERS}, TOP among them'
            )
        return lasers


def read_lidar_boxes(path: Path) -> dict[int, list[Box]]:
    """{timestamp: its boxes in order}."""
    sides = dict(
        x='center.x',
        y='center.y',
        z='center.z',
        dx='size.x',
        dy='size.y',
        dz='size.z',
        heading='heading',
    )
    fields = {short: f'box.{field}' for short, field in sides.items()}
    rows = _table(
        path,
        'LiDARBoxComponent',
        dict(
            **fields,
            type='type',
            num_points='num_lidar_points_in_box',
            difficulty='difficulty_level.detection',
        ),
        [_FRAME, 'key.laser_object_id'],
    )
    boxes = defaultdict(list)
    with naming_damage(path):
        for row in rows:
            numbers = tuple(float(row[short]) for short in sides)
            if not np.isfinite(numbers).all() or min(numbers[3:6]) <= 0:
                raise ValueError(
                    f'box {row["key.laser_object_id"]} of frame {row[_FRAME]} is {numbers}'
                )
            boxes[row[_FRAME]].append(
                Box(
                    row['key.laser_object_id'],
                    numbers,
                    _whole('type', row['type']),
                    row['num_points'] or 0,
                    row['difficulty'] or 0,
                )
            )
    return {stamp: sorted(found) for stamp, found in boxes.items()}


def read_lasers(path: Path) -> dict[int, list[int]]:
    """{timestamp: lasers that have a row of range images}."""
    found = defaultdict(list)
    for row in _table(path, 'LiDARComponent', {}, [_FRAME, _LASER]):
        found[row[_FRAME]].append(row[_LASER])
    if not found:
        raise ValueError(f'{path}: holds no row')
    return dict(found)
