"""A LiDAR on the roof of a moving car: what it sees, echoes, noise, and the points of a file."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from stratified3d.jit import compiled
from stratified3d.simulation.physics.materials import GLASS, PAINT, TABLE
from stratified3d.simulation.physics.primitives import Primitives, Shape
from stratified3d.simulation.physics.raycast import GROUND, NOTHING, cast_rays
from stratified3d.simulation.physics.scanners import Mounting, Noise

_CAR_HEIGHT = 1.56  # m, of the ego car
_HEADROOM = 0.2  # m, at least, between its roof and the sensor


class Pose(NamedTuple):
    """A rigid transform to the world: rotation [..., 3, 3], translation [..., 3] m."""

    rotation: np.ndarray
    translation: np.ndarray

    def __matmul__(self, other: Pose) -> Pose:
        rotation = self.rotation @ other.rotation
        rotated = (self.rotation @ other.translation[..., None])[..., 0]
        return Pose(rotation, rotated + self.translation)

    def inverse(self) -> Pose:
        """The inverse transform."""
        back = np.swapaxes(self.rotation, -1, -2)
        return Pose(back, -(back @ self.translation[..., None])[..., 0])


def _ego_car(height: float = _CAR_HEIGHT) -> Primitives:
    """The car below the sensor in the ego frame, a Renault Zoe of 4.08 x 1.73 m.

    Its body, its windows, its roof and a rack at the rear.

    Args:
        height: m, of a car of the same shape.
    """
    tall = height / _CAR_HEIGHT
    car = Shape(None, (4.08, 1.73, height))
    car.tapered((1.35, 0.0, 0.55 * tall), (4.08, 1.73, 0.62 * tall), (0.60, 0.1, 0.10), PAINT, 0.3)
    car.tapered((1.22, 0.0, 1.20 * tall), (3.64, 1.52, 0.56 * tall), (1.35, 0.55, 0.20), GLASS, 1.0)
    car.box((0.795, 0.0, 1.475 * tall), (1.79, 1.11, 0.03 * tall), PAINT, 0.3)
    car.box((0.11, 0.0, 1.53 * tall), (0.06, 0.22, 0.09 * tall), PAINT, 0.6)
    return car.primitives()


class MountedLidar:
    """One mounted sensor: its rays, when they are fired, and which of them its own car blocks.

    Args:
        mount: the sensor in the ego frame.
        directions: [C, B, 3] unit vectors of C columns of B rays in the sensor frame.
        delays: [C] s relative to the timestamp, ascending.
        key: of the random gain of each laser; the same sensor in every scene.
        max_range: m.
        car_height: m, of the car below.
    """

    def __init__(
        self,
        mount: Pose,
        directions: np.ndarray,
        delays: np.ndarray,
        key: int,
        max_range: float,
        car_height: float = _CAR_HEIGHT,
    ):
        self.mount, self.directions, self.delays = mount, directions, delays
        self.max_range = max_range
        columns, beams = directions.shape[:2]
        # lasers and receivers differ
        rng = np.random.Generator(np.random.Philox(key=key))
        self.gain = np.exp(0.2 * rng.standard_normal(beams))

        car = _ego_car(car_height)
        no_ground = np.array([-1e6, 0.0, 0.0, 0.0, 0.0, 0.0])
        self.own_distance, self.own_hit, self.own_cosine = cast_rays(
            np.broadcast_to(mount.translation, (columns, 3)),
            np.broadcast_to(mount.rotation, (columns, 3, 3)),
            np.zeros(columns),
            directions,
            car,
            no_ground,
            max_range=10.0,
        )
        own_part = np.maximum(self.own_hit, 0)
        self.own_material = car.material[own_part]
        self.own_shade = car.shade[own_part]


class Sensor(MountedLidar):
    """LIDAR_TOP of a nuScenes dataset: a turning scanner on the roof, x right, y forward.

    Low ones stand on lower cars.

    Args:
        tilt: (roll, pitch) of the mount, rad; nuScenes' cars have up to 0.025.
        mounting: which scanner, and how it is mounted.

    Attributes:
        scanner: its kind.
        mounting: as given.
    """

    def __init__(self, tilt: tuple[float, float], mounting: Mounting):
        self.mounting, self.scanner = mounting, mounting.scanner
        cos, sin = math.cos(mounting.heading), math.sin(mounting.heading)
        yaw = np.array([[sin, cos, 0.0], [-cos, sin, 0.0], [0.0, 0.0, 1.0]])
        place = np.array([mounting.forward, 0.0, mounting.height])
        scanner = self.scanner
        super().__init__(
            Pose(tip(*tilt) @ yaw, place),
            scanner.directions(),
            scanner.delays(),
            scanner.beams,
            scanner.max_range,
            min(_CAR_HEIGHT, mounting.height - _HEADROOM),
        )


def tip(roll: float, pitch: float) -> np.ndarray:
    """[3, 3] rotation of a mount that leans by roll and pitch, rad."""
    cr, sr = math.cos(roll), math.sin(roll)
    cp, sp = math.cos(pitch), math.sin(pitch)
    return np.array([[cp, sp * sr, sp * cr], [0.0, cr, -sr], [-sp, cp * sr, cp * cr]])


class Surface(NamedTuple):
    """Materials of the ground on a grid.

    Attributes:
        grid: [NX, NY] uint8 rows of `materials.TABLE`.
        cell: size of a cell, m.
        corner: (x, y) of the grid's corner, m.
    """

    grid: np.ndarray
    cell: float
    corner: tuple[float, float]


def fire(
    sensor: MountedLidar,
    poses: Pose,
    primitives: Primitives,
    ground: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cast one sweep along the sensor's moving pose.

    Args:
        poses: [C] sensor to world at each firing.
        primitives: in the world at the sweep's timestamp.
        ground: [6], see `intersect.hit_ground`.
    Returns:
        distance, hit, cosine [C, B], see `raycast.cast_rays`; what the ego car blocks is NOTHING.
    """
    return cast_rays(
        poses.translation,
        poses.rotation,
        sensor.delays,
        sensor.directions,
        primitives,
        ground,
        max_range=sensor.max_range,
        limits=sensor.own_distance,
    )


@compiled
def _floor_intensity(uniform):
    """Intensity of the receiver's floor: what rays without a return carry in the released files."""
    return 1.0 + math.floor(-9.0 * math.log(1.0 - 0.999 * uniform))


@compiled
def _chance_of_loss(value, r, transparent, dropped, reach, own):
    """Probability that the receiver misses an echo of intensity `value` at distance r."""
    # received power falls with distance squared; a steep logistic stands for the detector's
    # threshold
    power = value / 10.0 * (reach / r) ** 2 if reach < np.inf else np.inf
    lost = 1.0 / (1.0 + power**2)
    if own:
        return lost
    passed = transparent if dropped > 0.0 else 0.0
    return 1.0 - (1.0 - lost) * (1.0 - dropped) * (1.0 - passed)


@compiled
def _measure(
    distance,
    material,
    shade,
    cosine,
    uniform,
    normal,
    table,
    gain,
    sigma,
    dropped,
    reach,
    mixed,
    own,
    measured,
    intensity,
):
    """Fill measured and intensity [C, B], see `receive`.

    Args:
        distance, material, shade, cosine: [C, B] of what each ray hits.
        uniform, normal: random numbers, [C, B, 5] and [C, B, 2].
        table: `materials.TABLE`.
        gain: [B] of each laser.
        sigma, dropped, reach, mixed: see `Noise`.
        own: [C, B] whether the ray hits its own car.
    """
    n_columns, n_rings = distance.shape
    for c in range(n_columns):
        for b in range(n_rings):
            r = distance[c, b]
            if not r < np.inf:
                intensity[c, b] = _floor_intensity(uniform[c, b, 1])
                continue

            level, spread, gloss, transparent, depth = table[material[c, b]]
            slant = max(cosine[c, b], 1e-3)
            mean = gain[b] * level * shade[c, b] * slant**gloss
            value = mean * math.exp(spread * normal[c, b, 1])
            lost = _chance_of_loss(value, r, transparent, dropped, reach, own[c, b])
            if uniform[c, b, 0] < lost:
                intensity[c, b] = _floor_intensity(uniform[c, b, 1])
                continue

            # at a depth edge a return may land between the two surfaces
            other = distance[(c + 1) % n_columns, b]
            is_edge = other < np.inf and 0.3 < abs(other - r) < 6.0
            if is_edge and uniform[c, b, 2] < mixed:
                r += (other - r) * uniform[c, b, 3]
            if sigma > 0.0:  # leaves let some of the pulse in
                r -= depth * math.log(1.0 - uniform[c, b, 4])
            measured[c, b] = r + sigma * normal[c, b, 0]
            intensity[c, b] = min(max(math.floor(value + 0.5), 0.0), 255.0)


def _surfaces_hit(
    poses: Pose, primitives: Primitives, surface: Surface, cast: tuple, world: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Material and shade [C, B] of what each ray hits; any where it hits nothing."""
    distance, hit, _ = cast
    if len(primitives.kind):
        material = primitives.material[np.maximum(hit, 0)]
        shade = primitives.shade[np.maximum(hit, 0)]
    else:
        material = np.zeros_like(hit)
        shade = np.ones(hit.shape)

    column, beam = np.nonzero(hit == GROUND)
    reach = distance[column, beam]
    spot = poses.translation[column, :2] + world[column, :2, beam] * reach[:, None]
    material[column, beam] = _ground_material(surface, spot)
    shade[column, beam] = 1.0
    return material, shade


def _ground_material(surface: Surface, spot: np.ndarray) -> np.ndarray:
    """[N] material of the ground at positions x, y [N, 2] m; beyond the grid that of its edge."""
    cell = (spot - np.array(surface.corner)) / surface.cell
    ix, iy = cell.astype(np.int64).T
    nx, ny = surface.grid.shape
    return surface.grid[np.clip(ix, 0, nx - 1), np.clip(iy, 0, ny - 1)]


def receive(
    sensor: MountedLidar,
    poses: Pose,
    primitives: Primitives,
    surface: Surface,
    cast: tuple,
    noise: Noise,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure the echoes of a cast sweep: which are noticed, how far and how bright.

    Args:
        cast: what `fire` returned.
        rng: a generator that belongs to this sweep alone.
    Returns:
        measured [C, B] m, 0 where there is no return; intensity [C, B] 0 to 255; world [C, 3, B]
        unit vectors of the rays in the world.
    """
    distance, hit, cosine = cast
    world = poses.rotation @ np.swapaxes(sensor.directions, 1, 2)  # [C, 3, B]
    material, shade = _surfaces_hit(poses, primitives, surface, cast, world)
    own = (hit == NOTHING) & (sensor.own_distance < np.inf)
    distance = np.where(own, sensor.own_distance, distance)
    measured = np.zeros(distance.shape)
    intensity = np.zeros(distance.shape)
    _measure(
        distance,
        np.where(own, sensor.own_material, material),
        np.where(own, sensor.own_shade, shade),
        np.where(own, sensor.own_cosine, cosine),
        rng.random((*distance.shape, 5)),
        rng.standard_normal((*distance.shape, 2)),
        TABLE,
        sensor.gain,
        noise.range_sigma,
        noise.dropped,
        noise.reach,
        noise.mixed,
        own,
        measured,
        intensity,
    )
    return measured, intensity, world


def measure(
    sensor: Sensor,
    poses: Pose,
    primitives: Primitives,
    surface: Surface,
    cast: tuple,
    noise: Noise,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Turn a cast sweep into the points of a file, with noise and motion compensation.

    A ray without a return stays as a point at the sensor's origin at its firing time. Everything is
    given in the LIDAR_TOP frame at the sweep's timestamp, the last firing.

    The arguments are those of `receive`.

    Returns:
        points [C B, 5] float32 (x, y, z m, intensity 0-255, ring), column by column; owner [C B]
        int64 of the object hit, -1 for none.
    """
    measured, intensity, world = receive(sensor, poses, primitives, surface, cast, noise, rng)
    end = Pose(poses.rotation[-1], poses.translation[-1]).inverse()
    seen = poses.translation[:, :, None] + world * measured[:, None]  # [C, 3, B]
    seen = end.rotation @ seen + end.translation[:, None]
    points = np.empty((*measured.shape, 5), np.float32)
    points[:, :, :3] = np.swapaxes(seen, 1, 2)
    points[:, :, 3] = sensor.mounting.written_intensity(intensity)
    points[:, :, 4] = np.arange(measured.shape[1])
    owner = np.where(measured > 0, find_owners(cast[1], primitives), -1)
    return points.reshape(-1, 5), owner.reshape(-1)


def find_owners(hit: np.ndarray, primitives: Primitives) -> np.ndarray:
    """Owner of each primitive that was hit, in hit's shape; -1 for the ground and for nothing."""
    if not len(primitives.kind):
        return np.full(hit.shape, -1)
    return np.where(hit >= 0, primitives.owner[np.maximum(hit, 0)], -1)
