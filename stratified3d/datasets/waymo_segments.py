"""Frames of a segment of Waymo's perception v2 (parquet), one at a time, whatever order its rows are in."""
from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stratified3d.datasets.disk import naming
from stratified3d.datasets.range_images import beam_inclinations, image_points

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise ImportError("Waymo's files are parquet, and pyarrow cannot be imported: `pip install 'pyarrow<26'`"
                      ) from error

TOP = 1
_FRAME, _LASER = 'key.frame_timestamp_micros', 'key.laser_name'
_IMAGES = [f'[LiDARComponent].range_image_return{i}' for i in (1, 2)]
_POSE = '[LiDARPoseComponent].range_image_return1'
_HELD = 16  # rows that wait for others in memory; further ones wait on disk
_Image = tuple[np.ndarray, list[int]] | None


class Box(NamedTuple):
    """One label: id; centre x, y, z, length, width, height (m), heading (rad) in the vehicle frame; Waymo's type (1
    vehicle, 2 pedestrian, 3 sign, 4 cyclist); points inside; level of difficulty (1, 2; 0 where it is not given)."""

    name: str
    numbers: tuple[float, ...]
    type: int
    num_points: int
    difficulty: int


class Frame(NamedTuple):
    """index in time; timestamp (microseconds); pose [4, 4] vehicle to world; points [P, 6] float32 x, y, z (m, vehicle
    frame), intensity (unbounded), elongation, pixel of TOP's range image or -1, return 1 of all lasers before return 2;
    in_zone [P] bool, in a no-label zone; boxes."""

    index: int
    timestamp: int
    pose: np.ndarray
    points: np.ndarray
    in_zone: np.ndarray
    boxes: list[Box]


class _Laser(NamedTuple):
    extrinsic: np.ndarray
    inclinations: tuple


def read_segment(split: Path, context: str, spool: Path, is_annotated: bool = True) -> Iterator[Frame]:
    """The frames of a segment, each once all its rows were met.

    One row is held at a time, and as many finished ones as wait for others; beyond a few these wait in files, since
    nothing is said about the order of rows, and it may differ between components.

    Args:
        split: folder that holds the components' folders.
        context: the segment's name.
        spool: folder for rows that wait; it exists.
        is_annotated: whether there are boxes to read; those of the test split are not public.
    Raises:
        FileNotFoundError, ValueError: a component is missing, damaged or contradicts the others; names it.
        OSError: the spool's disk is full.
    """
    paths = {part: split / part / f'{context}.parquet' for part in (
        'lidar', 'lidar_pose', 'lidar_calibration', 'vehicle_pose', *(['lidar_box'] if is_annotated else []))}
    for path in paths.values():
        if not path.is_file():
            raise FileNotFoundError(f'there is no {path}: download the component {path.parent.name} of this segment')
    poses = _vehicle_poses(paths['vehicle_pose'])
    lasers = _calibrations(paths['lidar_calibration'])
    boxes = _boxes(paths['lidar_box']) if is_annotated else {}
    expected = _expected(paths['lidar'], set(lasers), set(poses))
    if strays := boxes.keys() - expected:
        raise ValueError(f'{paths["lidar_box"]}: has boxes of {len(strays)} frames that {paths["lidar"]} does not have')
    waiting, missing = _Spool(spool), dict.fromkeys(expected, len(lasers))
    index = {stamp: i for i, stamp in enumerate(sorted(expected))}
    pixel_poses = _PixelPoses(paths['lidar_pose'], waiting)
    for stamp, laser, *images in _rows(paths['lidar'], _IMAGES):
        pose = pixel_poses.take(stamp) if laser == TOP else None
        with _naming_damage(paths['lidar']):
            returns = [_points(image, number, lasers[laser], pose, poses[stamp]) for number, image in enumerate(images)]
        for number, points in enumerate(returns):
            waiting.put(f'{stamp}_{number}_{laser}', points)
        missing[stamp] -= 1
        if not missing[stamp]:
            every = np.concatenate([waiting.take(f'{stamp}_{number}_{laser}') for number in (0, 1)
                                    for laser in sorted(lasers)])
            yield Frame(index[stamp], stamp, poses[stamp], every[:, :6], every[:, 6] == 1, boxes.get(stamp, []))


def _points(image: _Image, number: int, laser: _Laser, pose: np.ndarray | None, vehicle_pose: np.ndarray) -> np.ndarray:
    """[P, 7] float32 of one return: a frame's columns, then whether a no-label zone holds the point (1)."""
    if image is None:
        return np.zeros((0, 7), np.float32)
    values = _shaped(image, 4)
    rows, columns = values.shape[:2]
    inclinations = beam_inclinations(*laser.inclinations, rows)
    if pose is not None and pose.shape[:2] != (rows, columns):
        raise ValueError(f'a range image of {rows} x {columns} pixels has {pose.shape[0]} x {pose.shape[1]} poses in '
                         'lidar_pose')
    points, pixel = image_points(values, inclinations, laser.extrinsic, pose, vehicle_pose)
    found = np.empty((len(points), 7), np.float32)
    found[:, :3] = points
    found[:, [3, 4, 6]] = values.reshape(-1, 4)[pixel, 1:]
    found[:, 5] = -1 if pose is None else number * rows * columns + pixel
    if np.isnan(found).any():
        raise ValueError('a range image holds an intensity, elongation or zone that is not a number')
    return found


def _shaped(image: _Image, channels: int) -> np.ndarray:
    values, shape = image
    if len(shape) != 3 or shape[2] != channels or np.prod(shape) != len(values):
        raise ValueError(f'a range image of shape {list(shape)} has {len(values)} values; [rows, columns, {channels}] '
                         'is meant')
    return values.reshape(shape)


class _PixelPoses:
    """Pixel poses by timestamp, from rows in an order of their own."""

    def __init__(self, path: Path, waiting: _Spool):
        self._path, self._rows, self._waiting, self._left = path, _rows(path, [_POSE]), waiting, set()

    def take(self, stamp: int) -> np.ndarray:
        """[H, W, 6] of TOP; ValueError if there is none."""
        if stamp in self._left:
            self._left.remove(stamp)
            return self._waiting.take(f'{stamp}_pose')
        for other, laser, image in self._rows:
            if laser != TOP:
                continue
            with _naming_damage(self._path):
                if image is None:
                    raise ValueError(f'frame {other} has no pixel poses')
                pose = _shaped(image, 6)
            if other == stamp:
                return pose
            self._left.add(other)
            self._waiting.put(f'{other}_pose', pose)
        raise ValueError(f'{self._path}: has no pixel poses of TOP for frame {stamp}')


class _Spool:
    """Arrays by name, taken once; the few latest in memory, the others as files."""

    def __init__(self, folder: Path):
        self._folder, self._held = folder, {}

    def put(self, name: str, array: np.ndarray) -> None:
        """Keep one."""
        self._held[name] = array.copy() if array.base is not None else array
        if len(self._held) > _HELD:
            oldest = next(iter(self._held))
            path = self._folder / f'{oldest}.npy'
            with naming(path):
                np.save(path, self._held.pop(oldest))

    def take(self, name: str) -> np.ndarray:
        """Give one back."""
        if name in self._held:
            return self._held.pop(name)
        path = self._folder / f'{name}.npy'
        array = np.load(path)
        path.unlink()
        return array


@contextlib.contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f'{path}: damaged, or not of perception v2 ({type(error).__name__}: {error}); download it '
                         'again') from error


def _rows(path: Path, images: list[str]) -> Iterator[tuple]:
    """(timestamp, laser, one (values, shape) or None an image) of every row; one row in memory at a time."""
    columns = [_FRAME, _LASER, *(f'{name}.{part}' for name in images for part in ('values', 'shape'))]
    with _naming_damage(path):
        file = pq.ParquetFile(path, buffer_size=1 << 18, pre_buffer=False, page_checksum_verification=True)
        batches = file.iter_batches(1, columns=columns, use_threads=False)
    with contextlib.closing(file):
        while True:
            with _naming_damage(path):
                batch = next(batches, None)
                if batch is None:
                    return
                if batch.num_rows == 0:
                    continue
                keys = tuple(_whole(key, batch[key][0].as_py()) for key in (_FRAME, _LASER))
                found = [_image(batch[f'{name}.values'][0], batch[f'{name}.shape'][0]) for name in images]
            yield (*keys, *found)


def _whole(key: str, value: object) -> int:
    if type(value) is not int:
        raise ValueError(f'{key} is {value!r}, which is no whole number')
    return value


def _image(values: pa.ListScalar, shape: pa.ListScalar) -> _Image:
    if not values.is_valid or not shape.is_valid or not len(values):
        return None
    return values.values.to_numpy(), shape.as_py()


def _table(path: Path, name: str, fields: dict[str, str], keys: list[str]) -> list[dict]:
    """Rows of a small component; fields {short name: that in the component}."""
    with _naming_damage(path):
        wanted = {short: f'[{name}].{field}' for short, field in fields.items()}
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if missing := {*keys, *wanted.values()} - set(map(str, file.schema_arrow.names)):
                raise ValueError(f'there is no column {", ".join(sorted(missing))}')
            rows = file.read([*keys, *wanted.values()], use_threads=False).to_pylist()
        for key in {_FRAME, _LASER} & set(keys):
            for row in rows:
                _whole(key, row[key])
        return [{**{key: row[key] for key in keys}, **{short: row[column] for short, column in wanted.items()}}
                for row in rows]


def _matrix(numbers: list[float]) -> np.ndarray:
    matrix = np.array(numbers, np.float64).reshape(4, 4)
    turn = matrix[:3, :3]
    if not (np.isfinite(matrix).all() and np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) and np.linalg.det(turn) > 0
            and np.allclose(matrix[3], [0, 0, 0, 1])):
        raise ValueError(f'{numbers} is no rigid transform')
    return matrix


def _vehicle_poses(path: Path) -> dict[int, np.ndarray]:
    rows = _table(path, 'VehiclePoseComponent', dict(pose='world_from_vehicle.transform'), [_FRAME])
    with _naming_damage(path):
        return {row[_FRAME]: _matrix(row['pose']) for row in rows}


def _calibrations(path: Path) -> dict[int, _Laser]:
    rows = _table(path, 'LiDARCalibrationComponent', dict(
        extrinsic='extrinsic.transform', values='beam_inclination.values', low='beam_inclination.min',
        high='beam_inclination.max'), [_LASER])
    with _naming_damage(path):
        lasers = {row[_LASER]: _Laser(_matrix(row['extrinsic']), (row['values'] or None, row['low'], row['high']))
                  for row in rows}
        if TOP not in lasers:
            raise ValueError(f'calibrates the lasers {sorted(lasers)}, TOP ({TOP}) is not among them')
        return lasers


def _boxes(path: Path) -> dict[int, list[Box]]:
    sides = dict(x='center.x', y='center.y', z='center.z', dx='size.x', dy='size.y', dz='size.z', heading='heading')
    fields = {short: f'box.{field}' for short, field in sides.items()}
    rows = _table(path, 'LiDARBoxComponent', dict(
        **fields, type='type', num_points='num_lidar_points_in_box', difficulty='difficulty_level.detection'),
        [_FRAME, 'key.laser_object_id'])
    boxes = defaultdict(list)
    with _naming_damage(path):
        for row in rows:
            numbers = tuple(float(row[short]) for short in sides)
            if not np.isfinite(numbers).all() or min(numbers[3:6]) <= 0:
                raise ValueError(f'box {row["key.laser_object_id"]} of frame {row[_FRAME]} is {numbers}')
            boxes[row[_FRAME]].append(Box(row['key.laser_object_id'], numbers, row['type'], row['num_points'] or 0,
                                          row['difficulty'] or 0))
    return {stamp: sorted(found) for stamp, found in boxes.items()}


def _expected(path: Path, lasers: set[int], stamps: set[int]) -> set[int]:
    """Timestamps of a segment's frames, after a look at all keys."""
    found = defaultdict(list)
    for row in _table(path, 'LiDARComponent', {}, [_FRAME, _LASER]):
        found[row[_FRAME]].append(row[_LASER])
    if not found:
        raise ValueError(f'{path}: holds no row')
    for stamp, names in found.items():
        if sorted(names) != sorted(lasers):
            raise ValueError(f'{path}: frame {stamp} has rows of the lasers {sorted(names)}, the calibration knows '
                             f'{sorted(lasers)}')
    if lost := found.keys() - stamps:
        raise ValueError(f'{path}: {len(lost)} of its frames are not in vehicle_pose, {min(lost)} first')
    return set(found)
