"""Ray casting against Open3D for polyhedra and against equations for curved surfaces."""

import numpy as np
import pytest

from stratified3d.simulation.layouts.catalog import build_scene
from stratified3d.simulation.physics.primitives import (
    BOX,
    ELLIPSOID,
    FRUSTUM,
    TAPERED,
    Primitives,
    Shape,
    join,
    move,
    rotate_z,
)
from stratified3d.simulation.physics.raycast import GROUND, NOTHING, cast_rays
from stratified3d.simulation.physics.scanners import SCANNERS

DEEP = np.array([-1e6, 0.0, 0.0, 0.0, 0.0, 0.0])  # a ground that nothing reaches


def corners_of(primitives: Primitives, p: int) -> np.ndarray:
    """[8, 3] corners of a box or tapered box: the foot's four, then the top's."""
    x, y, z = primitives.half[p]
    front, rear, side = primitives.taper[p] if primitives.kind[p] == TAPERED else (0.0, 0.0, 0.0)
    foot = [(-x, -y, -z), (x, -y, -z), (x, y, -z), (-x, y, -z)]
    top = [
        (-x + rear, -y + side, z),
        (x - front, -y + side, z),
        (x - front, y - side, z),
        (-x + rear, y - side, z),
    ]
    return np.array(foot + top) @ primitives.rotation[p].T + primitives.center[p]


TRIANGLES = np.array(
    [
        (0, 2, 1),
        (0, 3, 2),
        (4, 5, 6),
        (4, 6, 7),
        (0, 1, 5),
        (0, 5, 4),
        (1, 2, 6),
        (1, 6, 5),
        (2, 3, 7),
        (2, 7, 6),
        (3, 0, 4),
        (3, 4, 7),
    ],
    np.uint32,
)


def open3d_cast(primitives: Primitives, origins: np.ndarray, directions: np.ndarray):
    """Distance [R], incidence cosine [R] and primitive [R] from Open3D."""
    o3d = pytest.importorskip('open3d')
    scene = o3d.t.geometry.RaycastingScene()
    for p in range(len(primitives.kind)):
        vertices = o3d.core.Tensor(corners_of(primitives, p).astype(np.float32))
        scene.add_triangles(vertices, o3d.core.Tensor(TRIANGLES))
    answer = scene.cast_rays(
        o3d.core.Tensor(np.concatenate([origins, directions], 1).astype(np.float32))
    )
    cosine = np.abs((answer['primitive_normals'].numpy() * directions).sum(1))
    return answer['t_hit'].numpy().astype(float), cosine, answer['geometry_ids'].numpy()


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q *= np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def random_primitives(
    rng: np.random.Generator, kinds: tuple[int, ...], count: int, spread: float
) -> Primitives:
    """`count` primitives at random poses, none at the origin."""
    parts = []
    for _ in range(count):
        kind, size = rng.choice(kinds), rng.uniform(0.3, 4.0, 3)
        shape = Shape(None, (1.0, 1.0, 1.0))
        if kind == BOX:
            shape.box((0, 0, 0), size, 0)
        elif kind == TAPERED:
            shape.tapered(
                (0, 0, 0),
                size,
                (*rng.uniform(0, 0.45, 2) * size[0], rng.uniform(0, 0.45) * size[1]),
                0,
            )
        elif kind == FRUSTUM:
            shape.frustum((0, 0, 0), size[0], rng.uniform(0.1, 2.0), size[2], 0)
        else:
            shape.ellipsoid((0, 0, 0), size, 0)
        away = unit(rng.standard_normal(3)) * rng.uniform(5.0, spread)
        parts.append(move(shape.primitives(), random_rotation(rng), away, -1))
    return join(parts)


def cast_from(
    origin: np.ndarray, directions: np.ndarray, primitives: Primitives, ground=DEEP, max_range=200.0
):
    """Rays [R, 3] from one point."""
    count = len(directions)
    distance, hit, cosine = cast_rays(
        np.tile(origin, (count, 1)),
        np.tile(np.eye(3), (count, 1, 1)),
        np.zeros(count),
        directions[:, None],
        primitives,
        ground,
        max_range=max_range,
    )
    return distance[:, 0], hit[:, 0], cosine[:, 0]


def assert_agree(distance, cosine, expected, expected_cosine):
    """Within 1 mm for 99.9 % of the rays that meet either surface at more than 5 degrees."""
    steep = np.where(
        np.isfinite(expected), expected_cosine, np.where(np.isfinite(distance), cosine, 1.0)
    ) > np.sin(np.radians(5))
    both = np.isfinite(distance) & np.isfinite(expected)
    same = np.isclose(distance, expected, rtol=0, atol=1e-3)  # two misses are close, too
    assert both.sum() > 1000, 'too few hits to say anything'
    assert same[steep].mean() >= 0.999, f'{(~same[steep]).sum()} of {steep.sum()} rays differ'


def test_polyhedra_agree_with_open3d():
    rng = np.random.default_rng(0)
    for _ in range(4):
        primitives = random_primitives(rng, (BOX, TAPERED), 60, 40.0)
        directions = unit(rng.standard_normal((20000, 3)))
        distance, hit, cosine = cast_from(np.zeros(3), directions, primitives)
        expected, expected_cosine, owner = open3d_cast(primitives, np.zeros((20000, 3)), directions)
        assert_agree(distance, cosine, expected, expected_cosine)
        both = np.isfinite(expected) & np.isclose(distance, expected, rtol=0, atol=1e-3)
        assert (hit[both] == owner[both]).mean() > 0.999
        assert np.quantile(np.abs(cosine - expected_cosine)[both], 0.999) < 1e-3


@pytest.mark.parametrize('layout', ['promenade', 'turning', 'car_park'])
def test_whole_sweeps_agree_with_open3d(layout):
    """Culling included: a real scene's polyhedra, all rays, a sensor that moves and turns."""
    scene = build_scene(layout, (1, 2), 4.0)
    everything = scene.primitives_at(2.0)
    chosen = np.isin(everything.kind, (BOX, TAPERED))
    primitives = Primitives(*(column[chosen] for column in everything))._replace(
        velocity=np.zeros((chosen.sum(), 3))
    )
    poses = scene.lidar_pose(2.0 + scene.sensor.delays)
    distance, _, cosine = cast_rays(
        poses.translation,
        poses.rotation,
        scene.sensor.delays,
        scene.sensor.directions,
        primitives,
        DEEP,
        max_range=SCANNERS['nuscenes'].max_range,
    )
    # around the sensor, for the sake of Open3D's single precision
    middle = poses.translation[-1]
    near = primitives._replace(center=primitives.center - middle)
    origins = np.repeat(poses.translation - middle, scene.sensor.directions.shape[1], 0)
    directions = (scene.sensor.directions @ np.swapaxes(poses.rotation, 1, 2)).reshape(-1, 3)
    expected, expected_cosine, _ = open3d_cast(near, origins, directions)
    expected[expected > SCANNERS['nuscenes'].max_range] = np.inf
    assert_agree(distance.ravel(), cosine.ravel(), expected, expected_cosine)


def implicit(primitives: Primitives, p: int, world: np.ndarray) -> np.ndarray:
    """Negative inside, positive outside, zero on the surface; independent of `intersect`."""
    local = (world - primitives.center[p]) @ primitives.rotation[p]
    half = primitives.half[p]
    if primitives.kind[p] == ELLIPSOID:
        return np.sqrt(((local / half) ** 2).sum(-1)) - 1.0
    radius = np.interp(local[..., 2], [-half[2], half[2]], half[:2])
    return np.maximum(
        np.hypot(local[..., 0], local[..., 1]) - radius, np.abs(local[..., 2]) - half[2]
    )


@pytest.mark.parametrize('kind', [FRUSTUM, ELLIPSOID])
def test_curved_surfaces_are_met_first_and_exactly(kind):
    rng = np.random.default_rng(kind)
    hits = 0
    for _ in range(60):
        primitives = random_primitives(rng, (kind,), 1, 12.0)
        aim = primitives.center[0] + rng.normal(0, 1.5, (60, 3))
        directions = unit(aim)
        distance, _, _ = cast_from(np.zeros(3), directions, primitives)
        met = np.isfinite(distance)
        hits += met.sum()
        points = directions[met] * distance[met, None]
        assert np.abs(implicit(primitives, 0, points)).max(initial=0) < 1e-8
        # nothing solid before the hit, and none at all along a ray that misses
        steps = np.linspace(0.0, 1.0, 400)[:-1]
        reach = np.where(met, distance - 1e-6, 30.0)
        samples = directions[:, None] * (steps * reach[:, None])[..., None]
        assert implicit(primitives, 0, samples).min() > -1e-9
    assert hits > 500


def test_distances_and_incidences_worked_out_by_hand():
    """Distances and incidences that can be worked out by hand."""
    ahead = np.array([[1.0, 0.0, 0.0]])
    sphere = move(
        Shape(None, (1, 1, 1)).ellipsoid((0, 0, 0), (2, 2, 2), 0).primitives(),
        np.eye(3),
        np.array([10.0, 0, 0.6]),
        -1,
    )
    distance, _, cosine = cast_from(np.zeros(3), ahead, sphere)
    assert distance[0] == pytest.approx(10 - 0.8, abs=1e-12)
    assert cosine[0] == pytest.approx(0.8, abs=1e-12)
    pole = move(
        Shape(None, (1, 1, 1)).frustum((0, 0, 0), 0.5, 0.5, 4, 0).primitives(),
        np.eye(3),
        np.array([10.0, 0.3, 0]),
        -1,
    )
    distance, _, cosine = cast_from(np.zeros(3), ahead, pole)
    assert distance[0] == pytest.approx(10 - 0.4, abs=1e-12)
    assert cosine[0] == pytest.approx(0.8, abs=1e-12)
    cone = move(
        Shape(None, (1, 1, 1)).frustum((0, 0, 0), 1.0, 1e-9, 2, 0).primitives(),
        np.eye(3),
        np.array([10.0, 0, 0]),
        -1,
    )
    distance, _, cosine = cast_from(np.zeros(3), ahead, cone)
    assert distance[0] == pytest.approx(9.5, abs=1e-8)  # half-way up, half the radius
    assert cosine[0] == pytest.approx(2 / np.sqrt(5), abs=1e-8)
    down = unit(np.array([[3.0, 0.0, -4.0]]))
    distance, hit, cosine = cast_from(np.array([0.0, 0, 2.0]), down, sphere, np.zeros(6))
    assert (distance[0], hit[0]) == (pytest.approx(2.5), GROUND)
    assert cosine[0] == pytest.approx(0.8)


def test_ground_is_met_where_its_equation_says():
    rng = np.random.default_rng(3)
    for _ in range(20):
        ground = np.concatenate([[0.0], rng.uniform(-0.03, 0.03, 2), rng.uniform(-2e-4, 2e-4, 3)])

        def height(x, y, g=ground):
            return g[0] + g[1] * x + g[2] * y + g[3] * x * x + g[4] * x * y + g[5] * y * y

        directions = unit(rng.standard_normal((500, 3)) * [1, 1, 0.15])
        origin = np.array([20.0, -10.0, height(20.0, -10.0) + 1.84])
        sky = random_primitives(rng, (ELLIPSOID,), 1, 9.0)._replace(
            center=np.array([[0.0, 0.0, 900.0]])
        )
        distance, hit, _ = cast_from(origin, directions, sky, ground, max_range=100.0)
        met = hit == GROUND
        assert 100 < met.sum() < 500
        x, y, z = (origin + directions[met] * distance[met, None]).T
        assert np.abs(z - height(x, y)).max() < 1e-9
        steps = np.linspace(0, 1, 500)[:-1]
        x, y, z = np.moveaxis(
            origin
            + directions[:, None] * (steps * np.where(met, distance, 100.0)[:, None])[..., None],
            -1,
            0,
        )
        assert (z - height(x, y)).min() > -1e-9


def test_a_moving_primitive_is_hit_where_it_is_at_the_firing():
    car = move(
        Shape(None, (1, 1, 1)).box((0, 0, 0), (4, 2, 2), 0).primitives(),
        rotate_z(0.3),
        np.array([20.0, 1.0, 0.0]),
        7,
    )
    velocity = np.array([[8.0, -3.0, 0.0]])
    directions = unit(np.array([[20.0, y, 0.1] for y in np.linspace(-2, 4, 50)]))[:, None]
    delays = np.linspace(-0.05, 0.0, 50)
    origins, turns = np.zeros((50, 3)), np.tile(np.eye(3), (50, 1, 1))
    moving, _, _ = cast_rays(
        origins, turns, delays, directions, car._replace(velocity=velocity), DEEP, max_range=100.0
    )
    for i, delay in enumerate(delays):
        there = car._replace(center=car.center + velocity * delay)
        still, _, _ = cast_from(np.zeros(3), directions[i], there)
        assert moving[i, 0] == pytest.approx(still[0], abs=1e-9) or moving[i, 0] == still[0]
    assert np.isfinite(moving).sum() > 10


def test_rays_end_at_their_limit_and_the_maximum_range():
    wall = move(
        Shape(None, (1, 1, 1)).box((0, 0, 0), (1, 9, 9), 0).primitives(),
        np.eye(3),
        np.array([50.0, 0, 0]),
        -1,
    )
    ahead = np.array([[[1.0, 0.0, 0.0]]])
    cast = [np.zeros((1, 3)), np.eye(3)[None], np.zeros(1), ahead, wall, DEEP]
    assert cast_rays(*cast, max_range=60.0)[0][0, 0] == pytest.approx(49.5)
    assert cast_rays(*cast, max_range=40.0)[1][0, 0] == NOTHING
    assert cast_rays(*cast, max_range=60.0, limits=np.array([[1.2]]))[1][0, 0] == NOTHING


def test_cast_rays_rejects_wrong_shapes():
    empty = join([])
    with pytest.raises(ValueError, match='must be'):
        cast_rays(
            np.zeros((2, 3)),
            np.eye(3)[None],
            np.zeros(2),
            np.zeros((2, 4, 3)),
            empty,
            DEEP,
            max_range=1.0,
        )
    flat = Shape(None, (1, 1, 1)).box((0, 0, 0), (1, 0, 1), 0).primitives()
    with pytest.raises(ValueError, match='positive size'):
        cast_from(np.zeros(3), np.array([[1.0, 0, 0]]), flat)
