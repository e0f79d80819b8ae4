"""Other LiDARs than nuScenes': their beams, mounts and brightness, and scenes that mix them."""

import dataclasses

import numpy as np
import pytest

from stratified3d.sensors import SENSORS
from stratified3d.simulation import NuScenesSettings, simulate_frame
from stratified3d.simulation.layouts.catalog import LAYOUTS, build_scene
from stratified3d.simulation.layouts.roadside import add_verges
from stratified3d.simulation.layouts.street import Section, Street
from stratified3d.simulation.layouts.world import World
from stratified3d.simulation.objects.lookalikes import make_lookalike, make_verge
from stratified3d.simulation.physics.lidar import fire
from stratified3d.simulation.physics.raycast import GROUND
from stratified3d.simulation.physics.scanners import (
    MIXED,
    MOUNTINGS,
    SILENT,
    Mounting,
    choose_mounting,
)
from stratified3d.simulation.scene import Scene

SCANNED = ['kitti', 'waymo', 'argoverse2', 'ouster_os1', 'vlp16']


def philox(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))


@pytest.fixture(scope='module')
def scenes() -> dict[str, Scene]:
    return {name: build_scene('straight', (1, 1), 2.0, name) for name in MOUNTINGS}


def test_sensors_have_the_names_that_detect_knows():
    assert set(MOUNTINGS) == set(SENSORS) - {'auto'}
    for name, mounting in MOUNTINGS.items():
        beams = SENSORS[name].beams
        assert beams == mounting.scanner.beams, name


@pytest.mark.parametrize('name', SCANNED)
def test_points_lie_on_the_beams_of_their_ring(scenes, name):
    """Without noise and motion, elevation tells the ring and azimuths are whole columns apart."""
    scanner = MOUNTINGS[name].scanner
    directions = scanner.directions()
    assert directions.shape == (scanner.columns, scanner.beams, 3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1.0, atol=1e-12)
    np.testing.assert_allclose(
        np.degrees(np.arcsin(directions[7, :, 2])), scanner.elevations, atol=1e-9
    )
    points, _ = scenes[name].sweep(1.0, None, SILENT)
    assert points.shape == (scanner.columns * scanner.beams, 5)
    np.testing.assert_array_equal(points[:, 4], np.tile(np.arange(scanner.beams), scanner.columns))
    distance = np.linalg.norm(points[:, :3], axis=1)
    far = distance > 30.0  # where the car's motion during a turn matters little
    elevation = np.degrees(np.arcsin(points[far, 2] / distance[far]))
    expected = np.array(scanner.elevations)[points[far, 4].astype(int)]
    assert np.quantile(np.abs(elevation - expected), 0.9) < 0.35
    assert distance.max() <= scanner.max_range + 2.0


@pytest.mark.parametrize('name', SCANNED)
def test_static_surfaces_agree_between_turns(scenes, name):
    """The ground is where it is for every scanner, however long its turn takes."""
    scene = scenes[name]
    for time in (1.0, 1.3):
        points, primitives = scene.sweep(time, None, SILENT)
        pose = scene.lidar_pose(np.array([time]))
        world = points[:, :3].astype(float) @ pose.rotation[0].T + pose.translation[0]
        hit = _hits(scene, time, primitives)
        ground = world[hit == GROUND]
        assert len(ground) > 3000
        np.testing.assert_allclose(ground[:, 2], scene.ground.height(*ground[:, :2].T), atol=2e-3)


def _hits(scene: Scene, time: float, primitives) -> np.ndarray:
    poses = scene.lidar_pose(time + scene.sensor.delays)
    return fire(scene.sensor, poses, primitives, scene.ground.coefficients)[1].ravel()


@pytest.mark.parametrize('height', [1.4, 1.84, 2.6])
def test_the_ground_lies_as_deep_as_the_mount_is_high(height):
    mounting = dataclasses.replace(Mounting(), height=height)
    scene = build_scene('boulevard', (4, 4), 2.0)
    scene = Scene(scene.ground, scene.surface, scene.actors, scene.ego, mounting=mounting)
    points, _ = scene.sweep(1.0, None, SILENT)
    reach = np.hypot(points[:, 0], points[:, 1])
    ring = points[(reach > 4) & (reach < 9) & (points[:, 2] < -0.8 * height)]
    assert len(ring) > 1000
    assert np.quantile(ring[:, 2], 0.2) == pytest.approx(-height, abs=0.12)


def test_stacked_heads_look_into_opposite_directions():
    directions = MOUNTINGS['argoverse2'].scanner.directions()
    upper, lower = directions[:, :32], directions[:, 32:]
    np.testing.assert_allclose(
        np.arctan2(*np.moveaxis(upper[0, :1, :2], -1, 0)),
        np.arctan2(*np.moveaxis(-lower[0, :1, :2], -1, 0)),
        atol=1e-9,
    )
    # upside down: as many beams above the horizon as the upper one has below it
    assert (upper[0, :, 2] < -1e-9).sum() == (lower[0, :, 2] > 1e-9).sum()


def test_brightness_curve():
    values = np.array([0.0, 10.0, 255.0])
    assert Mounting().written_intensity(values) is values
    curve = dataclasses.replace(Mounting(), gain=0.5, gamma=0.5).written_intensity(values)
    np.testing.assert_array_equal(curve, [0.0, 25.0, 128.0])
    assert dataclasses.replace(Mounting(), gain=9.0).written_intensity(values).max() == 255.0


def test_mixed_scenes_draw_every_scanner_and_height():
    drawn = [choose_mounting(MIXED, philox(0, i)) for i in range(200)]
    beams = {mounting.scanner.beams for mounting in drawn}
    assert beams == {16, 32, 64}
    heights = np.array([mounting.height for mounting in drawn])
    assert heights.min() < 1.45
    assert heights.max() > 2.55
    assert ((heights >= 1.4) & (heights <= 2.6)).all()
    again = choose_mounting(MIXED, philox(0, 3))
    assert again == drawn[3]


def test_mixed_scenes_have_steeper_streets_and_other_worlds():
    plain = [build_scene('straight', (0, i), 1.0) for i in range(6)]
    mixed = [build_scene('straight', (0, i), 1.0, MIXED) for i in range(6)]
    slopes = [
        max(float(np.hypot(*scene.ground.coefficients[1:3])) for scene in scenes)
        for scenes in (plain, mixed)
    ]
    assert slopes[1] > 1.5 * slopes[0]
    assert len({scene.sensor.mounting.height for scene in mixed}) == 6


def test_lookalikes_stand_along_streets_without_labels():
    def unlabeled(lookalikes: float) -> int:
        world = World(philox(3, 3), 200.0, 1.0, lookalikes=lookalikes)
        LAYOUTS['straight'](world)
        return sum(actor.shape.category is None for actor in world.actors)

    assert unlabeled(14.0) > unlabeled(0.0) + 25
    shapes = [make_lookalike(philox(4, i)) for i in range(100)]
    assert all(shape.category is None and shape.parts for shape in shapes)
    assert all(max(shape.size) <= 10.0 and shape.size[2] <= 2.3 for shape in shapes)


def test_verges_are_long_low_and_beside_the_road():
    shapes = [make_verge(philox(5, i), 8.0 + 0.2 * i) for i in range(160)]
    assert all(shape.category is None and shape.parts for shape in shapes)
    for i, (length, width, height) in enumerate(shape.size for shape in shapes):
        assert length == 8.0 + 0.2 * i and width <= 2.4 and 0.2 <= height <= 1.3
    for i in range(10):
        world = World(philox(6, i), 200.0, 1.0, lookalikes=1.0)
        street = Street(world, Section(), (0.0, 0.0), 0.0, (-200.0, 200.0), [(-10.0, 10.0, 1)])
        add_verges(street, 1)
        places = [actor.motion.path.knots[0] for actor in world.actors]
        lengths = [actor.shape.size[0] for actor in world.actors]
        assert len(places) > 2
        for (x, y, _), length in zip(places, lengths):
            assert y > street.section.curb
            assert abs(x) - length / 2 > 10.0  # where another road joins


def test_the_default_scene_is_the_same_with_its_sensor_named():
    points = [
        build_scene('straight', (0, 1), 1.0, *rest).sweep(0.5, None)[0]
        for rest in ([], ['nuscenes'])
    ]
    np.testing.assert_array_equal(*points)
    assert 'sensor' not in NuScenesSettings().record()
    assert NuScenesSettings(sensor='kitti').record()['sensor'] == 'kitti'


def test_frames_of_a_sensor_of_ten_hertz_are_a_tenth_of_a_second_apart():
    frame = simulate_frame(2, 'straight', sweeps=3, sensor='vlp16')
    np.testing.assert_allclose(np.unique(frame['points'][:, 4]), [0.0, 0.1, 0.2], atol=1e-6)
    assert len(frame['boxes']) > 5


def test_unknown_sensors_are_refused():
    with pytest.raises(ValueError, match="'hdl'.*nuscenes, kitti"):
        simulate_frame(0, sensor='hdl')
    with pytest.raises(ValueError, match="'hdl'"):
        NuScenesSettings(sensor='hdl').check()
