"""A straight street with its sidewalks and markings: the building block of every layout.

Across a street lie, from its axis outwards on each side: half the median, the lanes, a strip for
cycles (or a hard shoulder), the parking lane, the curb, the sidewalk (furniture, walkers, people
who stand), and what is built behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stratified3d.simulation.layouts.world import World
from stratified3d.simulation.objects import furniture
from stratified3d.simulation.physics.materials import ASPHALT, MARKING, PAVING
from stratified3d.simulation.physics.paths import Path
from stratified3d.simulation.physics.primitives import Shape

# m: width of a lane and of a parking lane, height of a curb
LANE = 3.4
PARKING = 2.4
CURB = 0.15


@dataclass(frozen=True)
class Section:
    """A street's cross-section; lengths in m, rates per 100 m and side."""

    lanes: int = 1
    median: float = 0.0
    strip: float = 1.5
    parking: bool = True
    parked: float = 0.7  # share of the parking lane in use
    sidewalk: float = 4.0
    setback: float = 1.0
    building_heights: tuple[float, float] = (6.0, 24.0)
    built: float = 0.65  # share of the frontage that is built up; fences, hedges, walls else
    trees: float = 5.0
    clutter: float = 5.0
    walkers: float = 4.0
    standing: float = 2.5
    traffic_gap: float = 26.0  # m between vehicles that drive, on average

    @property
    def curb(self) -> float:
        """Distance of the curb from the axis."""
        parking = PARKING if self.parking else 0.0
        return self.median / 2 + self.lanes * LANE + self.strip + parking

    @property
    def building_line(self) -> float:
        """Distance of the foremost facades from the axis."""
        return self.curb + self.sidewalk + self.setback


class Street:
    """A straight street in a world.

    Args:
        origin, heading: a point of its axis (s = 0) and its direction, m and rad; d counts to the
            left.
        extent: (s_low, s_high), m.
        gaps: (s_low, s_high, side) where another road joins and nothing stands: side -1 right,
            +1 left.
    """

    def __init__(
        self,
        world: World,
        section: Section,
        origin: tuple[float, float],
        heading: float,
        extent: tuple[float, float],
        gaps: Sequence[tuple[float, float, int]] = (),
    ):
        self.world = world
        self.section = section
        self.rng = world.rng
        self.origin = origin
        self.heading = heading
        self.extent = extent
        self.gaps = list(gaps)

    def point(self, s: float, d: float) -> tuple[float, float]:
        """World x, y of street coordinates."""
        x, y = self.origin
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        return x + s * cos - d * sin, y + s * sin + d * cos

    def is_open(self, s: float, side: int, margin: float = 0.0) -> bool:
        """Whether s lies in a gap of this side."""
        return any(a - margin < s < b + margin for a, b, which in self.gaps if which == side)

    def stand(self, shape: Shape, s: float, d: float, yaw: float = 0.0, **options) -> bool:
        """`World.stand` in street coordinates."""
        return self.world.stand(shape, *self.point(s, d), self.heading + yaw, **options)

    def flow(self, side: int) -> float:
        """Heading of the traffic on a side, relative to the street's, rad."""
        return 0.0 if -side * self.world.traffic_side > 0 else np.pi

    def lane_path(self, side: int, lane: int) -> Path:
        """The path of a lane (0 is next to the axis); its arc length 0 is at s = 0."""
        d = side * (self.section.median / 2 + (lane + 0.5) * LANE)
        return Path((*self.point(0.0, d), self.heading + self.flow(side)))

    def pave(self) -> None:
        """Lay the roadway, markings, curbs and sidewalks."""
        low, high = self.extent
        section = self.section
        center = self.point((low + high) / 2, 0.0)
        self.world.paint(*center, self.heading, high - low, 2 * section.curb, ASPHALT)
        for side in (-1, 1):
            edge = section.median / 2 + section.lanes * LANE
            self._paint_line(side * edge, None)
            for lane in range(1, section.lanes):
                self._paint_line(side * (section.median / 2 + lane * LANE), 9.0)
            if section.sidewalk > 0:
                self._lay_sidewalk(side)
        if section.median:
            self._lay_median()
        else:
            self._paint_line(0.0, 6.0)

    def _crosses_gap(self, s: float) -> bool:
        """Whether another road joins at s, on either side."""
        return self.is_open(s, 1) or self.is_open(s, -1)

    def _lay_median(self) -> None:
        low, high = self.extent
        for s in np.arange(low, high, 8.0):
            if not self._crosses_gap(s + 4):
                slab = furniture.make_slab(8.05, self.section.median - 0.3, CURB, PAVING)
                self.stand(slab, s + 4, 0.0, solid=False)

    def _paint_line(self, d: float, dash: float | None) -> None:
        """Paint a line along the street; `dash` m from one dash to the next, None: solid."""
        low, high = self.extent
        length = dash / 2 if dash else 10.0
        for s in np.arange(low, high, dash or 10.0):
            middle = s + length / 2
            if not self._crosses_gap(middle):
                self.world.paint(*self.point(middle, d), self.heading, length, 0.3, MARKING)

    def _lay_sidewalk(self, side: int) -> None:
        """Lay slabs along a side, but for its gaps."""
        edges = set(self.extent)
        for begin, end, which in self.gaps:
            if which == side:
                edges.update(np.clip([begin, end], *self.extent))
        ordered = sorted(edges)
        for begin, end in zip(ordered, ordered[1:]):
            if not self.is_open((begin + end) / 2, side):
                self._lay_slabs(side, begin, end)

    def _lay_slabs(self, side: int, begin: float, end: float) -> None:
        width = self.section.sidewalk
        pieces = max(int((end - begin) / 8.0), 1)
        length = (end - begin) / pieces
        d = side * (self.section.curb + width / 2)
        center = self.point((begin + end) / 2, d)
        self.world.paint(*center, self.heading, end - begin, width, PAVING)
        for i in range(pieces):
            slab = furniture.make_slab(length + 0.02, width, CURB, PAVING)
            self.stand(slab, begin + (i + 0.5) * length, d, solid=False)
