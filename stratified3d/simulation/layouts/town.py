"""Town layouts: streets, junctions, promenades; and what every town street has."""

from __future__ import annotations

import numpy as np

from stratified3d.simulation.layouts import roadside, traffic
from stratified3d.simulation.layouts.street import LANE, Section, Street
from stratified3d.simulation.layouts.world import World
from stratified3d.simulation.objects import furniture, people, vehicles
from stratified3d.simulation.physics.materials import ASPHALT, MARKING
from stratified3d.simulation.physics.paths import Motion, Path, Speed


def ego_motion(path: Path, speed: Speed, duration: float, at: float) -> Motion:
    """The ego car on a path, so that it passes arc length `at` half-way through the scene."""
    return Motion(path, speed, at - float(speed.travelled(np.array(duration / 2))))


def street_reach(duration: float, pace: float) -> float:
    """Half the length (m) that a street needs so that its ends stay out of sight; `pace` of the ego
    car, m/s."""
    return 130.0 + 0.5 * duration * pace


def complete(
    world: World,
    street: Street,
    ego_side: int,
    pace: float,
    articulated: float = 0.1,
    ego: Motion | None = None,
    ego_lane: int = 0,
    slot: float | None = None,
    built: tuple[int, ...] = (-1, 1),
) -> None:
    """Both sides of a street, complete, with facades on the sides `built`.

    The ego car keeps a slot in the traffic of its lane, at arc length `slot` at time 0.
    """
    rng, section = world.rng, street.section
    street.pave()
    for side in (-1, 1):
        for lane in range(section.lanes):
            own = ego is not None and side == ego_side and lane == ego_lane
            speed = ego.speed if own else Speed(pace * rng.uniform(0.75, 1.15))
            place = ego.offset if own and slot is None else slot
            free = (place - 9.0, place + 16.0) if own else None
            traffic.drive(street, side, lane, speed, free, articulated=articulated)
        if side in built:
            roadside.build(street, side)
        roadside.park(street, side)
        roadside.furnish(street, side)
        traffic.walk(street, side)


def scatter_rare(street: Street, side: int, s: float) -> None:
    """What every town street has somewhere: a trailer, a bus at its stop, two-wheelers in rows,
    small things."""
    rng, section = street.rng, street.section
    lane = section.kerb - 1.3
    street.stand(
        vehicles.make_trailer(rng),
        s + rng.uniform(-6, 6),
        side * lane,
        street.flow(side),
        state='vehicle.parked',
    )
    roadside.wait_in_row(
        street,
        side,
        s + 18.0,
        int(rng.integers(3, 7)),
        lambda: people.make_bicycle(rng, False),
        'cycle.without_rider',
        0.9,
    )
    roadside.wait_in_row(
        street,
        -side,
        s - 12.0,
        int(rng.integers(3, 6)),
        lambda: people.make_motorcycle(rng, False),
        'cycle.without_rider',
        1.15,
    )
    street.stand(
        furniture.make_bicycle_rack(rng),
        s - 25.0,
        side * (section.kerb + 1.2),
        np.pi / 2,
        lift=0.15,
    )
    shelter = s + 36.0
    street.stand(
        vehicles.make_bus(rng), shelter, -side * lane, street.flow(-side), state='vehicle.stopped'
    )
    for make in (furniture.make_cart, furniture.make_debris, furniture.make_cart):
        street.stand(
            make(rng),
            s + rng.uniform(-40, 40),
            rng.choice([-1, 1]) * (section.kerb + 0.6),
            rng.uniform(0, 3),
            lift=0.15,
        )
    street.stand(
        furniture.make_bus_shelter(rng),
        shelter,
        -side * (section.kerb + 1.4),
        0.0 if side < 0 else np.pi,
        lift=0.15,
    )


def _queue(street: Street, side: int, s: float, count: int) -> None:
    """About `count` vehicles that wait at a stop line `s` meters before the middle of a
    junction."""
    for lane in range(street.section.lanes):
        traffic.drive(
            street, side, lane, Speed(0.0), span=(-s - count * 7.0, -s - 7.0), articulated=0.3
        )


def straight(world: World) -> Motion:
    """A town street with parked cars on both sides and a work zone."""
    rng = world.rng
    pace = rng.uniform(6.0, 10.0)
    reach = street_reach(world.duration, pace)
    street = Street(
        world,
        Section(lanes=int(rng.integers(1, 3))),
        (0.0, 0.0),
        rng.uniform(-0.1, 0.1),
        (-reach, reach),
    )
    side = -world.drive
    path = street.lane_path(side, 0)
    ego = ego_motion(path, Speed(pace), world.duration, 0.0)
    zone = rng.uniform(-10.0, 25.0)
    roadside.work_zone(street, side, zone, zone + rng.uniform(25.0, 45.0), 3.2)
    scatter_rare(street, -side, rng.uniform(-20.0, 20.0))
    complete(world, street, side, pace, ego=ego)
    traffic.cycle(street, -side, 3.0)
    return ego


def junction(world: World, *, arms: int = 4, turns: bool = False) -> Motion:
    """Two streets that cross (or meet, with three arms): one flows, the other waits and is crossed
    on foot."""
    rng = world.rng
    pace = rng.uniform(5.0, 8.0)
    reach = street_reach(world.duration, pace)
    main, cross = (
        Section(lanes=2, parked=0.5, walkers=6.0),
        Section(lanes=1, walkers=7.0, standing=4.0),
    )
    width, depth = main.kerb, cross.kerb
    mouth = [(-depth - 3.0, depth + 3.0, side) for side in ((-1, 1) if arms == 4 else (-1,))]
    street = Street(world, main, (0.0, 0.0), 0.0, (-reach, reach), mouth)
    box = [(-width - 3.0, width + 3.0 if arms == 4 else 400.0, side) for side in (-1, 1)]
    side_street = Street(
        world, cross, (0.0, 0.0), np.pi / 2, (-reach, reach if arms == 4 else 0.0), box
    )
    side = -world.drive
    speed = Speed(pace, pace * 0.6, 0.2 * world.duration, 0.5 * world.duration)
    lane = 1 if turns else 0
    path = street.lane_path(side, lane)
    if turns:  # round the near corner into the lane that leads away
        radius = 9.0
        x, y = -0.5 * LANE - radius, -world.drive * (lane + 0.5) * LANE
        path = Path(
            (x - 60.0, y, 0.0), [(60.0, 0.0), (radius * np.pi / 2, -world.drive * np.pi / 2)]
        )
        ego = ego_motion(path, speed, world.duration, 62.0)
        slot = ego.offset + x - 60.0  # the lane's own arc length counts from x = 0
    else:
        ego = ego_motion(path, speed, world.duration, -8.0)
        slot = ego.offset
    zone = width + rng.uniform(9.0, 15.0)
    roadside.work_zone(side_street, 1, -zone - 32.0, -zone, 3.2)
    roadside.work_zone(street, -side, depth + 14.0, depth + 38.0, 3.0)
    scatter_rare(street, side, rng.uniform(20.0, 34.0))
    complete(world, street, side, pace, ego=ego, ego_lane=lane, slot=slot)
    for s in (-depth - 1.5, depth + 1.5):
        world.paint(s, 0.0, 0.0, 0.5, 2 * width - 2.0, MARKING)
    side_street.pave()
    world.paint(0.0, 0.0, 0.0, 2 * depth + 4.0, 2 * width, ASPHALT)
    for which in (-1, 1):
        roadside.build(side_street, which)
        roadside.park(side_street, which)
        roadside.furnish(side_street, which)
        traffic.walk(side_street, which)
        if arms == 4 or which == -world.drive:
            _queue(side_street, which, width + 7.0, int(rng.integers(3, 8)))
    for end in (-1, 1) if arms == 4 else (-1,):
        if not (
            turns and end == -world.drive
        ):  # nobody crosses where the ego car is about to drive
            traffic.cross(side_street, end * (width + 3.5))
    return ego


def t_junction(world: World) -> Motion:
    """A side street that ends at a through street."""
    return junction(world, arms=3)


def turning(world: World) -> Motion:
    """A crossing at which the ego car turns into the side street."""
    return junction(world, turns=True)


def promenade(world: World) -> Motion:
    """A narrow street between crowded pavements: cyclists, rows of two-wheelers, stalls."""
    rng = world.rng
    pace = rng.uniform(3.5, 6.0)
    reach = street_reach(world.duration, pace)
    section = Section(
        lanes=1,
        parking=bool(rng.random() < 0.5),
        pavement=7.0,
        setback=0.3,
        walkers=26.0,
        standing=16.0,
        clutter=9.0,
        trees=7.0,
        storeys=(7.0, 18.0),
        built=0.9,
        traffic_gap=20.0,
    )
    street = Street(world, section, (0.0, 0.0), rng.uniform(-0.1, 0.1), (-reach, reach))
    side = -world.drive
    path = street.lane_path(side, 0)
    ego = ego_motion(path, Speed(pace), world.duration, 0.0)
    for s in np.arange(-60.0, 61.0, 30.0):
        which = int(rng.choice([-1, 1]))
        roadside.wait_in_row(
            street,
            which,
            s,
            int(rng.integers(3, 8)),
            lambda: people.make_bicycle(rng, False),
            'cycle.without_rider',
            0.8,
        )
        roadside.wait_in_row(
            street,
            -which,
            s + 9.0,
            int(rng.integers(2, 6)),
            lambda: people.make_motorcycle(rng, False),
            'cycle.without_rider',
            1.1,
        )
    if section.parking:
        scatter_rare(street, -side, 8.0)
    for i in range(8):
        barrier = furniture.make_barrier(rng, 'trestle')
        street.stand(
            barrier,
            25.0 + i * (barrier.size[1] + 0.2),
            -side * (section.kerb + 0.5),
            np.pi / 2,
            lift=0.15,
        )
        street.stand(furniture.make_cone(rng), 22.0 - 2.5 * i, -side * (section.kerb - 0.3), 0.0)
    complete(world, street, side, pace, articulated=0.0, ego=ego)
    traffic.cycle(street, -side, 6.0)
    traffic.cycle(street, side, 5.0)
    return ego


def boulevard(world: World) -> Motion:
    """A dual carriageway with a planted median, bus stops and works."""
    rng = world.rng
    pace = rng.uniform(6.0, 9.0)
    reach = street_reach(world.duration, pace)
    section = Section(
        lanes=2,
        median=5.0,
        parked=0.6,
        pavement=5.5,
        walkers=12.0,
        standing=8.0,
        storeys=(8.0, 24.0),
        trees=6.0,
        traffic_gap=24.0,
    )
    street = Street(world, section, (0.0, 0.0), rng.uniform(-0.05, 0.05), (-reach, reach))
    side = -world.drive
    path = street.lane_path(side, 0)
    ego = ego_motion(
        path,
        Speed(pace, 0.6 * pace, 0.3 * world.duration, 0.6 * world.duration),
        world.duration,
        0.0,
    )
    for s in np.arange(-reach, reach, 9.0):
        make = furniture.make_tree if rng.random() < 0.7 else furniture.make_bush
        tree = make(rng)
        tree.size = (0.6, 0.6, 5.0)
        street.stand(tree, s, rng.normal(0, 0.2), lift=0.15)
    roadside.work_zone(street, side, 12.0, 44.0, 3.2)
    scatter_rare(street, -side, 2.0)
    street.stand(
        vehicles.make_bus(rng),
        -30.0,
        side * (section.kerb - 1.4),
        street.flow(side),
        state='vehicle.stopped',
    )
    roadside.wait_in_row(
        street, side, -18.0, 6, lambda: people.make_bicycle(rng, False), 'cycle.without_rider', 0.85
    )
    complete(world, street, side, pace, articulated=0.25, ego=ego)
    traffic.cycle(street, -side, 4.0)
    return ego
