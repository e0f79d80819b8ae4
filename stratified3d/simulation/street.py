"""A street from kerb to kerb and to the facades behind: the building block of every layout.

Across a street lie, from its axis outwards on each side: half the median, the lanes, a strip for cycles (or a hard
shoulder), the parking lane, the kerb, the pavement (furniture, walkers, people who stand), and what is built behind.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import furniture, people, vehicles
from .materials import ASPHALT, CONCRETE, FOLIAGE, MARKING, MESH, PAVING
from .paths import Path, Speed
from .primitives import Shape
from .world import World

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
    storeys: tuple[float, float] = (5.0, 20.0)  # heights of the buildings
    built: float = 0.75  # share of the frontage that is built up; fences, hedges, walls else
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
        origin, heading: a point of its axis (s = 0) and its direction, m and rad; d counts to the left.
        extent: (s_low, s_high), m.
        gaps: (s_low, s_high, side) where another road joins: side -1 right, +1 left; nothing stands there.
    """

    def __init__(self, world: World, section: Section, origin: tuple[float, float], heading: float,
                 extent: tuple[float, float], gaps: list[tuple[float, float, int]] = ()):
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

    def lane_path(self, side: int, lane: float) -> tuple[Path, int]:
        """The path of a lane (0 is next to the axis), and its direction along s; its arc length 0 is at s = 0."""
        direction = -side * self.world.drive
        d = side * (self.section.median / 2 + (lane + 0.5) * LANE)
        return Path((*self.point(0.0, d), self.heading + (0.0 if direction > 0 else np.pi))), direction

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
        edges = sorted({low, high, *(np.clip(e, low, high) for a, b, w in self.gaps if w == side for e in (a, b))})
        for begin, end in zip(edges, edges[1:]):
            if self.is_open((begin + end) / 2, side):
                continue
            pieces = max(int((end - begin) / 8.0), 1)
            length = (end - begin) / pieces
            d = side * (section.kerb + section.pavement / 2)
            self.world.paint(*self.point((begin + end) / 2, d), self.heading, end - begin, section.pavement, PAVING)
            for i in range(pieces):
                slab = furniture.make_slab(length + 0.02, section.pavement, KERB, PAVING)
                self.stand(slab, begin + (i + 0.5) * length, d, solid=False)

    def build(self, side: int) -> None:
        """Facades, fences, walls, hedges behind the pavement, trees in front of the lower ones."""
        section, rng = self.section, self.rng
        s, line = self.extent[0], section.kerb + section.pavement + section.setback
        while s < self.extent[1]:
            length = rng.uniform(9.0, 26.0)
            middle = s + length / 2
            inside = not any(s < b and s + length > a for a, b, which in self.gaps if which == side)
            if inside and rng.random() < section.built:
                height, back = rng.uniform(*section.storeys), rng.choice([0.0, 0.0, 1.5, 4.0])
                building = furniture.make_building(rng, length, 14.0, height)
                self.stand(building, middle, side * (line + back + 7.0), 0.0 if side < 0 else np.pi, solid=False)
            elif inside:
                kind = rng.choice(['fence', 'wall', 'hedge', 'open'])
                if kind == 'hedge':
                    for place in np.arange(s, s + length, 2.2):
                        self.stand(furniture.make_bush(rng), place, side * (line + 0.8))
                elif kind != 'open':
                    wall = furniture.make_wall(length, rng.uniform(1.0, 2.4), MESH if kind == 'fence' else CONCRETE)
                    self.stand(wall, middle, side * line, solid=False)
                for _ in range(rng.integers(1, 5)):
                    make = furniture.make_tree if rng.random() < 0.6 else furniture.make_bush
                    self.stand(make(rng), s + rng.uniform(0, length), side * (line + rng.uniform(2.0, 14.0)))
                if rng.random() < 0.35:
                    self.stand(furniture.make_container(rng), middle, side * (line + 6.0), rng.uniform(-0.3, 0.3))
            s += length + (0.0 if rng.random() < 0.6 else rng.uniform(1.0, 6.0))

    def furnish(self, side: int) -> None:
        """Trees, poles and clutter in the strip along the kerb, clutter along the facades."""
        section, rng = self.section, self.rng
        length = self.extent[1] - self.extent[0]
        d = section.kerb + 0.65
        for make, rate in ((furniture.make_tree, section.trees), (furniture.make_pole, 3.0),
                           (furniture.make_clutter, 0.6 * section.clutter)):
            for _ in range(rng.poisson(rate * length / 100)):
                s = rng.uniform(*self.extent)
                if not self.is_open(s, side, 2.0):
                    shape = make(rng)
                    shape.size = (0.6, 0.6, shape.size[2])  # of its trunk or foot: crowns may touch
                    self.stand(shape, s, side * d, side * np.pi / 2, lift=KERB)
        for _ in range(rng.poisson(0.4 * section.clutter * length / 100)):
            s = rng.uniform(*self.extent)
            if not self.is_open(s, side, 2.0):
                self.stand(furniture.make_clutter(rng), s, side * (section.kerb + section.pavement - 0.3), -side * np.pi / 2,
                           lift=KERB)

    def park(self, side: int) -> None:
        """Parked vehicles, motorcycles and bicycles in the parking lane."""
        section, rng = self.section, self.rng
        direction = -side * self.world.drive
        d, s = side * (section.kerb - PARKING / 2), self.extent[0] + rng.uniform(0, 5)
        while section.parking and s < self.extent[1]:
            kind = rng.random()
            if rng.random() > section.parked:
                s += rng.uniform(4.0, 12.0)
                continue
            if kind < 0.06:  # a row of motorcycles, nose to the kerb
                for _ in range(rng.integers(2, 6)):
                    if not self.is_open(s, side, 3.0):
                        self.stand(people.make_motorcycle(rng, False), s, d, side * np.pi / 2 + rng.normal(0, 0.1),
                                   state='cycle.without_rider')
                    s += rng.uniform(0.95, 1.4)
                continue
            shape = vehicles.make_truck(rng) if kind < 0.15 else vehicles.make_trailer(rng) if kind < 0.17 else \
                vehicles.make_car(rng)
            s += shape.size[0] / 2
            if not self.is_open(s, side, 3.0 + shape.size[0] / 2):
                turn = (0.0 if direction > 0 else np.pi) + rng.normal(0, 0.02)
                self.stand(shape, s, d + rng.normal(0, 0.06), turn, state='vehicle.parked')
            s += shape.size[0] / 2 + rng.uniform(0.5, 1.6)

    def _vehicle(self) -> tuple[Shape, str]:
        make = self.rng.choice(['car', 'truck', 'bus', 'motorcycle'], p=[0.76, 0.12, 0.06, 0.06])
        if make == 'motorcycle':
            return people.make_motorcycle(self.rng, True), 'cycle.with_rider'
        return getattr(vehicles, f'make_{make}')(self.rng), 'vehicle.stopped'

    def drive(self, side: int, lane: int, speed: Speed, keep_free: tuple[float, float] | None = None,
              span: tuple[float, float] | None = None, articulated: float = 0.0) -> None:
        """Let traffic flow on a lane.

        Args:
            keep_free: arc lengths at time 0 left free for the ego car, m.
            span: arc lengths at time 0 that the traffic fills; the whole lane by default.
            articulated: share of tractors that pull a trailer.
        """
        path, _ = self.lane_path(side, lane)
        travelled = float(speed.travelled(np.array(self.world.duration)))
        reach = max(abs(self.extent[0]), abs(self.extent[1]))
        low, high = span or (-reach - travelled, reach)
        forbidden = [(keep_free[0], keep_free[1] + travelled)] if keep_free else None
        mean = self.section.traffic_gap

        def gap() -> float:
            return 3.0 + self.rng.exponential(mean) if speed.before > 0.5 else self.rng.uniform(1.5, 3.5)

        def make() -> tuple[Shape, str]:
            return self._vehicle()

        before = len(self.world.actors)
        self.world.stream(path, speed, low, high, gap, make, forbidden=forbidden)
        if articulated:
            self._hitch(before, articulated)

    def _hitch(self, first: int, share: float) -> None:
        """Give trailers to trucks that have room behind them."""
        actors = self.world.actors
        column = sorted(actors[first:], key=lambda actor: actor.motion.offset)
        for follower, actor in zip([None, *column], column):
            trailer = vehicles.make_trailer(self.rng)
            back = actor.motion.offset - actor.shape.size[0] / 2 - 0.3 - trailer.size[0] / 2
            limit = follower.motion.offset + follower.shape.size[0] / 2 + 2.0 if follower else -np.inf
            if actor.shape.category == vehicles.TRUCK and self.rng.random() < share and back - trailer.size[0] / 2 > limit:
                motion = type(actor.motion)(actor.motion.path, actor.motion.speed, back, actor.motion.lift)
                actors.append(type(actor)(trailer, motion, actor.state))

    def walk(self, side: int) -> None:
        """People on the pavement: walkers on parallel tracks, groups who stand, some who sit, prams and dogs."""
        section, rng, world = self.section, self.rng, self.world
        begin, end = section.kerb + 1.5, section.kerb + section.pavement - 1.1
        tracks = np.arange(begin, max(end, begin + 0.1), 0.85)
        reach = max(abs(self.extent[0]), abs(self.extent[1]))
        for d in tracks:
            direction = rng.choice([-1, 1])
            speed = Speed(rng.uniform(0.8, 1.6))
            path = Path((*self.point(0.0, side * d), self.heading + (0.0 if direction > 0 else np.pi)))
            gaps = [(a - 1, b + 1) if direction > 0 else (-b - 1, -a + 1) for a, b, which in self.gaps if which == side]
            mean = 100.0 * len(tracks) / max(section.walkers, 1e-3)
            world.stream(path, speed, -reach, reach, lambda mean=mean: self._company(mean), self._walker, KERB, gaps)
        for _ in range(rng.poisson(section.standing * (self.extent[1] - self.extent[0]) / 100 / 2)):
            s, d = rng.uniform(*self.extent), section.kerb + rng.choice([0.6, section.pavement - 0.5])
            for _ in range(rng.integers(1, 5)):
                place = s + rng.normal(0, 0.9)
                if self.is_open(place, side, 1.0):
                    continue
                sits = rng.random() < 0.1
                shape = people.make_sitting_person(rng) if sits else people.make_pedestrian(rng)
                state = 'pedestrian.sitting_lying_down' if sits else 'pedestrian.standing'
                self.stand(shape, place, side * (d + rng.normal(0, 0.15)), rng.uniform(-np.pi, np.pi), lift=KERB, state=state)

    def _company(self, mean: float) -> float:
        """Metres to the next walker: people come in groups."""
        return self.rng.uniform(0.2, 0.9) if self.rng.random() < 0.35 else self.rng.exponential(1.5 * mean)

    def _walker(self) -> tuple[Shape, str]:
        draw = self.rng.random()
        if draw < 0.02:
            return people.make_stroller(self.rng), ''
        if draw < 0.035:
            return people.make_dog(self.rng), ''
        return people.make_pedestrian(self.rng), 'pedestrian.standing'

    def cycle(self, side: int, rate: float) -> None:
        """Cyclists in their strip, `rate` per 100 m."""
        direction = -side * self.world.drive
        d = side * (self.section.median / 2 + self.section.lanes * LANE + self.section.strip / 2)
        path = Path((*self.point(0.0, d), self.heading + (0.0 if direction > 0 else np.pi)))
        speed = Speed(self.rng.uniform(3.0, 6.0))
        reach = max(abs(self.extent[0]), abs(self.extent[1]))
        travelled = float(speed.travelled(np.array(self.world.duration)))
        self.world.stream(path, speed, -reach - travelled, reach, lambda: 2.0 + self.rng.exponential(100.0 / rate),
                          lambda: (people.make_bicycle(self.rng, True), 'cycle.with_rider'))

    def cross(self, s: float, rate: float = 6.0) -> None:
        """A zebra crossing at s whose walkers are on their way now."""
        half = self.section.kerb
        for d in np.arange(-half + 0.5, half, 1.2):
            self.world.paint(*self.point(s, d), self.heading, 3.0, 0.6, MARKING)
        for place in (s - 1.1, s - 0.3, s + 0.5, s + 1.3):
            sign = self.rng.choice([-1, 1])
            path = Path((*self.point(place, -sign * half), self.heading + sign * np.pi / 2))
            speed = Speed(self.rng.uniform(0.8, 1.5))
            self.world.stream(path, speed, -0.9 * self.world.duration, 2 * half - 1.0,
                              lambda: self.rng.uniform(0.4, 2.0) + self.rng.exponential(20.0 / rate), self._walker)

    def wait_in_row(self, side: int, s: float, count: int, make, state: str, spacing: float) -> None:
        """Things side by side along the kerb on the pavement: parked bicycles, motorcycles."""
        for i in range(count):
            place = s + i * spacing
            if not self.is_open(place, side, 1.0):
                self.stand(make(), place, side * (self.section.kerb + 0.75), side * np.pi / 2 + self.rng.normal(0, 0.12),
                           lift=KERB, state=state)

    def work_zone(self, side: int, low: float, high: float, depth: float) -> None:
        """A site of `depth` m beside the lanes: barriers, cones, machines, workers, heaps of earth."""
        section, rng = self.section, self.rng
        inner = section.median / 2 + section.lanes * LANE + 0.5
        kind = str(rng.choice(['jersey', 'plastic', 'trestle']))
        s = low
        while s < high:
            barrier = furniture.make_barrier(rng, kind)
            self.stand(barrier, s + barrier.size[1] / 2, side * inner + rng.normal(0, 0.05), np.pi / 2 + rng.normal(0, 0.03))
            s += barrier.size[1] + rng.uniform(0.05, 0.5)
        for end, sign in ((low, -1), (high, 1)):
            for i in range(5):
                self.stand(furniture.make_cone(rng), end + sign * (1.2 + 2.2 * i), side * (inner + 0.3 + 0.35 * i), state='')
        for _ in range(4):
            self.stand(furniture.make_cone(rng), rng.uniform(low, high), side * (inner + 0.9))
        d = inner + depth / 2 + 0.5
        s = low + 5.0
        while s < high - 4.0:
            draw = rng.random()
            if draw < 0.6:
                self.stand(vehicles.make_construction_vehicle(rng), s, side * d, rng.choice([0, np.pi]) + rng.normal(0, 0.1),
                           state='vehicle.parked' if rng.random() < 0.5 else 'vehicle.stopped')
            elif draw < 0.75:
                self.stand(vehicles.make_truck(rng), s, side * d, 0.0, state='vehicle.parked')
            else:
                heap = Shape(None, (3.0, 2.0, 1.2)).ellipsoid((0, 0, 0.1), (3.2, 2.2, 2.2), FOLIAGE, 0.8)
                self.stand(heap, s, side * d)
            s += rng.uniform(8.0, 12.0)
        for _ in range(rng.integers(4, 9)):
            self.stand(people.make_pedestrian(rng, people.WORKER), rng.uniform(low, high), side * (inner + rng.uniform(0.7, depth)),
                       rng.uniform(-np.pi, np.pi), state='pedestrian.standing')
