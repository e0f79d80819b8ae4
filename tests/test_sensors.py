"""Frames of sensors: changes there and back, the ground, and signs of a wrong frame."""

import argparse
import re
from dataclasses import replace

import numpy as np
import pytest

from stratified3d.frame_checks import check_frame
from stratified3d.ground import find_ground
from stratified3d.sensor_options import add_sensor_options, read_sensor_options
from stratified3d.sensors import (
    AXES,
    SENSORS,
    FrameChange,
    Sensor,
    frame_change,
    model_sensor,
    named_sensor,
)
from stratified3d.simulation.frame import simulate_frame

NUSCENES = SENSORS['nuscenes']
LIMITS = np.array([-54.0, -54.0, -5.0, 54.0, 54.0, 3.0])
SEEDS = (0, 3, 16)


@pytest.fixture(scope='module')
def frames():
    """Points and boxes of simulated frames by their seeds."""
    return {seed: simulate_frame(seed) for seed in SEEDS}


@pytest.fixture(params=SEEDS)
def points(request, frames):
    return frames[request.param]['points']


@pytest.fixture(scope='module')
def real_keyframe(real_data):
    (path,) = (real_data / 'nuscenes_keyframe').glob('*.bin')
    return np.fromfile(path, np.float32).reshape(-1, 5)


@pytest.fixture(scope='module')
def real_kitti(real_data):
    return np.fromfile(real_data / 'kitti_frame/000008.bin', np.float32).reshape(-1, 4)


def as_seen_by(points, sensor):
    """Points [P, >= 4] of nuScenes' frame in a sensor's."""
    change = FrameChange(NUSCENES, sensor)
    return change.points_to_model(points)


def with_axes(points, x, y, z):
    """The points with other columns as coordinates; a negative number counts from 1 and negates."""
    turned = points.copy()
    for column, source in enumerate((x, y, z)):
        turned[:, column] = np.sign(source) * points[:, abs(source) - 1]
    return turned


def tilted(points, degrees_x, degrees_y):
    """Points rotated about x, then about y."""
    (cos_x, cos_y), (sin_x, sin_y) = (
        function(np.radians([degrees_x, degrees_y])) for function in (np.cos, np.sin)
    )
    about_x = np.array([[1, 0, 0], [0, cos_x, -sin_x], [0, sin_x, cos_x]])
    about_y = np.array([[cos_y, 0, sin_y], [0, 1, 0], [-sin_y, 0, cos_y]])
    rotated = points.astype(np.float64)
    rotated[:, :3] = points[:, :3] @ (about_y @ about_x).T
    return rotated


# ----------------------------------------------------------------------------------------------
# there and back


@pytest.mark.parametrize('forward', AXES)
@pytest.mark.parametrize('model_forward', AXES)
@pytest.mark.parametrize('height', [-1.0, 0.0, 1.84, 3.5])
@pytest.mark.parametrize('width', [7, 9])
def test_boxes_come_back(forward, model_forward, height, width):
    boxes = np.random.default_rng(0).uniform(-3, 3, (20, width))
    change = FrameChange(Sensor(forward, height, 1.0), Sensor(model_forward, 1.84, 255.0))
    back = change.boxes_to_file(change.boxes_to_model(boxes))
    np.testing.assert_allclose(back, boxes, atol=1e-12)


@pytest.mark.parametrize('forward', AXES)
def test_what_is_ahead_of_the_file_is_ahead_of_the_model(forward):
    """Five meters ahead, one to the left, on the ground, driving ahead."""
    axis = np.array({'x': [1, 0], 'y': [0, 1], '-x': [-1, 0], '-y': [0, -1]}[forward])
    left = np.array([-axis[1], axis[0]])
    x, y = 5 * axis + left
    yaw = np.arctan2(axis[1], axis[0])
    change = FrameChange(Sensor(forward, 0.5, 10.0), NUSCENES)
    (box,) = change.boxes_to_model(np.array([[x, y, -0.5, 4, 2, 1.5, yaw, *(3 * axis)]]))
    np.testing.assert_allclose(box, [-1, 5, -1.84, 4, 2, 1.5, np.pi / 2, 0, 3], atol=1e-12)
    (point,) = change.points_to_model(np.array([[x, y, -0.5, 2.0]]))
    np.testing.assert_allclose(point, [-1, 5, -1.84, 51], atol=1e-12)
    np.testing.assert_allclose(change.positions_to_file(point[None, :3]), [[x, y, -0.5]])


def test_limits_are_turned_and_lifted():
    change = FrameChange(Sensor('x', 0.0, 1.0), NUSCENES)
    limits = change.limits_to_file([-10, -20, -5, 30, 40, 3])
    np.testing.assert_allclose(limits, [-20, -30, -3.16, 40, 10, 4.84])


def test_the_same_frame_changes_nothing(points):
    change = frame_change(points, 'nuscenes', NUSCENES)
    np.testing.assert_array_equal(change.points_to_model(points), points)


def test_intensities_end_at_full_scale():
    change = FrameChange(SENSORS['waymo'], NUSCENES)
    moved = change.points_to_model(np.array([[0, 0, 0, 0.5], [0, 0, 0, 700]]))
    assert moved[:, 3].tolist() == [127.5, 255]


def test_what_a_sensor_leaves_open_is_found(points):
    seen = as_seen_by(points, Sensor('x', 1.2, 1.0))
    found = frame_change(seen, 'auto', NUSCENES).sensor
    assert abs(found.height - 1.2) < 0.1 and found.intensity_max == 1
    nothing = frame_change(np.zeros((0, 4)), 'auto', NUSCENES)
    assert nothing.lift == 0
    bright = np.array([[0, 0, 0, 9000.0]])
    assert frame_change(bright, 'auto', NUSCENES).sensor.intensity_max == 65535


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: Sensor('z'), "forward is one of .*'z'"),
        (lambda: Sensor(height=1730.0), 'in meters .*1730'),
        (lambda: Sensor(height=float('nan')), 'in meters .*nan'),
        (lambda: Sensor(intensity_max=0.0), 'intensity_max is above 0'),
        (lambda: named_sensor('velodyne'), "no sensor 'velodyne'.*kitti"),
        (
            lambda: frame_change(np.zeros((1, 4)), 'kitti', Sensor('y', None, 255.0)),
            'how high its origin',
        ),
    ],
)
def test_impossible_sensors_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_config_names_its_sensor():
    assert model_sensor({}) == NUSCENES
    assert model_sensor(dict(sensor='waymo')) == SENSORS['waymo']
    assert model_sensor(dict(sensor=dict(forward='-x', height=2.0))) == Sensor('-x', 2.0)


def test_options_describe_a_sensor():

    parser = argparse.ArgumentParser()
    add_sensor_options(parser)

    def read(*words):
        return read_sensor_options(parser.parse_args(words))

    assert read() is None
    assert read('--sensor', 'kitti') == SENSORS['kitti']
    assert read('--keep-own') == replace(NUSCENES, drop_own=False)
    assert read('--intensity-max', '1') == Sensor('y', 1.84, 1.0, 32)
    words = ('--sensor', 'vlp16', '--sensor-height', '0.6', '--forward=-x')
    assert read(*words) == Sensor('-x', 0.6, 255.0, 16)


# ----------------------------------------------------------------------------------------------
# the ground


@pytest.mark.parametrize('tilt', [(0, 0), (3, 0), (0, -3), (-2, 2)])
@pytest.mark.parametrize('count', [None, 1000])
def test_the_ground_is_found(points, tilt, count):
    points = tilted(points, *tilt)
    if count:
        points = np.random.default_rng(0).choice(points, count, replace=False)
    ground, reason = find_ground(points)
    assert abs(ground.height + 1.84) < 0.1 and not reason


@pytest.mark.parametrize('half', [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_the_ground_of_half_a_frame_is_found(points, half):
    ground, _ = find_ground(points[points[:, :2] @ half > 0])
    assert abs(ground.height + 1.84) < 0.1


def cropped(points, degrees, width):
    """The points of a sector around a direction, counterclockwise from x."""
    angle = np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    return points[np.abs((angle - degrees + 180) % 360 - 180) < width / 2]


@pytest.mark.parametrize('width', [60, 90, 120, 180])
def test_the_ground_of_frames_cropped_to_the_front_is_found(points, width):
    for degrees in (60, 90, 120):  # y is forward
        ground, reason = find_ground(cropped(points, degrees, width))
        assert not reason and abs(ground.height + 1.84) < 0.1


def test_the_ground_of_cropped_real_frames_is_found(real_keyframe, real_kitti):
    for width in (60, 90, 120, 180):
        ground, _ = find_ground(cropped(real_keyframe, 90, width))
        assert abs(ground.height + 1.84) < 0.1
    for width in (40, 60):  # of the 80 degrees that the file has
        ground, _ = find_ground(cropped(real_kitti, 0, width))
        assert abs(ground.height + 1.73) < 0.1


def test_a_wall_close_by_leaves_the_ground(points):
    """Half a frame, with a low wall 3 m aside that has most of the points."""
    rng = np.random.default_rng(0)
    half = cropped(points, 90, 180)[:, :3]
    half = half[half[:, 0] < 3]
    count = 2 * len(half)
    wall = np.stack([np.full(count, 3.0), *rng.uniform([0, -1.84], [12, -1], (count, 2)).T], 1)
    ground, reason = find_ground(np.concatenate([half, wall]))
    assert not reason and abs(ground.height + 1.84) < 0.1


def test_the_ground_of_real_frames_is_found(real_keyframe, real_kitti):
    assert abs(find_ground(real_keyframe)[0].height + 1.84) < 0.1
    assert abs(find_ground(real_kitti)[0].height + 1.73) < 0.1


def noise(rng):
    return rng.uniform([-30, -30, -3], [30, 30, 3], (5000, 3))


def blob(rng):
    return rng.normal(0, 10, (5000, 3))


def wall(rng):
    return np.stack([np.full(5000, 10.0), *rng.uniform([-15, -2], [15, 6], (5000, 2)).T], 1)


def strip(rng):
    return rng.uniform([5, -0.5, -1.02], [20, 0.5, -1.0], (5000, 3))


@pytest.mark.parametrize(
    'make, message',
    [
        (noise, 'denser|below'),
        (blob, 'denser|below'),
        (wall, 'denser'),
        (strip, 'strip, .* m wide'),
        (lambda rng: rng.normal(0, 10, (20, 3)), r'only \d+ points'),
        (lambda rng: np.full((100, 3), np.nan), 'only 0 points'),
    ],
)
def test_what_is_no_ground_is_told(make, message):
    ground, reason = find_ground(make(np.random.default_rng(0)))
    assert ground is None
    assert re.search(message, reason), reason


def test_an_upside_down_frame_has_no_ground(points):
    ground, reason = find_ground(with_axes(points, 1, -2, -3))
    assert ground is None and 'below the flattest' in reason


# ----------------------------------------------------------------------------------------------
# signs of a wrong frame


def check(points, sensor=NUSCENES):
    return check_frame(points, sensor, LIMITS)


def test_right_frames_are_left_alone(points):
    assert check(points) == []
    for name in ('kitti', 'argoverse2', 'vlp16'):
        sensor = SENSORS[name]
        assert (
            check(as_seen_by(points, Sensor('x', sensor.height, sensor.intensity_max)), sensor)
            == []
        )
    assert check(np.zeros((0, 4))) == []


def test_right_real_frames_are_left_alone(real_keyframe, real_kitti):
    assert check(real_keyframe) == []
    assert check(real_kitti, SENSORS['kitti']) == []


def test_a_real_kitti_frame_is_not_one_of_nuscenes(real_kitti):
    assert_says(check(real_kitti), ['intensity_max=1', "towards x.*forward='x'"])


def assert_says(messages, patterns):

    assert len(messages) == len(patterns), messages
    for message, pattern in zip(messages, patterns):
        assert re.search(pattern, message), message


@pytest.mark.parametrize(
    'scale, message',
    [
        (1 / 255, r'reach 1,.*intensity_max=1\)'),
        (257, 'reach 65535.*max=65535'),
        (0, 'no intensity'),
    ],
)
def test_another_intensity_is_told(points, scale, message):
    points = points * np.array([1, 1, 1, scale, 1])
    points[0, 3] = 255 * scale
    assert_says(check(points), [message])


@pytest.mark.parametrize('unit', [100, 1000])
def test_other_units_are_told(points, unit):
    points = points * np.array([unit, unit, unit, 1, 1])
    assert_says(check(points), ['x -?[0-9]{4,} to .*x -54 to 54.*by 1000 .* by 100 '])


def test_a_cloud_elsewhere_is_told(points):
    points = points + np.array([4e5, 5e6, 0, 0, 0])
    assert_says(check(points), ['outside of the range.*x -54 to 54.*origin'])


def test_another_height_is_told(points):
    raised = points + np.array([0, 0, 1.84, 0, 0])
    assert_says(check(raised), [r'is -?0\.0\d m above the ground, not 1\.84 m.*--sensor-height'])
    unknown = Sensor('y', None, 255.0)
    assert check(raised, unknown) == []


def test_other_axes_are_told(points):
    assert_says(check(with_axes(points, 1, -2, -3)), ['upside down.*negate'])
    assert_says(check(with_axes(points, 1, -3, 2)), ['camera.*z, -x, -y'])
    rng = np.random.default_rng(0)
    cloud = np.concatenate([noise(rng), rng.uniform(0, 255, (5000, 1))], 1)
    assert_says(check(cloud), ['no ground.*level'])


@pytest.mark.parametrize('forward', ['x', '-x'])
def test_a_street_across_the_forward_axis_is_told(frames, forward):
    points = as_seen_by(frames[0]['points'], Sensor(forward, 1.84, 255.0))
    assert_says(check(points), ['free for .* along x, .* y is taken.*--forward'])


def test_a_view_to_another_side_is_told(points):
    ahead = points[points[:, 1] > np.abs(points[:, 0])]
    assert check(ahead) == []
    turned = as_seen_by(ahead, Sensor('-x', 1.84, 255.0))
    assert_says(check(turned), ["towards -x, .*forward='-x'"])
