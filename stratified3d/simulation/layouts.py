"""The layouts: which streets meet, what is built along them, who is under way, and what the ego car does."""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import furniture, people, vehicles
from .materials import ASPHALT, CONCRETE, MARKING
from .paths import Motion, Path, Speed
from .scene import Scene
from .street import LANE, Section, Street
from .world import World


def _ego(path: Path, speed: Speed, duration: float, at: float) -> Motion:
    """The ego car on a path, so that it passes arc length `at` half-way through the scene."""
    return Motion(path, speed, at - float(speed.travelled(np.array(duration / 2))))


def _reach(duration: float, pace: float) -> float:
    return 130.0 + 0.5 * duration * pace


def _edge_street(world: World, street: Street, ego_side: int, pace: float, articulated: float = 0.1,
                 ego: Motion | None = None) -> None:
    """Both sides of a street, complete; the ego car drives on lane 0 of `ego_side`."""
    rng, section = world.rng, street.section
    street.pave()
    for side in (-1, 1):
        for lane in range(section.lanes):
            own = ego is not None and side == ego_side and lane == 0
            speed = ego.speed if own else Speed(pace * rng.uniform(0.75, 1.15))
            free = (ego.offset - 9.0, ego.offset + 16.0) if own else None
            street.drive(side, lane, speed, free, articulated=articulated)
        street.build(side)
        street.park(side)
        street.furnish(side)
        street.walk(side)


def _rare(street: Street, side: int, s: float) -> None:
    """What every town street has somewhere: a delivery trailer, motorcycles, bicycles, a rack, things that lie about."""
    rng, section = street.rng, street.section
    lane = section.kerb - 1.3
    street.stand(vehicles.make_trailer(rng), s + rng.uniform(-6, 6), side * lane, 0.0, state='vehicle.parked')
    street.wait_in_row(side, s + 18.0, int(rng.integers(3, 7)), lambda: people.make_bicycle(rng, False),
                       'cycle.without_rider', 0.9)
    street.wait_in_row(-side, s - 12.0, int(rng.integers(3, 6)), lambda: people.make_motorcycle(rng, False),
                       'cycle.without_rider', 1.15)
    street.stand(furniture.make_bicycle_rack(rng), s - 25.0, side * (section.kerb + 1.2), np.pi / 2, lift=0.15)
    for make in (furniture.make_cart, furniture.make_debris, furniture.make_cart):
        street.stand(make(rng), s + rng.uniform(-40, 40), rng.choice([-1, 1]) * (section.kerb + 0.6), rng.uniform(0, 3), lift=0.15)
    street.stand(furniture.make_bus_shelter(rng), s + 36.0, -side * (section.kerb + 1.4), 0.0 if side < 0 else np.pi, lift=0.15)


def _queue(street: Street, side: int, s: float, count: float, wait: Speed) -> None:
    """Vehicles that wait at a stop line at s (as seen along their direction)."""
    for lane in range(street.section.lanes):
        street.drive(side, lane, wait, span=(-s - count * 7.0, -s - 0.5), articulated=0.3)


def straight(world: World) -> Motion:
    """A town street with parked cars on both sides and a work zone."""
    rng = world.rng
    pace = rng.uniform(6.0, 10.0)
    reach = _reach(world.duration, pace)
    street = Street(world, Section(lanes=int(rng.integers(1, 3))), (0.0, 0.0), rng.uniform(-0.1, 0.1), (-reach, reach))
    side = -world.drive
    path, _ = street.lane_path(side, 0)
    ego = _ego(path, Speed(pace), world.duration, 0.0)
    zone = rng.uniform(-10.0, 25.0)
    street.work_zone(side, zone, zone + rng.uniform(25.0, 45.0), 3.2)
    _rare(street, -side, rng.uniform(-20.0, 20.0))
    _edge_street(world, street, side, pace, ego=ego)
    street.cycle(-side, 3.0)
    return ego


def junction(world: World, *, arms: int = 4) -> Motion:
    """Two streets that cross (or meet, with three arms): one flows, the other waits and is crossed on foot."""
    rng = world.rng
    pace = rng.uniform(5.0, 8.0)
    reach = _reach(world.duration, pace)
    main, cross = Section(lanes=2, parked=0.5, walkers=6.0), Section(lanes=1, walkers=7.0, standing=4.0)
    width, depth = main.kerb, cross.kerb
    where = [(-depth - 3.0, depth + 3.0, side) for side in ((-1, 1) if arms == 4 else (-1,))]
    street = Street(world, main, (0.0, 0.0), 0.0, (-reach, reach), where)
    extent = (-reach, reach) if arms == 4 else (-reach, 0.0)
    hole = [(-width - 3.0, width + 3.0 if arms == 4 else 400.0, side) for side in (-1, 1)]
    lane_of_two = Street(world, cross, (0.0, 0.0), np.pi / 2, extent, hole)
    side = -world.drive
    path, _ = street.lane_path(side, 0)
    ego = _ego(path, Speed(pace, pace * 0.55, 0.3 * world.duration, 0.6 * world.duration), world.duration, -8.0)
    zone = width + rng.uniform(9.0, 15.0)
    lane_of_two.work_zone(1, -zone - 32.0, -zone, 3.2)
    street.work_zone(-side, depth + 14.0, depth + 38.0, 3.0)
    _rare(street, side, rng.uniform(20.0, 34.0))
    _edge_street(world, street, side, pace, ego=ego)
    for s in (-depth - 1.5, depth + 1.5):
        world.paint(s, 0.0, 0.0, 0.5, 2 * width - 2.0, MARKING)
    lane_of_two.pave()
    world.paint(0.0, 0.0, 0.0, 2 * depth + 4.0, 2 * width, ASPHALT)
    wait = Speed(0.0)
    for which in (-1, 1):
        lane_of_two.build(which)
        lane_of_two.park(which)
        lane_of_two.furnish(which)
        lane_of_two.walk(which)
        direction = -which * world.drive
        if arms == 4 or direction > 0:
            _queue(lane_of_two, which, width + 7.0, float(rng.integers(3, 8)), wait)
    lane_of_two.cross(-width - 3.5)
    if arms == 4:
        lane_of_two.cross(width + 3.5)
    return ego


def t_junction(world: World) -> Motion:
    """A side street that ends at a through street."""
    return junction(world, arms=3)


def turning(world: World) -> Motion:
    """A crossing at which the ego car turns into the side street."""
    rng = world.rng
    pace = rng.uniform(4.0, 6.0)
    ego = junction(world)
    drive = world.drive
    # from the outer lane of the main street round the near corner into the cross street's lane that leads away
    main_d, cross_d = -drive * 0.5 * LANE, -drive * 0.5 * LANE
    radius = 9.0
    pieces = [(60.0, 0.0), (radius * np.pi / 2, -drive * np.pi / 2)]
    start = (cross_d - radius - 60.0, main_d, 0.0)
    path = Path(start, pieces)
    del ego
    return _ego(path, Speed(pace), world.duration, 62.0)


def car_park(world: World) -> Motion:
    """Aisles of parked vehicles behind a street; people with trolleys, kerbs, hedges, a market hall."""
    rng = world.rng
    pace = rng.uniform(2.5, 4.0)
    pitch, half = 17.0, 75.0
    world.paint(0.0, 0.0, 0.0, 2 * half + 20.0, 5 * pitch + 12.0, ASPHALT)
    for aisle in range(-2, 3):
        for side in (-1, 1):
            y = aisle * pitch + side * 5.9
            for x in np.arange(-half, half, 2.75):
                world.paint(x - 1.37, y, np.pi / 2, 5.0, 0.3, MARKING)
                draw, yaw = rng.random(), side * np.pi / 2 * rng.choice([-1, 1]) + rng.normal(0, 0.03)
                if draw < 0.62:
                    shape = vehicles.make_car(rng) if draw < 0.57 else vehicles.make_truck(rng)
                    if shape.size[0] < 6.5:
                        world.stand(shape, x, y + rng.normal(0, 0.15), yaw, state='vehicle.parked')
                elif draw < 0.66:
                    world.stand(people.make_motorcycle(rng, False), x, y, yaw, state='cycle.without_rider')
                elif draw < 0.69:
                    world.stand(furniture.make_cart(rng), x, y, yaw)
                elif draw < 0.71:
                    world.stand(furniture.make_clutter(rng), x, y, yaw)
        for x in np.arange(-half - 6.0, half + 7.0, 2 * half + 12.0):
            for dx in (-0.9, 0.9):
                world.stand(furniture.make_tree(rng), x + dx, aisle * pitch + 8.5, 0.0, solid=False)
    path = Path((-200.0, -1.0 * world.drive * 1.6, 0.0))
    ego = _ego(path, Speed(pace, pace * 0.6, 0.4 * world.duration, 0.7 * world.duration), world.duration, 200.0)
    # beside the aisles lies a street with everything that a street has
    section = Section(lanes=1, pavement=3.5, built=0.85, traffic_gap=18.0)
    street = Street(world, section, (0.0, -2.5 * pitch - 14.0), 0.0, (-170.0, 170.0))
    street.work_zone(1, -10.0, 22.0, 3.0)
    _rare(street, -1, 15.0)
    _edge_street(world, street, -1, 8.0)
    for x in np.arange(-80.0, 80.0, 24.0):
        hall = furniture.make_building(rng, 24.0, 20.0, rng.uniform(7.0, 12.0))
        world.stand(hall, x + 12.0, 2.5 * pitch + 22.0, np.pi, solid=False)
        for end in (-1, 1):
            tower = furniture.make_building(rng, 30.0, 16.0, rng.uniform(6.0, 16.0))
            if abs(x) < 30.0:
                world.stand(tower, end * (half + 30.0), x, end * np.pi / 2, solid=False)
    # people between the cars, along the aisles
    for aisle in range(-2, 3):
        for offset in (-2.9, 2.9):
            speed = Speed(rng.uniform(0.9, 1.5))
            walk = Path((0.0, aisle * pitch + offset, rng.choice([0.0, np.pi])))
            if abs(offset) > 2.0:
                world.stream(walk, speed, -half, half, lambda: rng.exponential(28.0) + 0.5,
                             lambda: (people.make_pedestrian(rng), 'pedestrian.standing'))
    for _ in range(10):
        spot = rng.uniform(-60, 60), rng.integers(-2, 3) * pitch + rng.choice([-1, 1]) * 3.4
        world.stand(people.make_pedestrian(rng), *spot, rng.uniform(-3, 3), state='pedestrian.standing')
    for i in range(12):
        world.stand(furniture.make_cone(rng), 14.0 + 3.0 * i, -0.35 * pitch, 0.0)
    for i in range(8):
        world.stand(furniture.make_barrier(rng, 'plastic'), 12.0 + 2.4 * i, 2.5 * pitch - 2.0, np.pi / 2)
    return ego


def promenade(world: World) -> Motion:
    """A narrow street between crowded pavements: cyclists, rows of two-wheelers, stalls."""
    rng = world.rng
    pace = rng.uniform(3.5, 6.0)
    reach = _reach(world.duration, pace)
    section = Section(lanes=1, parking=bool(rng.random() < 0.5), pavement=7.0, setback=0.3, walkers=26.0, standing=16.0,
                      clutter=9.0, trees=7.0, storeys=(7.0, 18.0), built=0.9, traffic_gap=20.0)
    street = Street(world, section, (0.0, 0.0), rng.uniform(-0.1, 0.1), (-reach, reach))
    side = -world.drive
    path, _ = street.lane_path(side, 0)
    ego = _ego(path, Speed(pace), world.duration, 0.0)
    for s in np.arange(-60.0, 61.0, 30.0):
        which = int(rng.choice([-1, 1]))
        street.wait_in_row(which, s, int(rng.integers(3, 8)), lambda: people.make_bicycle(rng, False), 'cycle.without_rider', 0.8)
        street.wait_in_row(-which, s + 9.0, int(rng.integers(2, 6)), lambda: people.make_motorcycle(rng, False),
                           'cycle.without_rider', 1.1)
    if section.parking:
        _rare(street, -side, 8.0)
    for i in range(8):
        barrier = furniture.make_barrier(rng, 'trestle')
        street.stand(barrier, 25.0 + i * (barrier.size[1] + 0.2), -side * (section.kerb + 0.5), np.pi / 2, lift=0.15)
        street.stand(furniture.make_cone(rng), 22.0 - 2.5 * i, -side * (section.kerb - 0.3), 0.0)
    _edge_street(world, street, side, pace, articulated=0.0, ego=ego)
    street.cycle(-side, 6.0)
    street.cycle(side, 5.0)
    return ego


def highway(world: World) -> Motion:
    """Three lanes each way with lorries, noise barriers, and works on the hard shoulder."""
    rng = world.rng
    pace = rng.uniform(14.0, 18.0)
    reach = _reach(world.duration, pace)
    section = Section(lanes=3, median=2.4, strip=3.6, parking=False, pavement=0.0, setback=3.0, storeys=(8.0, 22.0),
                      built=0.45, walkers=0.0, traffic_gap=30.0)
    street = Street(world, section, (0.0, 0.0), 0.0, (-reach, reach))
    side = -world.drive
    path, _ = street.lane_path(side, 1)
    ego = _ego(path, Speed(pace), world.duration, 0.0)
    street.pave()
    for s in np.arange(-reach, reach, 9.0):
        for which in (-1, 1):
            street.stand(furniture.make_wall(9.0, 0.8, CONCRETE), s + 4.5, which * 0.6, solid=False)
            rail = furniture.make_wall(9.0, 0.75, CONCRETE) if (s // 90) % 2 else furniture.make_wall(9.0, 3.5, CONCRETE)
            street.stand(rail, s + 4.5, which * (section.kerb + 0.8), solid=False)
    zone = 10.0
    street.work_zone(side, zone, zone + 60.0, 2.9)
    outer = section.median / 2 + section.lanes * LANE + 1.9
    for place in (-40.0, -75.0):
        street.stand(vehicles.make_trailer(rng), place, side * outer, 0.0, state='vehicle.parked')
    street.stand(vehicles.make_truck(rng), -20.0, -side * outer, 0.0, state='vehicle.stopped')
    for s, make in ((-5.0, people.make_motorcycle), (-8.0, people.make_motorcycle)):
        street.stand(make(rng, False), s, -side * outer, 0.1, state='cycle.without_rider')
    for which in (-1, 1):
        for lane in range(section.lanes):
            own = which == side and lane == 1
            free = (ego.offset - 12.0, ego.offset + 22.0) if own else None
            speed = ego.speed if own else Speed(pace * (1.25 - 0.2 * lane) * rng.uniform(0.95, 1.05))
            street.drive(which, lane, speed, free, articulated=0.8 if lane else 0.2)
        street.build(which)
        street.furnish(which)
    # a footway behind the barrier
    walkway = Street(world, replace(section, pavement=3.0, walkers=5.0), (0.0, 0.0), 0.0, (-reach, reach))
    walkway.walk(-side)
    return ego


def boulevard(world: World) -> Motion:
    """A dual carriageway with a planted median, bus stops and works."""
    rng = world.rng
    pace = rng.uniform(6.0, 9.0)
    reach = _reach(world.duration, pace)
    section = Section(lanes=2, median=5.0, parked=0.6, pavement=5.5, walkers=12.0, standing=8.0, storeys=(8.0, 24.0),
                      trees=6.0, traffic_gap=24.0)
    street = Street(world, section, (0.0, 0.0), rng.uniform(-0.05, 0.05), (-reach, reach))
    side = -world.drive
    path, _ = street.lane_path(side, 0)
    ego = _ego(path, Speed(pace, 0.6 * pace, 0.3 * world.duration, 0.6 * world.duration), world.duration, 0.0)
    for s in np.arange(-reach, reach, 9.0):
        make = furniture.make_tree if rng.random() < 0.7 else furniture.make_bush
        tree = make(rng)
        tree.size = (0.6, 0.6, 5.0)
        street.stand(tree, s, rng.normal(0, 0.2), lift=0.15)
    street.work_zone(side, 12.0, 44.0, 3.2)
    _rare(street, -side, 2.0)
    street.stand(vehicles.make_bus(rng), -30.0, side * (section.kerb - 1.4), 0.0 if world.drive else np.pi, state='vehicle.stopped')
    street.wait_in_row(side, -18.0, 6, lambda: people.make_bicycle(rng, False), 'cycle.without_rider', 0.85)
    _edge_street(world, street, side, pace, articulated=0.25, ego=ego)
    street.cycle(-side, 4.0)
    return ego


TRAIN_LAYOUTS = {layout.__name__: layout for layout in (straight, junction, car_park, promenade, highway, turning)}
VAL_LAYOUTS = {layout.__name__: layout for layout in (t_junction, boulevard)}
LAYOUTS = TRAIN_LAYOUTS | VAL_LAYOUTS


def build_scene(layout: str, key: tuple[int, int], duration: float) -> Scene:
    """Build one scene; the same arguments give the same scene anywhere.

    Args:
        layout: a key of LAYOUTS.
        key: (seed, scene number), of the layout's random numbers.
        duration: s that it lasts.
    Raises:
        ValueError: there is no such layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout '{layout}' is none of {', '.join(LAYOUTS)}")
    rng = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
    drive = int(rng.choice([-1, 1]))
    tilt = tuple(rng.normal(0.0, 0.007, 2))
    world = World(rng, _reach(duration, 18.0 if layout == 'highway' else 10.0) + 70.0, duration, drive=drive)
    ego = LAYOUTS[layout](world)
    return world.finish(ego, tilt)
