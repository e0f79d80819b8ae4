"""Scenes: annotations agree with the points, sizes are nuScenes', and nobody overlaps."""

import numpy as np
import pytest

from stratified3d.simulation import LAYOUTS, simulate_frame
from stratified3d.simulation.layouts.catalog import TRAIN_LAYOUTS, VAL_LAYOUTS, build_scene
from stratified3d.simulation.nuscenes.schema import DETECTION_NAMES
from stratified3d.simulation.objects.construction import make_construction_vehicle
from stratified3d.simulation.objects.furniture import make_barrier, make_clutter, make_cone
from stratified3d.simulation.objects.people import make_bicycle, make_motorcycle, make_pedestrian
from stratified3d.simulation.objects.trucks import make_trailer, make_truck
from stratified3d.simulation.objects.vehicles import make_bus, make_car
from stratified3d.simulation.physics.lidar import fire
from stratified3d.simulation.physics.paths import Fleet, Ground, Motion, Path, Speed
from stratified3d.simulation.physics.primitives import ELLIPSOID, FRUSTUM, TAPERED
from stratified3d.simulation.physics.scanners import SILENT
from stratified3d.simulation.scene import count_points

# length, width, height: means of nuScenes' annotations (anchors of CBGS, arXiv:1908.09492)
NUSCENES_SIZES = {
    'car': (4.61, 1.95, 1.72),
    'truck': (6.74, 2.46, 2.73),
    'bus': (11.19, 2.94, 3.47),
    'trailer': (12.01, 2.87, 3.82),
    'construction_vehicle': (6.38, 2.73, 3.13),
    'pedestrian': (0.73, 0.66, 1.76),
    'motorcycle': (2.10, 0.76, 1.44),
    'bicycle': (1.68, 0.60, 1.27),
    'traffic_cone': (0.40, 0.40, 1.06),
    'barrier': (0.49, 2.49, 0.98),
}
MAKERS = {
    'car': make_car,
    'truck': make_truck,
    'bus': make_bus,
    'trailer': make_trailer,
    'construction_vehicle': make_construction_vehicle,
    'pedestrian': make_pedestrian,
    'motorcycle': lambda rng: make_motorcycle(rng, rng.random() < 0.5),
    'bicycle': lambda rng: make_bicycle(rng, rng.random() < 0.5),
    'traffic_cone': make_cone,
    'barrier': lambda rng: make_barrier(rng, str(rng.choice(['jersey', 'plastic', 'trestle']))),
}


def local_extent(shape):
    """Corners (min [3], max [3]) of the box around all primitives, strides included."""
    parts, low, high = shape.primitives(), [], []
    for p in range(len(parts.kind)):
        half, turn = parts.half[p].copy(), parts.rotation[p]
        if parts.kind[p] == FRUSTUM:
            half = np.array([half[:2].max()] * 2 + [half[2]])
        reach = (
            np.linalg.norm(turn * half, axis=1)
            if parts.kind[p] == ELLIPSOID
            else np.abs(turn) @ half
        )
        if parts.kind[p] == FRUSTUM:  # round about its own axis
            axis = turn[:, 2]
            reach = np.abs(axis) * half[2] + half[0] * np.sqrt(np.maximum(1 - axis**2, 0))
        reach = reach + [abs(shape.sway()[p]), 0, 0]
        low.append(parts.center[p] - reach)
        high.append(parts.center[p] + reach)
    return np.min(low, 0), np.max(high, 0)


@pytest.mark.parametrize('name', NUSCENES_SIZES)
def test_sizes_are_those_of_nuscenes_and_shapes_fill_their_boxes(name):
    rng = np.random.default_rng(0)
    shapes = [MAKERS[name](rng) for _ in range(300)]
    sizes = np.array([shape.size for shape in shapes])
    np.testing.assert_allclose(sizes.mean(0), NUSCENES_SIZES[name], rtol=0.16)
    assert (sizes.std(0) / sizes.mean(0)).max() > 0.02  # no two alike
    assert all(DETECTION_NAMES[shape.category] == name for shape in shapes)
    assert min(len(shape.parts) for shape in shapes) >= 2  # more than one box
    looks = {
        tuple(
            (kind, taper, np.round(half[:2], 1).tolist() if kind == FRUSTUM else None).__str__()
            for kind, _, _, half, taper, *_ in shape.parts
        )
        for shape in shapes
    }
    assert len(looks) >= 2  # several shapes per class
    for shape in shapes:
        low, high = local_extent(shape)
        half = np.array(shape.size) / 2
        slack = 0.16 if name in ('construction_vehicle', 'pedestrian', 'truck') else 0.12
        assert low[2] > -0.05
        assert (np.array([*-half[:2], 0]) - low < slack).all(), (
            f'{name} reaches {low}, box {shape.size}'
        )
        assert (high - np.array([*half[:2], shape.size[2]]) < slack).all(), (
            f'{name} reaches {high}, box {shape.size}'
        )
        assert (high - low > 0.7 * np.array(shape.size)).all(), (
            f'{name} fills {high - low} of {shape.size}'
        )


def test_clutter_varies_and_is_not_annotated():
    rng = np.random.default_rng(1)
    shapes = [make_clutter(rng) for _ in range(80)]
    assert {shape.category for shape in shapes} == {None}
    assert len({tuple(part[0] for part in shape.parts) for shape in shapes}) >= 6


def test_a_tub_is_a_tapered_box_upside_down():
    from stratified3d.simulation.physics.primitives import Shape

    tub = Shape(None, (1, 1, 1)).tapered((0, 0, 1), (2, 1, 1), (-0.5, -0.1, -0.2), 0).primitives()
    assert tub.kind[0] == TAPERED
    foot, top = tub.rotation[0] @ [0, 0, -tub.half[0, 2]], tub.rotation[0] @ [0, 0, tub.half[0, 2]]
    assert foot[2] > 0 > top[2]
    assert tub.half[0, 0] * 2 == pytest.approx(2.6)
    assert tub.half[0, 1] * 2 == pytest.approx(1.4)


def test_paths_are_continuous_and_a_fleet_is_its_motions():
    path = Path((1.0, 2.0, 0.3), [(10.0, 0.0), (9.0, 1.2), (5.0, 0.0), (6.0, -0.8)])
    s = np.linspace(-5, 45, 5001)
    x, y, yaw = path.at(s).T
    np.testing.assert_allclose(np.hypot(np.diff(x), np.diff(y)), s[1] - s[0], rtol=1e-4)
    np.testing.assert_allclose(
        np.arctan2(np.diff(y), np.diff(x)), 0.5 * (yaw[1:] + yaw[:-1]), atol=1e-6
    )
    speed = Speed(6.0, 2.0, 1.0, 4.0)
    t = np.linspace(0, 8, 4001)
    np.testing.assert_allclose(
        np.gradient(speed.traveled(t), t)[1:-1], speed.at(t)[1:-1], atol=1e-3
    )
    ground = Ground(np.array([0.1, 0.02, -0.01, 1e-4, -5e-5, 1e-4]))
    motions = [
        Motion(path, speed, 3.0, 0.15),
        Motion(Path((0.0, 0.0, 2.0)), Speed(1.3), -4.0),
        Motion(path, Speed(0.0), 12.0),
    ]
    fleet = Fleet(motions)
    for time in (0.0, 2.5, 7.0):
        for i, (position, rotation, yaw) in enumerate(zip(*fleet.pose(time, ground))):
            single = motions[i].pose(np.array([time]), ground)
            np.testing.assert_allclose(position, single[0][0], atol=1e-12)
            np.testing.assert_allclose(rotation, single[1][0], atol=1e-12)
            np.testing.assert_allclose(yaw, single[2][0], atol=1e-12)
            np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)


def test_count_points_against_brute_force():
    rng = np.random.default_rng(2)
    world, center, yaw = (
        rng.uniform(-10, 10, (5000, 3)),
        rng.uniform(-8, 8, (40, 3)),
        rng.uniform(-4, 4, 40),
    )
    size = rng.uniform(0.5, 6, (40, 3))
    expected = []
    for c, s, a in zip(center, size, yaw):
        turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        expected.append((np.abs((world - c) @ turn) <= s / 2).all(1).sum())
    np.testing.assert_array_equal(count_points(world, center, size, yaw), expected)
    assert sum(expected) > 500


def overlap(a, b) -> bool:
    """Whether two rectangles (x, y, length, width, yaw) overlap: separating axes."""

    def corners(box):
        x, y, length, width, yaw = box
        axes = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        signs = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)]) * [length / 2, width / 2]
        return signs @ axes + [x, y], axes

    (pa, axes_a), (pb, axes_b) = corners(a), corners(b)
    for axis in np.concatenate([axes_a, axes_b]):
        if (pa @ axis).max() <= (pb @ axis).min() or (pb @ axis).max() <= (pa @ axis).min():
            return False
    return True


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.slow
def test_layout_annotations_agree_with_points_and_nobody_collides(layout):
    """Returns lie in their owners' boxes, tracks move as annotated, and nobody collides."""
    for seed, duration in ((11, 9.5), (12, 19.5)):
        scene = build_scene(layout, (seed, 3), duration)
        inside_all, total = 0, 0
        before = None
        for time in (0.0, 0.5, duration):
            points, primitives = scene.sweep(time, None, SILENT)
            boxes = scene.annotate(time, points, primitives)
            poses = scene.lidar_pose(time + scene.sensor.delays)
            _, hit, _ = fire(scene.sensor, poses, primitives, scene.ground.coefficients)
            owner = np.where(hit >= 0, primitives.owner[np.maximum(hit, 0)], -1).ravel()
            world = points[:, :3] @ poses.rotation[-1].T + poses.translation[-1]
            for k, actor in enumerate(boxes.actor):
                own_points = world[owner == actor]
                total += len(own_points)
                # a car moves while the sensor turns; nothing undoes that, here as in the released
                # files
                smear = 0.3 + 2 * 0.05 * np.hypot(*boxes.velocity[k])
                inside_all += count_points(
                    own_points,
                    boxes.center[k : k + 1],
                    boxes.size[k : k + 1] + smear,
                    boxes.yaw[k : k + 1],
                )[0]
            assert ((boxes.visibility >= 0) & (boxes.visibility <= 1)).all()
            if time == 0.5:
                both = np.intersect1d(before.actor, boxes.actor)
                then, now = np.searchsorted(before.actor, both), np.searchsorted(boxes.actor, both)
                step = (boxes.center[now] - before.center[then])[:, :2] / 0.5
                assert np.abs(step - boxes.velocity[now]).max() < 1.0  # nothing jumps
            before = boxes
            # vehicles and the ego car keep apart
            solid = [
                k
                for k, actor in enumerate(boxes.actor)
                if DETECTION_NAMES.get(scene.actors[actor].shape.category)
                in (
                    'car',
                    'truck',
                    'bus',
                    'trailer',
                    'construction_vehicle',
                    'barrier',
                    'pedestrian',
                    'bicycle',
                    'motorcycle',
                )
            ]
            rects = [
                (*boxes.center[k, :2], *(boxes.size[k, :2] - 0.25), boxes.yaw[k]) for k in solid
            ]
            position, _, yaw = scene.ego.pose(np.array([time]), scene.ground)
            forward = np.array([np.cos(yaw[0]), np.sin(yaw[0])])
            rects.append((*(position[0, :2] + 1.35 * forward), 3.9, 1.6, yaw[0]))
            where = np.array(rects)
            clashes = []
            for i in range(len(rects)):
                close = (
                    np.nonzero(np.hypot(*(where[i + 1 :, :2] - where[i, :2]).T) < 12.0)[0] + i + 1
                )
                clashes += [(i, j) for j in close if overlap(rects[i], rects[j])]
            with_ego = [pair for pair in clashes if pair[1] == len(rects) - 1]
            assert not with_ego, (
                f'{layout}: the ego car drives through {len(with_ego)} objects at {time} s'
            )
            assert len(clashes) <= 0.03 * len(rects), (
                f'{layout} at {time} s: {len(clashes)} of {len(rects)} overlap'
            )
        assert total > 1000
        assert inside_all / total > 0.97


def test_training_and_validation_share_no_layout():
    assert not set(TRAIN_LAYOUTS) & set(VAL_LAYOUTS)
    with pytest.raises(ValueError, match="unknown layout 'moon'"):
        build_scene('moon', (0, 0), 1.0)


def test_simulate_frame_stacks_sweeps_and_counts_points():
    frame = simulate_frame(seed=4, sweeps=3)
    points, boxes = frame['points'], frame['boxes']
    assert points.shape[1] == 5
    assert points.dtype == boxes.dtype == np.float32
    np.testing.assert_allclose(np.unique(points[:, 4]), [0, 0.05, 0.1], atol=1e-6)
    assert boxes.shape == (len(frame['names']), 9)
    assert set(frame['names']) <= set(NUSCENES_SIZES)
    key = points[points[:, 4] == 0]
    counts = count_points(
        key[:, :3].astype(float),
        boxes[:, :3] + [0, 0, 0.5] * boxes[:, 3:6],
        boxes[:, 3:6],
        boxes[:, 6],
    )
    assert (
        np.abs(counts - frame['num_points']).sum() < 0.1 * frame['num_points'].sum()
    )  # the sensor's tilt leans the boxes
    assert frame['num_points'].min() >= 1
    # the ground lies where the sensor's height says
    near = np.hypot(key[:, 0], key[:, 1]) < 8
    assert abs(np.median(key[near, 2]) + 1.84) < 0.25
    again = simulate_frame(seed=4, sweeps=3)
    assert again['points'].tobytes() == points.tobytes()
    with pytest.raises(ValueError, match='at least 1'):
        simulate_frame(sweeps=0)
