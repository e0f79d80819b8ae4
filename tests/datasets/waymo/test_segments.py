"""Reading perception v2: range images by hand, rows in any order, and damaged files."""

import math
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stratified3d.datasets.waymo import tables as waymo_tables
from stratified3d.datasets.waymo.range_images import beam_inclinations, image_points
from stratified3d.datasets.waymo.segments import read_segment

SEGMENT, STAMP, LASER = 'key.segment_context_name', 'key.frame_timestamp_micros', 'key.laser_name'


@pytest.fixture
def split(waymo_set, tmp_path, name):
    """A copy of the training split's first segment that a test may damage."""
    for path in sorted((waymo_set / 'training').glob('*/*.parquet')):
        if path.stem == name:
            (tmp_path / 'training' / path.parent.name).mkdir(parents=True)
            shutil.copy(path, tmp_path / 'training' / path.parent.name)
    return tmp_path / 'training'


@pytest.fixture
def name(waymo_set):
    return sorted((waymo_set / 'training/lidar').iterdir())[0].stem


@pytest.fixture
def read(tmp_path):
    (tmp_path / 'buffer').mkdir()
    return lambda split, name: list(read_segment(split, name, tmp_path / 'buffer'))


def matrix(yaw, place):
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array(
        [[cos, -sin, 0, place[0]], [sin, cos, 0, place[1]], [0, 0, 1, place[2]], [0, 0, 0, 1.0]]
    )


def test_points_of_a_range_image_computed_by_hand():
    """2 x 4 pixels look to 135, 45, -45, -135 degrees of the vehicle, whatever the sensor's own
    yaw."""
    image = np.zeros((2, 4, 4), np.float32)
    image[0, 1, 0], image[1, 3, 0], image[1, 0, 0] = 2.0, 4.0, -1.0
    rows = beam_inclinations(None, -math.pi / 3, math.pi / 3, 2)
    np.testing.assert_allclose(rows, [math.pi / 6, -math.pi / 6])
    points, pixel = image_points(image, rows, matrix(1.1, (1, 2, 3)))
    level, half = math.cos(math.pi / 6), math.sqrt(0.5)
    np.testing.assert_allclose(
        points,
        [
            [1 + 2 * level * half, 2 + 2 * level * half, 3 + 1],
            [1 - 4 * level * half, 2 - 4 * level * half, 3 - 2],
        ],
        atol=1e-6,
    )
    assert pixel.tolist() == [1, 7]
    np.testing.assert_allclose(beam_inclinations([-0.2, 0.0, 0.1], 9, 9, 3), [0.1, 0, -0.2])
    with pytest.raises(ValueError, match='3 inclinations.* 2 rows'):
        beam_inclinations([-0.2, 0.0, 0.1], 9, 9, 2)


def test_pixel_pose_computed_by_hand():
    """Roll, then pitch, then yaw, then the pixel's place; then back by the vehicle's pose."""
    image = np.zeros((1, 1, 4), np.float32)
    image[..., 0] = 5.0  # straight ahead: the one column's middle
    roll, pitch, yaw = 0.3, -0.2, 0.7
    pose = np.array([[[roll, pitch, yaw, 101.0, 202.0, 3.0]]], np.float32)
    vehicle, extrinsic = matrix(0.5, (100, 200, 1)), matrix(0.0, (1, 0, 2))

    def rotation(axis, angle):
        i, j = [k for k in range(3) if k != axis]
        out = np.eye(3)
        out[i, i] = out[j, j] = math.cos(angle)
        sign = -1 if axis == 1 else 1
        out[i, j], out[j, i] = -sign * math.sin(angle), sign * math.sin(angle)
        return out

    world = rotation(2, yaw) @ rotation(1, pitch) @ rotation(0, roll) @ [6, 0, 2] + [101, 202, 3]
    points, _ = image_points(image, np.zeros(1), extrinsic, pose, vehicle)
    np.testing.assert_allclose(points[0], (np.linalg.inv(vehicle) @ [*world, 1])[:3], atol=1e-5)


def test_frames_contain_what_the_files_contain(waymo_set, name, read):
    frames = read(waymo_set / 'training', name)
    assert [frame.index for frame in frames] == [0, 1] and frames[1].timestamp - frames[
        0
    ].timestamp == 100_000
    table = pq.read_table(waymo_set / 'training/lidar' / f'{name}.parquet')
    for i, frame in enumerate(frames):
        images = [
            [
                np.array(
                    table[f'[LiDARComponent].range_image_return{number}.values'][
                        5 * i + laser
                    ].values
                ).reshape(-1, 4)
                for laser in range(5)
            ]
            for number in (1, 2)
        ]
        every = np.concatenate([image for row in images for image in row])
        every = every[every[:, 0] > 0]
        np.testing.assert_array_equal(
            frame.points[:, 3:5], every[:, 1:3]
        )  # return 1 of all lasers, then return 2
        np.testing.assert_array_equal(frame.in_zone, every[:, 3] == 1)
        assert frame.in_zone.any() and not frame.in_zone.all()
        pixel = frame.points[:, 5].astype(int)
        for number in (0, 1):
            top = np.flatnonzero(images[number][0][:, 0] > 0)
            mine = pixel[(pixel >= number * 169600) & (pixel < (number + 1) * 169600)]
            np.testing.assert_array_equal(mine, number * 169600 + top)
        assert (
            (pixel == -1).sum()
            == sum((image[:, 0] > 0).sum() for row in images for image in row[1:])
            > 0
        )
    box = frames[0].boxes[0]
    inside = points_in(frames[0].points[:, :3], box)
    # counted in the world, where boxes stand upright, and here in the vehicle frame, which leans
    # with the road
    assert abs(inside - box.num_points) <= 0.05 * box.num_points + 3


def points_in(points, box):
    x, y, z, dx, dy, dz, heading = box.numbers
    local = (points - [x, y, z]) @ matrix(heading, (0, 0, 0))[:3, :3]
    return (np.abs(local) <= np.array([dx, dy, dz]) / 2).all(1).sum()


def assert_same(frames, others):
    assert [frame.timestamp for frame in frames] == [frame.timestamp for frame in others]
    for one, other in zip(frames, others):
        np.testing.assert_array_equal(one.points, other.points)
        np.testing.assert_array_equal(one.in_zone, other.in_zone)
        assert one.boxes == other.boxes


@pytest.mark.slow
def test_frames_do_not_depend_on_the_order_of_rows(
    split, name, read, rewrite, monkeypatch, tmp_path
):
    """Laser by laser, each component in an order of its own, one row group or many: the same
    frames."""
    whole = read(split, name)
    monkeypatch.setattr(waymo_tables, '_MAX_IN_MEMORY', 3)
    for part in split.iterdir():
        rng = np.random.default_rng(len(part.name))
        rewrite(
            part / f'{name}.parquet', lambda table, rng=rng: table.take(rng.permutation(len(table)))
        )
    rewrite(
        split / 'lidar' / f'{name}.parquet',
        lambda table: table.sort_by([(LASER, 'descending'), (STAMP, 'descending')]),
        compression='zstd',
    )
    rewrite(
        split / 'lidar_pose' / f'{name}.parquet',
        lambda table: table.sort_by([(STAMP, 'ascending')]),
        row_group_size=1,
    )
    assert_same(whole, sorted(read(split, name), key=lambda frame: frame.index))
    assert not list((tmp_path / 'buffer').iterdir())


PRINT_ALLOCATED = """
import sys
import pyarrow as pa
from pathlib import Path
from stratified3d.datasets.waymo.components import IMAGES, read_rows
for _ in read_rows(Path(sys.argv[1]), IMAGES):
    print(pa.total_allocated_bytes())
"""


@pytest.mark.slow
def test_memory_of_reading_rows_does_not_grow_with_the_segment(split, name, tmp_path):
    """One row group of 2 frames and one of 6: what Arrow holds while they are read is the same."""
    path = split / 'lidar' / f'{name}.parquet'
    peaks = []
    for times in (1, 3):
        table = pq.read_table(path)
        if times > 1:
            copies = []
            for i in range(times):
                stamps = pa.array([stamp + i * 200_000 for stamp in table[STAMP].to_pylist()])
                copies.append(table.set_column(table.schema.get_field_index(STAMP), STAMP, stamps))
            pq.write_table(pa.concat_tables(copies), path, row_group_size=1000)
            del copies
        del table
        # in a process of its own: here others may free what they hold at any moment
        allocated = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', PRINT_ALLOCATED, str(path)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        assert len(allocated) == 10 * times
        peaks.append(max(map(int, allocated)))
    assert peaks[1] < 1.5 * peaks[0] < 60e6


def without_row(column, value):
    return lambda table: table.filter(pc.not_equal(table[column], value))


def with_column(column, value):
    def change(table):
        index = table.schema.get_field_index(column)
        return table.set_column(
            index, column, pa.array([value] * len(table), table.schema.field(index).type)
        )

    return change


def with_text(column):
    def change(table):
        index = table.schema.get_field_index(column)
        return table.set_column(
            index, column, pa.array([f'/tmp/{value}' for value in table[column].to_pylist()])
        )

    return change


SCALED = np.diag([2, 0.5, 1, 1.0]).ravel().tolist()  # of determinant 1

DAMAGE = {
    'text for a timestamp': (
        'lidar',
        with_text(STAMP),
        'frame_timestamp_micros is',
    ),
    'null for a laser': ('lidar', with_column(LASER, None), 'laser_name is None'),
    'scaled pose': (
        'vehicle_pose',
        with_column('[VehiclePoseComponent].world_from_vehicle.transform', SCALED),
        'rigid transform',
    ),
    'not calibrated': ('lidar_calibration', without_row(LASER, 3), r'calibrates \[1, 2, 4, 5\]'),
    'no TOP': (
        'lidar_calibration',
        without_row(LASER, 1),
        r'lasers \[2, 3, 4, 5\].*TOP',
    ),
    'a sixth': (
        'lidar_calibration',
        with_column(LASER, 6),
        r'lasers \[6\]',
    ),
    'another name': (
        'lidar_pose',
        with_column(SEGMENT, '12_0'),
        "'12_0'.*'[0-9_]+'",
    ),
    'another segment': (
        'vehicle_pose',
        with_column(SEGMENT, '12_0'),
        "'12_0'",
    ),
    'no type': ('lidar_box', with_column('[LiDARBoxComponent].type', None), 'type is None'),
    'no row': ('lidar', lambda table: table.slice(0, 0), 'contains no rows'),
    'twice': ('lidar', lambda table: pa.concat_tables([table, table]), r'\[1, 1, 2, 2'),
    'no pose': (
        'vehicle_pose',
        lambda table: table.slice(1),
        'not in vehicle_pose',
    ),
    'no pixel pose': (
        'lidar_pose',
        lambda table: table.slice(1),
        'no pixel poses of TOP',
    ),
    'shape': (
        'lidar',
        with_column('[LiDARComponent].range_image_return1.shape', [64, 2650, 3]),
        'image of shape',
    ),
    'pose shape': (
        'lidar_pose',
        with_column('[LiDARPoseComponent].range_image_return1.shape', [2650, 64, 6]),
        '2650 x 64 poses',
    ),
    'no rotation': (
        'vehicle_pose',
        with_column('[VehiclePoseComponent].world_from_vehicle.transform', [2.0] * 16),
        'rigid transform',
    ),
    'box': ('lidar_box', with_column('[LiDARBoxComponent].box.size.x', -1.0), 'box actor-'),
    'column': (
        'lidar_box',
        lambda table: table.drop_columns(['[LiDARBoxComponent].type']),
        'no column .*type',
    ),
    'boxes of unknown frames': (
        'lidar_box',
        with_column(STAMP, 77),
        'boxes of 1 frames.* 77',
    ),
    'cut': ('lidar', None, 'damaged'),
    'flipped': ('lidar_pose', None, 'damaged'),
    'absent': ('vehicle_pose', None, 'component vehicle_pose'),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_component_is_named(split, name, read, rewrite, damage):
    part, change, message = DAMAGE[damage]
    path = split / part / f'{name}.parquet'
    if change:
        rewrite(path, change)
    elif damage == 'absent':
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        if damage == 'flipped':  # found by the page's checksum
            content[len(content) // 2] ^= 16
        path.write_bytes(content[: len(content) // 2] if damage == 'cut' else content)
    with pytest.raises((FileNotFoundError, ValueError), match=message) as failure:
        read(split, name)
    assert part in str(failure.value) and name in str(failure.value)


@pytest.mark.parametrize(
    'value, message',
    [
        (np.inf, 'not finite'),
        (np.nan, 'not finite'),
        ((5, np.nan, 0, 0), 'intensity, elongation'),
    ],
)
def test_range_image_with_a_bad_number_is_refused(split, name, read, rewrite, value, message):
    def change(table):
        column = '[LiDARComponent].range_image_return1.values'
        rows = [np.array(row.values) for row in table[column]]
        rows[0][:4] = value
        index = table.schema.get_field_index(column)
        return table.set_column(index, column, pa.array(rows, table.schema.field(index).type))

    rewrite(split / 'lidar' / f'{name}.parquet', change)
    with pytest.raises(ValueError, match=message):
        read(split, name)
