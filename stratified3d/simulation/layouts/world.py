"""A world under construction: terrain, painted ground, and actors that do not overlap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stratified3d.simulation.physics.lidar import Surface
from stratified3d.simulation.physics.materials import GRASS
from stratified3d.simulation.physics.paths import Ground, Motion, Path, Speed
from stratified3d.simulation.physics.primitives import Shape
from stratified3d.simulation.physics.scanners import Mounting
from stratified3d.simulation.scene import Actor, Scene

CELL = 0.3  # m of the painted ground


class World:
    """Terrain and actors that a layout places, until `finish` makes a scene of them.

    Args:
        rng: the layout's own generator.
        reach: m from the origin that the painted ground covers.
        duration: s that the scene lasts; traffic is spread so that the world stays populated.
        bend: m of height that the ground gains or loses per 100 m by slope and by curvature.
        traffic_side: +1 for traffic on the right, -1 on the left.
        lookalikes: unlabeled things that resemble objects of interest, per 100 m and side of a
            street; where there are any, walls and banks run along it, too.
        largest_group: people who stand together at most.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        reach: float,
        duration: float,
        bend: float = 1.5,
        traffic_side: int = 1,
        lookalikes: float = 0.0,
        largest_group: int = 4,
    ):
        self.rng = rng
        self.reach = reach
        self.duration = duration
        self.traffic_side = traffic_side
        self.lookalikes = lookalikes
        self.largest_group = largest_group
        slope = rng.uniform(-bend, bend, 2) / 100
        curve = rng.uniform(-bend, bend, 3) / 100**2
        relax = min(1.0, 150.0 / reach)  # a long world bends less, or its ends would be cliffs
        self.ground = Ground(np.array([0.0, *slope, *(curve * relax)]))
        cells = int(2 * reach / CELL)
        self.grid = np.full((cells, cells), GRASS, np.uint8)
        self.actors: list[Actor] = []
        self._taken = np.zeros((0, 3))  # x, y, radius

    def paint(
        self, x: float, y: float, yaw: float, length: float, width: float, material: int
    ) -> None:
        """Cover a rectangle of the ground, `length` along `yaw`, centered on x, y."""
        radius = np.hypot(length, width) / 2
        low = self._cell(np.array([x, y]) - radius)
        high = self._cell(np.array([x, y]) + radius, 1)
        window = self.grid[low[0] : high[0], low[1] : high[1]]

        # distances of the cells' centers from the rectangle's, along the axes of the grid
        dx = (np.arange(low[0], high[0]) + 0.5)[:, None] * CELL - self.reach - x
        dy = (np.arange(low[1], high[1]) + 0.5)[None] * CELL - self.reach - y
        cos, sin = np.cos(yaw), np.sin(yaw)
        along = np.abs(cos * dx + sin * dy)
        across = np.abs(cos * dy - sin * dx)
        window[(along <= length / 2) & (across <= width / 2)] = material

    def _cell(self, position: np.ndarray, offset: int = 0) -> np.ndarray:
        """[2] grid cell of a position x, y plus `offset` cells, within the grid."""
        cell = ((position + self.reach) / CELL).astype(int) + offset
        return np.clip(cell, 0, len(self.grid))

    def _circles(self, shape: Shape, x: float, y: float, yaw: float) -> np.ndarray:
        """[K, 3] x, y, radius of circles that cover an object's footprint."""
        length, width, _ = shape.size
        radius = min(length, width) / 2
        reach = max(length, width) / 2 - radius
        steps = np.zeros(1)
        if reach > 0:
            count = int(np.ceil(reach / max(radius, 0.2))) + 1
            steps = np.linspace(-reach, reach, count)

        heading = yaw if length >= width else yaw + np.pi / 2
        xs = x + steps * np.cos(heading)
        ys = y + steps * np.sin(heading)
        return np.stack([xs, ys, np.full(len(steps), radius * 1.1)], 1)

    def stand(
        self,
        shape: Shape,
        x: float,
        y: float,
        yaw: float,
        lift: float = 0.0,
        state: str = '',
        solid: bool = True,
    ) -> bool:
        """Place an object that never moves.

        Args:
            lift: m above the ground.
            state: see `Actor`.
            solid: whether it needs free ground and occupies it; False for slabs, crowns, facades.
        Returns:
            Whether there was room.
        """
        if solid:
            circles = self._circles(shape, x, y, yaw)
            taken = self._taken[:, None]
            gap = np.hypot(taken[..., 0] - circles[:, 0], taken[..., 1] - circles[:, 1])
            if (gap < taken[..., 2] + circles[:, 2]).any():
                return False
            self._taken = np.concatenate([self._taken, circles])
        motion = Motion(Path((x, y, yaw)), Speed(0.0), 0.0, lift)
        self.actors.append(Actor(shape, motion, state))
        return True

    def stream(
        self,
        path: Path,
        speed: Speed,
        low: float,
        high: float,
        gap: Callable[[], float],
        make: Callable[[], tuple[Shape, str]],
        lift: float = 0.0,
        forbidden: list[tuple[float, float]] | None = None,
    ) -> None:
        """Fill a path with road users who share one speed profile, so that none meets another.

        Args:
            low, high: arc lengths at time 0 between which they are spread, m.
            gap: draws the free meters between one and the next.
            make: draws one of them and its state at rest.
            forbidden: intervals of arc length that nobody may touch during the scene.
        """
        traveled = float(speed.traveled(np.array(self.duration)))
        place = low + gap() * self.rng.random()
        while place < high:
            shape, state = make()
            half = shape.size[0] / 2
            place += half
            front = place + traveled + half
            rear = place - half
            if all(front < begin or rear > end for begin, end in forbidden or ()):
                motion = Motion(path, speed, place, lift)
                self.actors.append(Actor(shape, motion, state))
            place += half + gap()

    def finish(self, ego: Motion, tilt: tuple[float, float], mounting: Mounting) -> Scene:
        """The scene, ready to be scanned."""
        surface = Surface(self.grid, CELL, (-self.reach, -self.reach))
        return Scene(
            self.ground, surface, self.actors, ego, tilt, self.traffic_side, mounting=mounting
        )
