"""A scene: what stands, what moves, and what the sensor and an annotator see of it at one time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stratified3d.simulation.physics.lidar import (
    SILENT,
    SWEEP_SECONDS,
    Noise,
    Pose,
    Sensor,
    Surface,
    fire,
    measure,
)
from stratified3d.simulation.physics.paths import Fleet, Ground, Motion
from stratified3d.simulation.physics.primitives import Primitives, Shape, join, move
from stratified3d.simulation.physics.raycast import cast_rays

STRIDE = 1.4  # m per full swing of a walker's legs
SIGHT = 118.0  # m; what is farther from the car never enters a sweep
ANNOTATED_RANGE = 100.0


@dataclass(frozen=True)
class Actor:
    """One thing with a pose: a road user, a cone, a piece of clutter.

    Args:
        shape: what it looks like; `shape.category` None keeps it out of the annotations.
        motion: where it is at any time.
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
        actor: [K] index into `Scene.actors`. center: [K, 3] m. size: [K, 3] length, width, height,
        m. yaw: [K] rad.
        velocity: [K, 2] m/s. num_points: [K] points of the sweep inside. visibility: [K] unoccluded
            share, 0 to 1.
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
        tilt: see `lidar.Sensor`.
        drive: +1 where traffic keeps right, -1 left.
    """

    def __init__(
        self,
        ground: Ground,
        surface: Surface,
        actors: list[Actor],
        ego: Motion,
        tilt: tuple[float, float] = (0.0, 0.0),
        drive: int = 1,
    ):
        self.ground, self.surface, self.actors, self.ego, self.drive = (
            ground,
            surface,
            actors,
            ego,
            drive,
        )
        self.sensor = Sensor(tilt)
        position, rotation, _ = Fleet([actor.motion for actor in actors]).pose(0.0, ground)
        parts = [actor.shape.primitives() for actor in actors]
        owner = [index if actor.shape.category else -1 for index, actor in enumerate(actors)]
        self._fixed = join(
            [
                move(parts[i], rotation[i], position[i], owner[i])
                for i, actor in enumerate(actors)
                if actor.is_static
            ]
        )
        self._movers = np.array(
            [i for i, actor in enumerate(actors) if not actor.is_static], np.int64
        )
        self._moving_fleet = Fleet([actors[i].motion for i in self._movers])
        counts = [len(parts[i].kind) for i in self._movers]
        self._mover_of = np.repeat(
            np.arange(len(counts)), counts
        )  # row in _movers of each moving primitive
        self._moving = join(
            [parts[i]._replace(owner=np.full(len(parts[i].kind), owner[i])) for i in self._movers]
        )
        self._sway = np.concatenate([np.zeros(0), *(actors[i].shape.sway() for i in self._movers)])
        self._annotated = np.array(
            [i for i, actor in enumerate(actors) if actor.shape.category], np.int64
        )
        self._annotated_fleet = Fleet([actors[i].motion for i in self._annotated])

    def ego_pose(self, time: np.ndarray) -> Pose:
        """Ego to world at times [T] s."""
        position, rotation, _ = self.ego.pose(time, self.ground)
        return Pose(rotation, position)

    def lidar_pose(self, time: np.ndarray) -> Pose:
        """LIDAR_TOP to world at times [T] s."""
        return self.ego_pose(time) @ self.sensor.mount

    def primitives_at(self, time: float) -> Primitives:
        """Everything near the car at `time`, in the world; movers carry their velocity over the
        last sweep."""
        center = self.ego_pose(np.array([time])).translation[0]
        near = (
            np.hypot(*(self._fixed.center - center)[:, :2].T) - self._fixed.half.max(1, initial=0.0)
            < SIGHT
        )
        position, rotation, _ = self._moving_fleet.pose(time, self.ground)
        velocity = (
            position - self._moving_fleet.pose(time - SWEEP_SECONDS, self.ground)[0]
        ) / SWEEP_SECONDS
        swing = np.sin(self._moving_fleet.travelled(time) * (2 * np.pi / STRIDE))
        keep = (np.hypot(*(position - center)[:, :2].T) < SIGHT)[self._mover_of]
        of, moving = self._mover_of[keep], Primitives(*(column[keep] for column in self._moving))
        local = moving.center.copy()
        local[:, 0] += self._sway[keep] * swing[of]
        turn = rotation[of]
        moving = moving._replace(
            center=(turn @ local[..., None])[..., 0] + position[of],
            rotation=turn @ moving.rotation,
            velocity=velocity[of],
        )
        return join([Primitives(*(column[near] for column in self._fixed)), moving])

    def sweep(self, time: float, rng: np.random.Generator | None, noise: Noise = SILENT):
        """One turn of the sensor that ends at `time`.

        Args:
            rng: this sweep's own generator; None for a sweep without noise.
        Returns:
            points [34688, 5] float32 as in a nuScenes file (see `lidar.measure`), the sweep's
            Primitives.
        """
        poses = self.lidar_pose(time + self.sensor.delays)
        primitives = self.primitives_at(time)
        cast = fire(self.sensor, poses, primitives, self.ground.coefficients)
        rng = rng or np.random.Generator(np.random.Philox(0))
        points, _ = measure(self.sensor, poses, primitives, self.surface, cast, noise, rng)
        return points, primitives

    def annotate(self, time: float, points: np.ndarray, primitives: Primitives) -> Boxes:
        """Boxes of all categorised actors within ANNOTATED_RANGE at `time`.

        Args:
            points: [N, 5] the keyframe, LIDAR_TOP frame. primitives: the world at `time`, as
            `sweep` returned it.
        """
        lidar = self.lidar_pose(np.array([time]))
        world = points[:, :3] @ lidar.rotation[0].T + lidar.translation[0]
        seen = world[np.linalg.norm(points[:, :3], axis=1) > 1.0]
        return self.annotate_world(time, lidar.translation[0], seen, primitives)

    def annotate_world(
        self, time: float, sensor: np.ndarray, world: np.ndarray, primitives: Primitives
    ) -> Boxes:
        """Boxes of all categorised actors within ANNOTATED_RANGE of a sensor [3] at `time`.

        Args:
            world: [N, 3] points in the world. primitives: the world at `time`, see `primitives_at`.
        """
        position, rotation, yaw = self._annotated_fleet.pose(time, self.ground)
        velocity = (position - self._annotated_fleet.pose(time - SWEEP_SECONDS, self.ground)[0])[
            :, :2
        ] / SWEEP_SECONDS
        near = np.hypot(*(position - sensor)[:, :2].T) < ANNOTATED_RANGE
        actor, yaw, velocity = self._annotated[near], yaw[near], velocity[near]
        size = np.array([self.actors[i].shape.size for i in actor]).reshape(-1, 3)
        center = position[near] + rotation[near, :, 2] * size[:, 2:] / 2
        num_points = count_points(world, center, size, yaw)
        visibility = self._visibility(sensor, actor, center, size, yaw, primitives)
        return Boxes(actor, center, size, yaw, velocity, num_points, visibility)

    def _visibility(self, sensor, actor, center, size, yaw, primitives) -> np.ndarray:
        """Share of a grid of points inside each box that nothing else hides from the sensor."""
        steps = np.stack(
            np.meshgrid(
                [-0.4, 0.0, 0.4], [-0.4, 0.0, 0.4], [-0.4, -0.13, 0.13, 0.4], indexing='ij'
            ),
            -1,
        )
        spots = to_world(steps.reshape(1, -1, 3) * size[:, None], center, yaw)  # [K, 36, 3]
        ray = spots - sensor
        length = np.linalg.norm(ray, axis=-1)
        count = len(center) * ray.shape[1]
        if not count:
            return np.zeros(0)
        distance, hit, _ = cast_rays(
            np.broadcast_to(sensor, (count, 3)),
            np.broadcast_to(np.eye(3), (count, 3, 3)),
            np.zeros(count),
            (ray / length[..., None]).reshape(count, 1, 3),
            primitives,
            self.ground.coefficients,
            max_range=1.2 * SIGHT,
        )
        owner = np.where(hit >= 0, primitives.owner[np.maximum(hit, 0)], -1).reshape(length.shape)
        hidden = (distance.reshape(length.shape) < length - 0.3) & (owner != actor[:, None])
        return 1.0 - hidden.mean(1)


def to_world(local: np.ndarray, center: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """[K, S, 3] positions in K boxes' frames to the world; center [K, 3] m, yaw [K] rad."""
    cos, sin = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    x, y, z = np.moveaxis(local, -1, 0)
    return np.stack([cos * x - sin * y, sin * x + cos * y, z], -1) + center[:, None]


def count_points(
    world: np.ndarray, center: np.ndarray, size: np.ndarray, yaw: np.ndarray
) -> np.ndarray:
    """Points [N, 3] inside each of K upright boxes (center [K, 3], size [K, 3] length, width,
    height, yaw [K])."""
    order = np.argsort(world[:, 0])
    xs = world[order, 0]
    reach = np.hypot(size[:, 0], size[:, 1]) / 2
    counts = np.zeros(len(center), np.int64)
    for k in range(len(center)):
        low, high = np.searchsorted(xs, [center[k, 0] - reach[k], center[k, 0] + reach[k]])
        offset = world[order[low:high]] - center[k]
        cos, sin = np.cos(yaw[k]), np.sin(yaw[k])
        inside = np.abs(cos * offset[:, 0] + sin * offset[:, 1]) <= size[k, 0] / 2
        inside &= np.abs(cos * offset[:, 1] - sin * offset[:, 0]) <= size[k, 1] / 2
        inside &= np.abs(offset[:, 2]) <= size[k, 2] / 2
        counts[k] = inside.sum()
    return counts
