"""Components of Waymo's perception v2: the parquet files of a segment, read a row at a time or
whole."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stratified3d.datasets.waymo.range_images import LaserCalibration, RangeImage

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
_SEGMENT = 'key.segment_context_name'
_FRAME = 'key.frame_timestamp_micros'
_LASER = 'key.laser_name'
_OBJECT = 'key.laser_object_id'
_SIDES = dict(
    x='box.center.x',
    y='box.center.y',
    z='box.center.z',
    dx='box.size.x',
    dy='box.size.y',
    dz='box.size.z',
    heading='box.heading',
)


class Box(NamedTuple):
    """One label: id; center x, y, z, length, width, height (m), heading (rad) in the vehicle frame;
    Waymo's type (1 vehicle, 2 pedestrian, 3 sign, 4 cyclist); points inside; level of difficulty
    (1, 2; 0 where it is not given)."""

    name: str
    numbers: tuple[float, ...]
    type: int
    num_points: int
    difficulty: int


class Row(NamedTuple):
    """One row of a large component: timestamp of its frame, its laser, its range images."""

    timestamp: int
    laser: int
    images: list[RangeImage]


@contextlib.contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Turn errors raised inside into a ValueError that names the file and says what to do."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f'{path}: damaged, or not a file of perception v2 ({type(error).__name__}: {error}); '
            'download it again'
        ) from error


def read_rows(path: Path, images: list[str]) -> Iterator[Row]:
    """Rows of a large component with these columns of range images; one row in memory at a time.

    Raises:
        ValueError: damaged, or of another segment than its name says; names it.
    """
    columns = [_SEGMENT, _FRAME, _LASER]
    for name in images:
        columns += [f'{name}.values', f'{name}.shape']

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
                row = _read_row(path, batch, images)
            yield row


def _read_row(path: Path, batch: pa.RecordBatch, images: list[str]) -> Row:
    _check_segment(path, {batch[_SEGMENT][0].as_py()})
    timestamp = _check_int(_FRAME, batch[_FRAME][0].as_py())
    laser = _check_int(_LASER, batch[_LASER][0].as_py())
    found = [_read_image(batch[f'{name}.values'][0], batch[f'{name}.shape'][0]) for name in images]
    return Row(timestamp, laser, found)


def _read_image(values: pa.ListScalar, shape: pa.ListScalar) -> RangeImage:
    if not values.is_valid or not shape.is_valid or not len(values):
        return None
    return values.values.to_numpy(), shape.as_py()


def _check_segment(path: Path, found: set) -> None:
    if unknown := found - {path.stem}:
        raise ValueError(
            f'contains rows of the segment {unknown.pop()!r}, but its name says {path.stem!r}'
        )


def _check_int(key: str, value: object) -> int:
    if type(value) is not int:
        raise ValueError(f'{key} is {value!r}, which is not an integer')
    return value


def _read_table(path: Path, component: str, fields: dict[str, str], keys: list[str]) -> list[dict]:
    """Rows of a small component with their keys and fields, {short name: that in the component}."""
    columns = {short: f'[{component}].{field}' for short, field in fields.items()}
    names = [_SEGMENT, *keys, *columns.values()]
    with naming_damage(path):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if missing := set(names) - set(map(str, file.schema_arrow.names)):
                raise ValueError(f'there is no column {", ".join(sorted(missing))}')
            rows = file.read(names, use_threads=False).to_pylist()

        _check_segment(path, {row[_SEGMENT] for row in rows})
        for key in (_FRAME, _LASER):
            if key in keys:
                for row in rows:
                    _check_int(key, row[key])

    table = []
    for row in rows:
        entry = {key: row[key] for key in keys}
        entry |= {short: row[column] for short, column in columns.items()}
        table.append(entry)
    return table


def _rigid_transform(numbers: list[float]) -> np.ndarray:
    """[4, 4]; ValueError where it is more than a rotation and a translation."""
    matrix = np.array(numbers, np.float64).reshape(4, 4)
    rotation = matrix[:3, :3]
    if not (
        np.isfinite(matrix).all()
        and np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3)
        and np.linalg.det(rotation) > 0
        and np.allclose(matrix[3], [0, 0, 0, 1])
    ):
        raise ValueError(f'{numbers} is not a rigid transform')
    return matrix


def read_vehicle_poses(path: Path) -> dict[int, np.ndarray]:
    """{timestamp: [4, 4] vehicle to world}; ValueError where the file is damaged, as below."""
    fields = dict(pose='world_from_vehicle.transform')
    rows = _read_table(path, 'VehiclePoseComponent', fields, [_FRAME])
    with naming_damage(path):
        return {row[_FRAME]: _rigid_transform(row['pose']) for row in rows}


def read_calibrations(path: Path) -> dict[int, LaserCalibration]:
    """{laser: its calibration}; TOP's is among them."""
    fields = dict(
        extrinsic='extrinsic.transform',
        values='beam_inclination.values',
        low='beam_inclination.min',
        high='beam_inclination.max',
    )
    rows = _read_table(path, 'LiDARCalibrationComponent', fields, [_LASER])
    with naming_damage(path):
        lasers = {}
        for row in rows:
            extrinsic = _rigid_transform(row['extrinsic'])
            inclinations = row['values'] or None
            lasers[row[_LASER]] = LaserCalibration(extrinsic, inclinations, row['low'], row['high'])
        if TOP not in lasers or lasers.keys() - LASERS.keys():
            raise ValueError(
                f'calibrates the lasers {sorted(lasers)}; they are {LASERS}, and TOP is needed'
            )
    return lasers


def read_lidar_boxes(path: Path) -> dict[int, list[Box]]:
    """{timestamp: its boxes, sorted}."""
    fields = dict(
        _SIDES,
        type='type',
        num_points='num_lidar_points_in_box',
        difficulty='difficulty_level.detection',
    )
    rows = _read_table(path, 'LiDARBoxComponent', fields, [_FRAME, _OBJECT])
    boxes = defaultdict(list)
    with naming_damage(path):
        for row in rows:
            boxes[row[_FRAME]].append(_make_box(row))
    return {stamp: sorted(found) for stamp, found in boxes.items()}


def _make_box(row: dict) -> Box:
    numbers = tuple(float(row[short]) for short in _SIDES)
    if not np.isfinite(numbers).all() or min(numbers[3:6]) <= 0:
        raise ValueError(f'box {row[_OBJECT]} of frame {row[_FRAME]} is {numbers}')
    return Box(
        row[_OBJECT],
        numbers,
        _check_int('type', row['type']),
        row['num_points'] or 0,
        row['difficulty'] or 0,
    )


def read_lasers(path: Path) -> dict[int, list[int]]:
    """{timestamp: lasers that have a row of range images}."""
    found = defaultdict(list)
    for row in _read_table(path, 'LiDARComponent', {}, [_FRAME, _LASER]):
        found[row[_FRAME]].append(row[_LASER])
    if not found:
        raise ValueError(f'{path}: contains no rows')
    return dict(found)
