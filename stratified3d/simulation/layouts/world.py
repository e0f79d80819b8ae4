"""A world under construction: terrain, painted ground, and actors that do not stand in each
other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stratified3d.simulation.physics.lidar import Surface
from stratified3d.simulation.physics.materials import GRASS
from stratified3d.simulation.physics.paths import Ground, Motion, Path, Speed
from stratified3d.simulation.physics.primitives import Shape
from stratified3d.simulation.scene import Actor, Scene

CELL = 0.3  # m of the painted ground


class World:
    """Collects what a layout places.

    Args:
        rng: the layout's own generator.
        reach: m from the origin that the painted ground covers.
        duration: s that the scene lasts; traffic is spread so that the world stays populated.
        bend: m of height that the ground gains or loses per 100 m by slope and by curvature.
        drive: +1 for traffic on the right, -1 on the left.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        reach: float,
        duration: float,
        bend: float = 1.5,
        drive: int = 1,
    ):
        self.rng, self.reach, self.duration, self.drive = rng, reach, duration, drive
        slope, curve = rng.uniform(-bend, bend, 2) / 100, rng.uniform(-bend, bend, 3) / 100**2
        relax = min(1.0, 150.0 / reach)  # a long world bends less, or its ends would be cliffs
        self.ground = Ground(np.array([0.0, *slope, *(curve * relax)]))
        cells = int(2 * reach / CELL)
        self.grid = np.full((cells, cells), GRASS, np.uint8)
        self.actors: list[Actor] = []
        self._taken = np.zeros((0, 3))  # x, y, radius

    def paint(
        self, x: float, y: float, yaw: float, length: float, width: float, material: int
    ) -> None:
        """Cover a rectangle of the ground, `length` along `yaw`, centerd on x, y."""
        radius = np.hypot(length, width) / 2
        low = np.clip(
            ((np.array([x, y]) - radius + self.reach) / CELL).astype(int), 0, len(self.grid)
        )
        high = np.clip(
            ((np.array([x, y]) + radius + self.reach) / CELL).astype(int) + 1, 0, len(self.grid)
        )
        dx = (np.arange(low[0], high[0]) + 0.5)[:, None] * CELL - self.reach - x
        dy = (np.arange(low[1], high[1]) + 0.5)[None] * CELL - self.reach - y
        cos, sin = np.cos(yaw), np.sin(yaw)
        inside = (np.abs(cos * dx + sin * dy) <= length / 2) & (
            np.abs(cos * dy - sin * dx) <= width / 2
        )
        self.grid[low[0] : high[0], low[1] : high[1]][inside] = material

    def _circles(self, shape: Shape, x: float, y: float, yaw: float) -> np.ndarray:
        length, width, _ = shape.size
        radius = min(length, width) / 2
        along, across = (length, 0.0) if length >= width else (0.0, width)
        reach = max(along, across) / 2 - radius
        steps = (
            np.linspace(-reach, reach, max(int(np.ceil(reach / max(radius, 0.2))) + 1, 1))
            if reach > 0
            else np.zeros(1)
        )
        heading = yaw if along else yaw + np.pi / 2
        return np.stack(
            [
                x + steps * np.cos(heading),
                y + steps * np.sin(heading),
                np.full(len(steps), radius * 1.1),
            ],
            1,
        )

    def reserve(self, x: float, y: float, radius: float) -> None:
        """Keep a disc free of things that stand."""
        self._taken = np.concatenate([self._taken, [[x, y, radius]]])

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
        """Put something down for good.

        Args:
            solid: whether it needs free ground (and takes it); False for slabs, crowns, facades.
        Returns:
            Whether there was room.
        """
        if solid:
            circles = self._circles(shape, x, y, yaw)
            gap = np.hypot(
                self._taken[:, None, 0] - circles[:, 0], self._taken[:, None, 1] - circles[:, 1]
            )
            if (gap < self._taken[:, None, 2] + circles[:, 2]).any():
                return False
            self._taken = np.concatenate([self._taken, circles])
        self.actors.append(Actor(shape, Motion(Path((x, y, yaw)), Speed(0.0), 0.0, lift), state))
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
        """Fill a path with a column of road users who all move with the same speed profile, so none
        meets another.

        Args:
            low, high: arc lengths at time 0 between which they are spread, m.
            gap: draws the free meters between one and the next.
            make: draws one of them and its state at rest.
            forbidden: intervals of arc length that nobody may touch during the scene.
        """
        travelled = float(speed.travelled(np.array(self.duration)))
        place = low + gap() * self.rng.random()
        while place < high:
            shape, state = make()
            half = shape.size[0] / 2
            place += half
            if all(place + travelled + half < a or place - half > b for a, b in forbidden or ()):
                self.actors.append(Actor(shape, Motion(path, speed, place, lift), state))
            place += half + gap()

    def finish(self, ego: Motion, tilt: tuple[float, float]) -> Scene:
        """The scene, ready to be scanned."""
        surface = Surface(self.grid, CELL, (-self.reach, -self.reach))
        return Scene(self.ground, surface, self.actors, ego, tilt, self.drive)
