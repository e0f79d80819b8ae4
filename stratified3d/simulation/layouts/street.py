"""A street from kerb to kerb and to the facades behind: the building block of every layout.

Across a street lie, from its axis outwards on each side: half the median, the lanes, a strip for
cycles (or a hard shoulder), the parking lane, the kerb, the pavement (furniture, walkers, people
who stand), and what is built behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stratified3d.simulation.layouts.world import World
from stratified3d.simulation.objects import furniture
from stratified3d.simulation.physics.materials import ASPHALT, MARKING, PAVING
from stratified3d.simulation.physics.paths import Path
from stratified3d.simulation.physics.primitives import Shape

LANE = 3.4
PARKING = 2.4
KERB = 0.15


@dataclass(frozen=True)
class Section:
    """What a street's cross-section looks like; lengths in m, rates per 100 m and side."""

    lanes: int = 1
    median: float = 0.0
    strip: float = 1.5
    parking: bool = True
    parked: float = 0.7  # share of the parking lane in use
    pavement: float = 4.0
    setback: float = 1.0
    storeys: tuple[float, float] = (6.0, 24.0)  # heights of the buildings
    built: float = 0.65  # share of the frontage that is built up; fences, hedges, walls else
    trees: float = 5.0
    clutter: float = 5.0
    walkers: float = 4.0
    standing: float = 2.5
    traffic_gap: float = 26.0  # m between vehicles that drive, on average

    @property
    def kerb(self) -> float:
        """Distance of the kerb from the axis."""
        return self.median / 2 + self.lanes * LANE + self.strip + (PARKING if self.parking else 0.0)


class Street:
    """A straight street in a world.

    Args:
        origin, heading: a point of its axis (s = 0) and its direction, m and rad; d counts to the
        left.
        extent: (s_low, s_high), m.
        gaps: (s_low, s_high, side) where another road joins: side -1 right, +1 left; nothing stands
        there.
    """

    def __init__(
        self,
        world: World,
        section: Section,
        origin: tuple[float, float],
        heading: float,
        extent: tuple[float, float],
        gaps: list[tuple[float, float, int]] = (),
    ):
        self.world, self.section, self.rng = world, section, world.rng
        self.origin, self.heading, self.extent, self.gaps = origin, heading, extent, list(gaps)

    def point(self, s: float, d: float) -> tuple[float, float]:
        """World x, y of street coordinates."""
        c, n = np.cos(self.heading), np.sin(self.heading)
        return self.origin[0] + s * c - d * n, self.origin[1] + s * n + d * c

    def is_open(self, s: float, side: int, margin: float = 0.0) -> bool:
        """Whether s lies in a gap of this side."""
        return any(a - margin < s < b + margin for a, b, which in self.gaps if which == side)

    def stand(self, shape: Shape, s: float, d: float, yaw: float = 0.0, **options) -> bool:
        """`World.stand` in street coordinates."""
        return self.world.stand(shape, *self.point(s, d), self.heading + yaw, **options)

    def flow(self, side: int) -> float:
        """Heading of the traffic on a side, relative to the street's, rad."""
        return 0.0 if -side * self.world.drive > 0 else np.pi

    def lane_path(self, side: int, lane: int) -> Path:
        """The path of a lane (0 is next to the axis); its arc length 0 is at s = 0."""
        d = side * (self.section.median / 2 + (lane + 0.5) * LANE)
        return Path((*self.point(0.0, d), self.heading + self.flow(side)))

    def pave(self) -> None:
        """Roadway, markings, kerbs and pavements."""
        low, high = self.extent
        section, middle, length = self.section, (low + high) / 2, high - low
        self.world.paint(*self.point(middle, 0.0), self.heading, length, 2 * section.kerb, ASPHALT)
        for side in (-1, 1):
            edge = section.median / 2 + section.lanes * LANE
            self._line(side * edge, low, high, None)
            for lane in range(1, section.lanes):
                self._line(side * (section.median / 2 + lane * LANE), low, high, 9.0)
            if section.pavement > 0:
                self._pavement(side)
        if section.median:
            for s in np.arange(low, high, 8.0):
                if not (self.is_open(s + 4, 1) or self.is_open(s + 4, -1)):
                    slab = furniture.make_slab(8.05, section.median - 0.3, KERB, PAVING)
                    self.stand(slab, s + 4, 0.0, solid=False)
        else:
            self._line(0.0, low, high, 6.0)

    def _line(self, d: float, low: float, high: float, dash: float | None) -> None:
        for s in np.arange(low, high, dash or 10.0):
            length = dash / 2 if dash else 10.0
            if not (self.is_open(s + length / 2, 1) or self.is_open(s + length / 2, -1)):
                self.world.paint(*self.point(s + length / 2, d), self.heading, length, 0.3, MARKING)

    def _pavement(self, side: int) -> None:
        section, (low, high) = self.section, self.extent
        edges = sorted(
            {
                low,
                high,
                *(np.clip(e, low, high) for a, b, w in self.gaps if w == side for e in (a, b)),
            }
        )
        for begin, end in zip(edges, edges[1:]):
            if self.is_open((begin + end) / 2, side):
                continue
            pieces = max(int((end - begin) / 8.0), 1)
            length = (end - begin) / pieces
            d = side * (section.kerb + section.pavement / 2)
            self.world.paint(
                *self.point((begin + end) / 2, d),
                self.heading,
                end - begin,
                section.pavement,
                PAVING,
            )
            for i in range(pieces):
                slab = furniture.make_slab(length + 0.02, section.pavement, KERB, PAVING)
                self.stand(slab, begin + (i + 0.5) * length, d, solid=False)
