"""The sensor: its geometry, its noise, and what motion compensation leaves."""

import numpy as np
import pytest

from stratified3d.simulation.layouts.catalog import build_scene
from stratified3d.simulation.physics.lidar import fire
from stratified3d.simulation.physics.primitives import BOX, FRUSTUM, TAPERED
from stratified3d.simulation.physics.raycast import GROUND, NOTHING
from stratified3d.simulation.physics.scanners import SCANNERS, SILENT, Noise

N_COLUMNS, N_RINGS = SCANNERS['nuscenes'].columns, SCANNERS['nuscenes'].beams


def philox(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))


def test_firing_directions_and_delays():
    directions = SCANNERS['nuscenes'].directions()
    assert directions.shape == (1084, 32, 3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1.0, atol=1e-12)
    np.testing.assert_allclose(
        np.degrees(np.arcsin(directions[0, :, 2]))[[0, -1]], [-30.67, 10.67], atol=1e-9
    )
    np.testing.assert_allclose(
        np.diff(SCANNERS['nuscenes'].elevations), (30.67 + 10.67) / 31, atol=1e-9
    )
    np.testing.assert_allclose(
        directions[0, :, :2] / np.linalg.norm(directions[0, :, :2], axis=-1)[:, None],
        np.tile([-1.0, 0.0], (32, 1)),
        atol=1e-12,
    )  # begins on the left ...
    # ... and turns over the front: clockwise from above
    assert directions[N_COLUMNS // 4, 15, 1] > 0.9
    delays = SCANNERS['nuscenes'].delays()
    assert delays[-1] == 0.0
    assert delays[0] == pytest.approx(-0.05 * 1083 / 1084)


def surface_distance(scene, points, hit, primitives, time):
    """|distance| (m) of points [N, 3] of the file to the surfaces they come from, world frame."""
    pose = scene.lidar_pose(np.array([time]))
    world = points.astype(float) @ pose.rotation[0].T + pose.translation[0]
    gap = np.full(len(points), np.nan)
    on_ground = hit == GROUND
    gap[on_ground] = np.abs(world[on_ground, 2] - scene.ground.height(*world[on_ground, :2].T))
    solid = np.nonzero(hit >= 0)[0]
    which = hit[solid]
    local = ((world[solid] - primitives.center[which])[:, None] @ primitives.rotation[which])[:, 0]
    half, kind, taper = primitives.half[which], primitives.kind[which], primitives.taper[which]
    rise = (local[:, 2] + half[:, 2]) / (2 * half[:, 2])
    box = np.abs(np.max(np.abs(local) - half, 1))
    front, rear, side = (
        half[:, 0] - taper[:, 0] * rise,
        half[:, 0] - taper[:, 1] * rise,
        half[:, 1] - taper[:, 2] * rise,
    )
    tapered = np.abs(
        np.max(
            [
                local[:, 0] - front,
                -local[:, 0] - rear,
                np.abs(local[:, 1]) - side,
                np.abs(local[:, 2]) - half[:, 2],
            ],
            0,
        )
    )
    radius = half[:, 0] + (half[:, 1] - half[:, 0]) * rise
    frustum = np.abs(
        np.maximum(np.hypot(*local[:, :2].T) - radius, np.abs(local[:, 2]) - half[:, 2])
    )
    scaled = np.linalg.norm(local / half, axis=1)
    ellipsoid = np.linalg.norm(local * (1 - 1 / scaled)[:, None], axis=1)
    gap[solid] = np.select(
        [kind == BOX, kind == TAPERED, kind == FRUSTUM], [box, tapered, frustum], ellipsoid
    )
    return gap


def test_static_surfaces_agree_across_sweeps(turning_scene):
    """Without noise every static return lies on its surface to 1 mm, though the car turns."""
    poses = turning_scene.lidar_pose(np.array([2.0, 4.0]))
    assert np.abs(poses.rotation[1] - poses.rotation[0]).max() > 0.2
    for time in (2.0, 2.05, 3.1, 4.0):
        points, primitives = turning_scene.sweep(time, None, SILENT)
        _, hit, _ = fire(
            turning_scene.sensor,
            turning_scene.lidar_pose(time + turning_scene.sensor.delays),
            primitives,
            turning_scene.ground.coefficients,
        )
        hit = hit.ravel()
        still = (hit == GROUND) | (
            (hit >= 0) & (np.abs(primitives.velocity[np.maximum(hit, 0)]).max(1) == 0)
        )
        gap = surface_distance(turning_scene, points[still, :3], hit[still], primitives, time)
        assert still.sum() > 15000
        assert gap.max() < 1e-3


def test_returns_without_motion_compensation_miss_their_surfaces(turning_scene):
    """The check above can fail: as if fired at once, returns miss their surfaces by decimeters."""
    time = 3.0
    _, primitives = turning_scene.sweep(time, None, SILENT)
    distance, hit, _ = fire(
        turning_scene.sensor,
        turning_scene.lidar_pose(time + turning_scene.sensor.delays),
        primitives,
        turning_scene.ground.coefficients,
    )
    solid = hit >= 0
    raw = turning_scene.sensor.directions[solid] * distance[solid][:, None]
    gap = surface_distance(turning_scene, raw, hit[solid], primitives, time)
    assert np.quantile(gap, 0.75) > 0.05


def test_rays_without_return_stay_at_the_sensor(turning_scene):
    """They lie where the sensor was at their firing, in its frame at the timestamp."""
    time = 3.0
    points, primitives = turning_scene.sweep(time, philox(1, 2), Noise())
    poses = turning_scene.lidar_pose(time + turning_scene.sensor.delays)
    _, hit, _ = fire(turning_scene.sensor, poses, primitives, turning_scene.ground.coefficients)
    lost = (hit == NOTHING) & ~np.isfinite(turning_scene.sensor.own_distance)
    column = np.nonzero(lost)[0]
    expected = (poses.translation[column] - poses.translation[-1]) @ poses.rotation[-1]
    assert len(column) > 2000
    np.testing.assert_allclose(
        points.reshape(N_COLUMNS, N_RINGS, 5)[lost][:, :3], expected, atol=1e-4
    )
    assert 0.1 < np.linalg.norm(expected[0]) < 1.0  # it did move during the sweep


def test_sweep_has_the_file_layout_and_intensities_of_nuscenes(turning_scene):
    points, _ = turning_scene.sweep(3.0, philox(1, 3), Noise())
    assert points.shape == (34688, 5)
    assert points.dtype == np.float32
    assert np.isfinite(points).all()
    np.testing.assert_array_equal(points[:, 4], np.tile(np.arange(32), 1084))
    assert points[:, 3].min() >= 0
    assert points[:, 3].max() <= 255
    np.testing.assert_array_equal(points[:, 3], np.round(points[:, 3]))
    assert len(np.unique(points[:, 3])) > 60


def test_noise_has_the_configured_sigma_and_loss(turning_scene):
    quiet, _ = turning_scene.sweep(3.0, None, SILENT)
    # no mixed pixels and no losses: only the range differs, along the ray
    noisy, _ = turning_scene.sweep(
        3.0, philox(5, 5), Noise(range_sigma=0.02, dropped=0.0, reach=np.inf, mixed=0.0)
    )
    ground = (np.abs(quiet[:, 2] + 1.84) < 0.25) & (
        np.linalg.norm(quiet[:, :3], axis=1) > 4
    )  # leaves add to it elsewhere
    shift = np.linalg.norm(noisy[ground, :3] - quiet[ground, :3], axis=1)
    assert np.sqrt(np.median(shift**2) / 0.4549) == pytest.approx(
        0.02, rel=0.05
    )  # the median of chi-square, 1 dof
    lossy, _ = turning_scene.sweep(3.0, philox(5, 6), Noise(dropped=0.3, mixed=0.0))
    near = np.linalg.norm(quiet[:, :3], axis=1)
    near = (near > 4) & (near < 20) & ground
    assert (np.linalg.norm(lossy[near, :3], axis=1) < 1).mean() == pytest.approx(0.3, abs=0.03)


def test_mixed_pixels_lie_between_two_surfaces(turning_scene):
    settings = {'range_sigma': 0.0, 'dropped': 0.0, 'reach': np.inf}
    clean, _ = turning_scene.sweep(3.0, philox(8, 8), Noise(**settings, mixed=0.0))
    mixed, _ = turning_scene.sweep(3.0, philox(8, 8), Noise(**settings, mixed=1.0))
    changed = np.linalg.norm(clean[:, :3] - mixed[:, :3], axis=1) > 1e-3
    assert 0.003 < changed.mean() < 0.2
    reach = np.linalg.norm(clean[:, :3], axis=1).reshape(N_COLUMNS, N_RINGS)
    following = np.roll(reach, -1, 0).ravel()[changed]
    result = np.linalg.norm(mixed[changed, :3], axis=1)
    low, high = (
        np.minimum(reach.ravel()[changed], following),
        np.maximum(reach.ravel()[changed], following),
    )
    assert (
        (result > low - 0.6) & (result < high + 0.6)
    ).all()  # 0.6 m: the car moves under the compensation


def test_sweep_bytes_depend_on_the_key_and_the_scene_alone():
    scene = build_scene('straight', (0, 1), 2.0)
    first = scene.sweep(1.0, philox(1, 1), Noise())[0].tobytes()
    again = build_scene('straight', (0, 1), 2.0).sweep(1.0, philox(1, 1), Noise())[0].tobytes()
    assert first == again
    assert first != scene.sweep(1.0, philox(1, 2), Noise())[0].tobytes()
    assert (
        first != build_scene('straight', (1, 1), 2.0).sweep(1.0, philox(1, 1), Noise())[0].tobytes()
    )
