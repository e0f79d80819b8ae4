"""A scene: its actors, and the sweeps and annotations of it at any time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stratified3d.simulation.physics.lidar import (
    Pose,
    Sensor,
    Surface,
    find_owners,
    fire,
    measure,
)
from stratified3d.simulation.physics.paths import Fleet, Ground, Motion
from stratified3d.simulation.physics.primitives import Primitives, Shape, join, move
from stratified3d.simulation.physics.raycast import cast_rays
from stratified3d.simulation.physics.scanners import (
    MOUNTINGS,
    SILENT,
    SWEEP_SECONDS,
    Mounting,
    Noise,
)

STRIDE = 1.4  # m per full swing of a walker's legs
SIGHT = 118.0  # m; what is farther from the car never enters a sweep
ANNOTATED_RANGE = 100.0  # m


@dataclass(frozen=True)
class Actor:
    """One object with a pose: a road user, a cone, a piece of clutter.

    Args:
        shape: its primitives; `shape.category` None keeps it out of the annotations.
        motion: its pose at any time.
        state: its nuScenes attribute while it rests ('' for none), e.g. 'vehicle.parked'.
    """

    shape: Shape
    motion: Motion
    state: str = ''

    @property
    def is_static(self) -> bool:
        """Whether it never moves."""
        return self.motion.speed.before == 0.0 and not np.isfinite(self.motion.speed.start)

    def attribute(self, speed: float) -> str:
        """The nuScenes attribute at this speed (m/s), '' where the category has none."""
        kind = (self.shape.category or '').split('.')
        if kind[0] == 'vehicle' and kind[1] in ('bicycle', 'motorcycle'):
            return self.state
        if kind[0] == 'vehicle':
            return 'vehicle.moving' if speed > 0.2 else self.state
        if kind[0] == 'human' and kind[-1] != 'stroller':
            return 'pedestrian.moving' if speed > 0.2 else self.state
        return ''


@dataclass(frozen=True)
class Boxes:
    """Annotations at one time, in the world: K boxes.

    Attributes:
        actor: [K] index into `Scene.actors`.
        center: [K, 3] m.
        size: [K, 3] length, width, height, m.
        yaw: [K] rad.
        velocity: [K, 2] m/s.
        num_points: [K] points of the sweep inside.
        visibility: [K] unoccluded share, 0 to 1.
    """

    actor: np.ndarray
    center: np.ndarray
    size: np.ndarray
    yaw: np.ndarray
    velocity: np.ndarray
    num_points: np.ndarray
    visibility: np.ndarray


class Scene:
    """A world with its ego car.

    Args:
        ground, surface: the terrain and what covers it.
        actors: everything that stands or moves; an actor's index is its identity.
        ego: the car's motion (its origin is below the rear axle).
        tilt, mounting: see `lidar.Sensor`.
        traffic_side: +1 where traffic keeps right, -1 left.
    """

    def __init__(
        self,
        ground: Ground,
        surface: Surface,
        actors: list[Actor],
        ego: Motion,
        tilt: tuple[float, float] = (0.0, 0.0),
        traffic_side: int = 1,
        mounting: Mounting = MOUNTINGS['nuscenes'],
    ):
        self.ground = ground
        self.surface = surface
        self.actors = actors
        self.ego = ego
        self.traffic_side = traffic_side
        self.sensor = Sensor(tilt, mounting)
        parts = [actor.shape.primitives() for actor in actors]
        owner = [index if actor.shape.category else -1 for index, actor in enumerate(actors)]
        self._place_static(parts, owner)
        self._collect_moving(parts, owner)

        annotated = [index for index, actor in enumerate(actors) if actor.shape.category]
        self._annotated = np.array(annotated, np.int64)
        self._annotated_fleet = Fleet([actors[i].motion for i in annotated])

    def _place_static(self, parts: list[Primitives], owner: list[int]) -> None:
        """Join the primitives of all actors that never move, in the world."""
        fleet = Fleet([actor.motion for actor in self.actors])
        position, rotation, _ = fleet.pose(0.0, self.ground)
        static = [
            move(parts[i], rotation[i], position[i], owner[i])
            for i, actor in enumerate(self.actors)
            if actor.is_static
        ]
        self._static = join(static)

    def _collect_moving(self, parts: list[Primitives], owner: list[int]) -> None:
        """Join the primitives of all actors that move, each in its actor's frame."""
        indices = [i for i, actor in enumerate(self.actors) if not actor.is_static]
        moving = [self.actors[i] for i in indices]
        self._moving_fleet = Fleet([actor.motion for actor in moving])
        counts = [len(parts[i].kind) for i in indices]
        # row in the fleet of each moving primitive
        self._mover_of = np.repeat(np.arange(len(counts)), counts)
        self._moving = join(
            [parts[i]._replace(owner=np.full(len(parts[i].kind), owner[i])) for i in indices]
        )
        self._sway = np.concatenate([np.zeros(0), *(actor.shape.sway() for actor in moving)])

    def ego_pose(self, time: np.ndarray) -> Pose:
        """Ego to world at times [T] s."""
        position, rotation, _ = self.ego.pose(time, self.ground)
        return Pose(rotation, position)

    def lidar_pose(self, time: np.ndarray) -> Pose:
        """LIDAR_TOP to world at times [T] s."""
        return self.ego_pose(time) @ self.sensor.mount

    def primitives_at(self, time: float) -> Primitives:
        """Everything near the car at `time`, in the world.

        Moving actors carry their velocity over the last sweep.
        """
        center = self.ego_pose(np.array([time])).translation[0]
        extent = self._static.half.max(1, initial=0.0)
        near = _horizontal_distance(self._static.center, center) - extent < SIGHT
        return join([_select(self._static, near), self._moving_primitives(time, center)])

    def _moving_primitives(self, time: float, center: np.ndarray) -> Primitives:
        """Primitives of the moving actors within SIGHT of `center` [3] at `time`, in the world."""
        fleet = self._moving_fleet
        position, rotation, _ = fleet.pose(time, self.ground)
        before, _, _ = fleet.pose(time - SWEEP_SECONDS, self.ground)
        velocity = (position - before) / SWEEP_SECONDS

        keep = (_horizontal_distance(position, center) < SIGHT)[self._mover_of]
        row = self._mover_of[keep]
        local = self._swung_centers(time)[keep]
        moving = _select(self._moving, keep)
        return moving._replace(
            center=(rotation[row] @ local[..., None])[..., 0] + position[row],
            rotation=rotation[row] @ moving.rotation,
            velocity=velocity[row],
        )

    def _swung_centers(self, time: float) -> np.ndarray:
        """[P, 3] centers of the moving primitives in their actors' frames, legs and arms swung."""
        swing = np.sin(self._moving_fleet.traveled(time) * (2 * np.pi / STRIDE))
        centers = self._moving.center.copy()
        centers[:, 0] += self._sway * swing[self._mover_of]
        return centers

    def sweep(
        self, time: float, rng: np.random.Generator | None, noise: Noise = SILENT
    ) -> tuple[np.ndarray, Primitives]:
        """One turn of the sensor that ends at `time`.

        Args:
            rng: this sweep's own generator; None for a sweep without noise.
        Returns:
            points [C B, 5] float32 as in a nuScenes file (see `lidar.measure`), the sweep's
            Primitives.
        """
        poses = self.lidar_pose(time + self.sensor.delays)
        primitives = self.primitives_at(time)
        cast = fire(self.sensor, poses, primitives, self.ground.coefficients)
        rng = rng or np.random.Generator(np.random.Philox(0))
        points, _ = measure(self.sensor, poses, primitives, self.surface, cast, noise, rng)
        return points, primitives

    def annotate(self, time: float, points: np.ndarray, primitives: Primitives) -> Boxes:
        """Boxes of all actors with a category within ANNOTATED_RANGE at `time`.

        Args:
            points: [N, 5] the keyframe, LIDAR_TOP frame.
            primitives: the world at `time`, as `sweep` returned it.
        """
        lidar = self.lidar_pose(np.array([time]))
        world = points[:, :3] @ lidar.rotation[0].T + lidar.translation[0]
        seen = world[np.linalg.norm(points[:, :3], axis=1) > 1.0]
        return self.annotate_world(time, lidar.translation[0], seen, primitives)

    def annotate_world(
        self, time: float, sensor: np.ndarray, world: np.ndarray, primitives: Primitives
    ) -> Boxes:
        """Boxes of all actors with a category within ANNOTATED_RANGE of a sensor [3] at `time`.

        Args:
            world: [N, 3] points in the world.
            primitives: the world at `time`, see `primitives_at`.
        """
        fleet = self._annotated_fleet
        position, rotation, yaw = fleet.pose(time, self.ground)
        before, _, _ = fleet.pose(time - SWEEP_SECONDS, self.ground)
        velocity = (position - before)[:, :2] / SWEEP_SECONDS

        near = _horizontal_distance(position, sensor) < ANNOTATED_RANGE
        actor = self._annotated[near]
        position = position[near]
        up = rotation[near, :, 2]
        yaw = yaw[near]
        velocity = velocity[near]
        size = np.array([self.actors[i].shape.size for i in actor]).reshape(-1, 3)
        center = position + up * size[:, 2:] / 2
        num_points = count_points(world, center, size, yaw)
        visibility = self._visibility(sensor, actor, center, size, yaw, primitives)
        return Boxes(
            actor=actor,
            center=center,
            size=size,
            yaw=yaw,
            velocity=velocity,
            num_points=num_points,
            visibility=visibility,
        )

    def _visibility(
        self,
        sensor: np.ndarray,
        actor: np.ndarray,
        center: np.ndarray,
        size: np.ndarray,
        yaw: np.ndarray,
        primitives: Primitives,
    ) -> np.ndarray:
        """Share of a grid of points inside each box that nothing else hides from the sensor."""
        if not len(center):
            return np.zeros(0)
        spots = to_world(_GRID * size[:, None], center, yaw)  # [K, 36, 3]
        ray = spots - sensor
        length = np.linalg.norm(ray, axis=-1)  # [K, 36]
        count = length.size
        distance, hit, _ = cast_rays(
            np.broadcast_to(sensor, (count, 3)),
            np.broadcast_to(np.eye(3), (count, 3, 3)),
            np.zeros(count),
            (ray / length[..., None]).reshape(count, 1, 3),
            primitives,
            self.ground.coefficients,
            max_range=1.2 * SIGHT,
        )
        owner = find_owners(hit, primitives).reshape(length.shape)
        is_short = distance.reshape(length.shape) < length - 0.3
        hidden = is_short & (owner != actor[:, None])
        return 1.0 - hidden.mean(1)


# places inside a box where `Scene._visibility` looks, in units of its size, [36, 3]
_GRID = np.stack(
    np.meshgrid([-0.4, 0.0, 0.4], [-0.4, 0.0, 0.4], [-0.4, -0.13, 0.13, 0.4], indexing='ij'), -1
).reshape(-1, 3)


def _select(primitives: Primitives, chosen: np.ndarray) -> Primitives:
    """The primitives of which the mask [P] is true."""
    return Primitives(*(column[chosen] for column in primitives))


def _horizontal_distance(positions: np.ndarray, center: np.ndarray) -> np.ndarray:
    """[N] distance in x and y of positions [N, 3] from a center [3], m."""
    x, y = (positions - center)[:, :2].T
    return np.hypot(x, y)


def to_world(local: np.ndarray, center: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """[K, S, 3] positions in K boxes' frames to the world; center [K, 3] m, yaw [K] rad."""
    cos = np.cos(yaw)[:, None]
    sin = np.sin(yaw)[:, None]
    x, y, z = np.moveaxis(local, -1, 0)
    rotated = np.stack([cos * x - sin * y, sin * x + cos * y, z], -1)
    return rotated + center[:, None]


def count_points(
    world: np.ndarray, center: np.ndarray, size: np.ndarray, yaw: np.ndarray
) -> np.ndarray:
    """Number of points in each of K upright boxes.

    Args:
        world: [N, 3] points, m.
        center: [K, 3] m.
        size: [K, 3] length, width, height, m.
        yaw: [K] rad.
    Returns:
        [K] int64.
    """
    # sorted by x, so that each box looks at a slab of points only
    order = np.argsort(world[:, 0])
    xs = world[order, 0]
    reach = np.hypot(size[:, 0], size[:, 1]) / 2
    first = np.searchsorted(xs, center[:, 0] - reach)
    last = np.searchsorted(xs, center[:, 0] + reach)
    counts = np.zeros(len(center), np.int64)
    for k in range(len(center)):
        slab = world[order[first[k] : last[k]]]
        counts[k] = _is_inside(slab - center[k], size[k] / 2, yaw[k]).sum()
    return counts


def _is_inside(offset: np.ndarray, half: np.ndarray, yaw: float) -> np.ndarray:
    """[N] whether positions relative to a box's center [N, 3] lie in it; half-lengths [3]."""
    x, y, z = offset.T
    cos, sin = np.cos(yaw), np.sin(yaw)
    inside = np.abs(cos * x + sin * y) <= half[0]
    inside &= np.abs(cos * y - sin * x) <= half[1]
    inside &= np.abs(z) <= half[2]
    return inside
