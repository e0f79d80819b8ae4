"""The simulated Waymo: range images against known points, its files, and interruptions."""

import errno
import math
import os
import re
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest

from stratified3d.datasets.waymo.range_images import beam_inclinations, image_points
from stratified3d.simulation.nuscenes import dataset
from stratified3d.simulation.physics.lidar import fire
from stratified3d.simulation.physics.raycast import GROUND
from stratified3d.simulation.physics.scanners import SILENT
from stratified3d.simulation.waymo import dataset as waymo_dataset
from stratified3d.simulation.waymo.dataset import (
    WaymoSettings,
    context_name,
    label_type,
    simulate_waymo,
)
from stratified3d.simulation.waymo.lidar import TOP, WaymoLidar, to_matrix
from stratified3d.simulation.waymo.writer import COMPONENTS, SegmentWriter

pytestmark = pytest.mark.slow

# as far from the origin as real poses are: float32 has 0.5 mm there
ORIGIN = np.array([7213.26, -1571.12, 211.95])
FAR = np.array([1e6, 1e6, 1.0])  # no-label zone nowhere


@pytest.fixture
def turning(turning_scene):
    """A scene in whose middle the car turns, and that time."""
    return turning_scene, 3.0


def pose_at(scene, time):
    pose = scene.ego_pose(np.array([time]))
    return to_matrix(
        pose._replace(rotation=pose.rotation[0], translation=pose.translation[0] + ORIGIN)
    )


def scan(scene, time, lidar):
    return lidar.scan(scene, time, np.random.Generator(np.random.Philox(0)), SILENT, FAR, ORIGIN)


def decode(lidar, image, pose=None, vehicle_pose=None):
    rows = beam_inclinations(lidar.inclinations, *lidar.limits, len(image))
    return image_points(image, rows, lidar.extrinsic(), pose, vehicle_pose)


@pytest.mark.parametrize('laser', range(1, 6))
def test_range_images_reproduce_the_points_in_a_turn(turning, laser):
    """Every return lies within 1 cm of where its ray met the world, in the vehicle frame."""
    scene, time = turning
    lidar, vehicle = WaymoLidar(laser, (0.01, -0.02)), pose_at(scene, time)
    images = scan(scene, time, lidar)
    points = np.concatenate([decode(lidar, image, images.pose, vehicle)[0] for image in images[:2]])
    expected = (images.points + ORIGIN - vehicle[:3, 3]) @ vehicle[:3, :3]
    assert len(points) == len(expected) > 5000
    assert np.linalg.norm(points - expected, axis=1).max() < 0.01
    assert (images.second[..., 0] > 0).any()
    ahead = np.degrees(np.arctan2(*(points - lidar.mount.translation).mean(0)[[1, 0]]))
    if laser != TOP:  # it looks to its side
        assert abs(math.remainder(ahead - {2: 0, 3: 90, 4: -90, 5: 180}[laser], 360)) < 30


def test_range_images_put_ground_returns_on_the_ground(turning):
    """A reference without the simulator's own points, which returns miss without pixel poses."""
    scene, time = turning
    lidar, vehicle = WaymoLidar(TOP, (0.01, -0.02)), pose_at(scene, time)
    poses = scene.ego_pose(time + lidar.delays)
    assert np.degrees(math.acos((np.trace(poses.rotation[0].T @ poses.rotation[-1]) - 1) / 2)) > 2
    _, hit, _ = fire(
        lidar,
        poses @ lidar.mount,
        scene.primitives_at(time),
        scene.ground.coefficients,
        lidar.max_range,
    )
    images = scan(scene, time, lidar)

    def height(pose):
        points, pixel = decode(lidar, images.first, pose, vehicle)
        on_ground = hit[pixel % 2650, pixel // 2650] == GROUND
        world = points[on_ground] @ vehicle[:3, :3].T + vehicle[:3, 3] - ORIGIN
        return np.abs(world[:, 2] - scene.ground.height(*world[:, :2].T)), points[on_ground]

    gap, points = height(images.pose)
    assert len(gap) > 20000
    assert gap.max() < 0.01
    assert np.linalg.norm(points - height(None)[1], axis=1).max() > 0.5


def test_files_have_waymos_columns(waymo_set):
    settings = WaymoSettings(2, 1, 2)
    for split, number, _ in settings.segments():
        name = context_name(settings, split, number)
        tables = {
            part: pq.read_table(waymo_set / split / part / f'{name}.parquet') for part in COMPONENTS
        }
        assert [len(tables[part]) for part in COMPONENTS[:4]] == [10, 2, 5, 2]
        for table in tables.values():
            assert set(table['key.segment_context_name'].to_pylist()) == {name}
        lidar = tables['lidar']
        assert lidar['key.laser_name'].to_pylist() == [1, 2, 3, 4, 5] * 2
        shapes = lidar['[LiDARComponent].range_image_return2.shape'].to_pylist()
        assert shapes[:2] == [[64, 2650, 4], [200, 600, 4]]
        assert len(lidar['[LiDARComponent].range_image_return1.values'][0]) == 64 * 2650 * 4
        calibration = tables['lidar_calibration'].to_pylist()
        beams = calibration[0]['[LiDARCalibrationComponent].beam_inclination.values']
        assert len(beams) == 64
        assert (np.diff(beams) > 0).all()
        assert calibration[1]['[LiDARCalibrationComponent].beam_inclination.values'] is None
        boxes = tables['lidar_box'].to_pylist()
        assert {box['[LiDARBoxComponent].type'] for box in boxes} <= {1, 2, 4}
        assert len(boxes) > 20
        assert any(box['[LiDARBoxComponent].difficulty_level.detection'] == 2 for box in boxes)


def test_label_types_are_waymos():
    assert label_type('vehicle.bicycle', 'cycle.with_rider') == 4
    assert label_type('vehicle.bicycle', 'cycle.without_rider') is None  # no label when parked
    assert label_type('vehicle.motorcycle', 'cycle.with_rider') == 1
    assert label_type('vehicle.bus.rigid', '') == 1
    assert label_type('human.pedestrian.child', '') == 2
    assert label_type('movable_object.barrier', '') is None
    assert label_type('animal', '') is None
    assert label_type(None, '') is None


def test_it_goes_on_and_gives_the_same_with_more_workers(waymo_set, tmp_path, monkeypatch):
    settings = WaymoSettings(1, 1, 1)
    write, calls = SegmentWriter.add, []

    def full(self, component, rows):
        calls.append(component)
        if len(calls) > 7:
            raise OSError(errno.ENOSPC, 'No space left on device')
        write(self, component, rows)

    monkeypatch.setattr(SegmentWriter, 'add', full)
    with pytest.raises(OSError, match='rerun') as failure:
        simulate_waymo(tmp_path / 'a', settings, workers=1)
    monkeypatch.undo()
    assert failure.value.errno == errno.ENOSPC and failure.value.filename.endswith('.parquet')
    (first,) = (tmp_path / 'a').glob('*/lidar/*')  # no half of the other one
    before = first.stat().st_mtime_ns
    seen = []
    assert simulate_waymo(
        tmp_path / 'a', settings, workers=1, progress=lambda *now: seen.append(now)
    )
    assert seen == [(1, 2), (2, 2)] and first.stat().st_mtime_ns == before
    assert not simulate_waymo(tmp_path / 'a', settings, workers=1)
    simulate_waymo(tmp_path / 'b', settings, workers=2)
    files = sorted(path.relative_to(tmp_path / 'a') for path in (tmp_path / 'a').rglob('*.parquet'))
    assert len(files) == 10
    for path in files:
        assert (tmp_path / 'a' / path).read_bytes() == (tmp_path / 'b' / path).read_bytes()
    with pytest.raises(ValueError, match='other settings .seed 0 instead of 1'):
        simulate_waymo(tmp_path / 'a', WaymoSettings(1, 1, 1, seed=1))


@pytest.mark.parametrize(
    'numbers', [(0, 0, 2), (-1, 1, 2), (799, 0, 2), (1, 1, 0), (1, 1, 201), (1, 1, 2, -1)]
)
def test_impossible_settings_are_refused(tmp_path, numbers):
    with pytest.raises(ValueError):
        simulate_waymo(tmp_path / 'none', WaymoSettings(*numbers))
    assert not (tmp_path / 'none').exists()


@pytest.mark.parametrize(
    ('options', 'module', 'name'),
    [
        (('--format', 'waymo'), waymo_dataset, '_simulate_frame'),
        (('--sweeps', '1'), dataset, '_simulate_keyframe'),
    ],
)
def test_a_killed_worker(root, tool_process, tmp_path, monkeypatch, options, module, name):
    """As by the system when memory runs out: one line that says what to do, and the command goes
    on."""

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    words = [
        str(root / 'tools/simulate.py'),
        str(tmp_path / 'out'),
        *options,
        '--scenes',
        '1+1',
        '--keyframes',
        '2',
        '--workers',
        '2',
    ]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, kill)  # the tool is forked, and its workers from it
        status, said = tool_process(words, tmp_path / 'killed.log').wait()
    assert status == 1 and 'Traceback' not in said, said
    assert re.search(
        '^simulate.py: one of the 2 worker processes was killed, .* fewer --workers to resume$',
        said,
        re.MULTILINE,
    ), said
    status, said = tool_process([*words[:-1], '1'], tmp_path / 'again.log').wait()
    assert status == 0 and 'complete' in said
