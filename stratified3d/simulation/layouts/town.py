"""Town layouts: streets, junctions, promenades; and what every town street has."""

from __future__ import annotations

import numpy as np

from stratified3d.simulation.layouts import roadside, traffic
from stratified3d.simulation.layouts.street import CURB, LANE, Section, Street
from stratified3d.simulation.layouts.world import World
from stratified3d.simulation.objects import furniture, people, trucks, vehicles
from stratified3d.simulation.physics.materials import ASPHALT, MARKING
from stratified3d.simulation.physics.paths import Motion, Path, Speed


def ego_motion(path: Path, speed: Speed, duration: float, at: float) -> Motion:
    """The ego car on a path, so that it passes arc length `at` half-way through the scene."""
    traveled = float(speed.traveled(np.array(duration / 2)))
    return Motion(path, speed, at - traveled)


def street_reach(duration: float, pace: float) -> float:
    """Half the length that a street needs so that its ends stay out of sight, m.

    `pace` is the ego car's, m/s.
    """
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
    """Complete both sides of a street: pavement, traffic, parked vehicles, furniture, walkers.

    Args:
        ego_side, ego_lane: where the ego car drives.
        pace: of the traffic, m/s.
        articulated: share of trucks that pull a trailer.
        ego: the ego car's motion, None if it drives elsewhere.
        slot: arc length of the ego car's slot in its lane at time 0; None for its own offset.
        built: the sides that get facades.
    """
    rng, section = world.rng, street.section
    street.pave()
    for side in (-1, 1):
        for lane in range(section.lanes):
            if ego is not None and side == ego_side and lane == ego_lane:
                place = ego.offset if slot is None else slot
                speed = ego.speed
                free = (place - 9.0, place + 16.0)
            else:
                speed = Speed(pace * rng.uniform(0.75, 1.15))
                free = None
            traffic.drive(street, side, lane, speed, free, articulated=articulated)
        if side in built:
            roadside.build(street, side)
        roadside.park(street, side)
        roadside.furnish(street, side)
        traffic.walk(street, side)


def scatter_rare(street: Street, side: int, s: float) -> None:
    """Place rare things around s: a trailer, a bus at its stop, rows of two-wheelers, carts."""
    rng, section = street.rng, street.section
    lane = section.curb - 1.3
    trailer = trucks.make_trailer(rng)
    place = s + rng.uniform(-6, 6)
    street.stand(
        shape=trailer,
        s=place,
        d=side * lane,
        yaw=street.flow(side),
        state='vehicle.parked',
    )
    count = int(rng.integers(3, 7))
    roadside.wait_in_row(street, side, s + 18.0, count, people.make_bicycle, 0.9)
    count = int(rng.integers(3, 6))
    roadside.wait_in_row(street, -side, s - 12.0, count, people.make_motorcycle, 1.15)
    rack = furniture.make_bicycle_rack(rng)
    street.stand(
        shape=rack,
        s=s - 25.0,
        d=side * (section.curb + 1.2),
        yaw=np.pi / 2,
        lift=CURB,
    )

    stop = s + 36.0
    bus = vehicles.make_bus(rng)
    street.stand(
        shape=bus,
        s=stop,
        d=-side * lane,
        yaw=street.flow(-side),
        state='vehicle.stopped',
    )
    for make in (furniture.make_cart, furniture.make_debris, furniture.make_cart):
        shape = make(rng)
        place = s + rng.uniform(-40, 40)
        d = rng.choice([-1, 1]) * (section.curb + 0.6)
        street.stand(shape, place, d, rng.uniform(0, 3), lift=CURB)
    shelter = furniture.make_bus_shelter(rng)
    yaw = 0.0 if side < 0 else np.pi
    street.stand(
        shape=shelter,
        s=stop,
        d=-side * (section.curb + 1.4),
        yaw=yaw,
        lift=CURB,
    )


def _queue(street: Street, side: int, s: float, count: int) -> None:
    """About `count` vehicles that wait at a stop line, s m before the middle of a junction."""
    span = (-s - count * 7.0, -s - 7.0)
    for lane in range(street.section.lanes):
        traffic.drive(street, side, lane, Speed(0.0), span=span, articulated=0.3)


def straight(world: World) -> Motion:
    """A town street with parked cars on both sides and a work zone."""
    rng = world.rng
    pace = rng.uniform(6.0, 10.0)
    reach = street_reach(world.duration, pace)
    section = Section(lanes=int(rng.integers(1, 3)))
    heading = rng.uniform(-0.1, 0.1)
    street = Street(
        world=world,
        section=section,
        origin=(0.0, 0.0),
        heading=heading,
        extent=(-reach, reach),
    )
    side = -world.traffic_side
    path = street.lane_path(side, 0)
    ego = ego_motion(path, Speed(pace), world.duration, 0.0)
    zone = rng.uniform(-10.0, 25.0)
    roadside.work_zone(
        street=street,
        side=side,
        low=zone,
        high=zone + rng.uniform(25.0, 45.0),
        depth=3.2,
    )
    scatter_rare(street, -side, rng.uniform(-20.0, 20.0))
    complete(world, street, side, pace, ego=ego)
    traffic.cycle(street, -side, 3.0)
    return ego


def junction(world: World, *, arms: int = 4, turns: bool = False) -> Motion:
    """Two streets that cross: traffic flows on one, waits on the other and is crossed on foot.

    Args:
        arms: 3 for a side street that ends there.
        turns: whether the ego car turns into the side street.
    """
    rng = world.rng
    pace = rng.uniform(5.0, 8.0)
    street, side_street = _crossing_streets(world, arms, street_reach(world.duration, pace))
    side = -world.traffic_side
    width, depth = street.section.curb, side_street.section.curb
    speed = Speed(
        before=pace,
        after=pace * 0.6,
        start=0.2 * world.duration,
        end=0.5 * world.duration,
    )
    lane = 1 if turns else 0
    if turns:
        ego, slot = _turn_off(world, speed, lane)
    else:
        ego = ego_motion(street.lane_path(side, lane), speed, world.duration, -8.0)
        slot = ego.offset

    zone = width + rng.uniform(9.0, 15.0)
    roadside.work_zone(side_street, 1, -zone - 32.0, -zone, 3.2)
    roadside.work_zone(
        street=street,
        side=-side,
        low=depth + 14.0,
        high=depth + 38.0,
        depth=3.0,
    )
    scatter_rare(street, side, rng.uniform(20.0, 34.0))
    complete(world, street, side, pace, ego=ego, ego_lane=lane, slot=slot)
    for s in (-depth - 1.5, depth + 1.5):
        world.paint(s, 0.0, 0.0, 0.5, 2 * width - 2.0, MARKING)
    side_street.pave()
    world.paint(
        x=0.0,
        y=0.0,
        yaw=0.0,
        length=2 * depth + 4.0,
        width=2 * width,
        material=ASPHALT,
    )
    _fill_side_street(side_street, arms, width + 7.0)
    for end in (-1, 1) if arms == 4 else (-1,):
        # nobody crosses where the ego car is about to drive
        if not turns or end != -world.traffic_side:
            traffic.cross(side_street, end * (width + 3.5))
    return ego


def _crossing_streets(world: World, arms: int, reach: float) -> tuple[Street, Street]:
    """The through street along x and the side street along y, each open where the other joins."""
    main = Section(lanes=2, parked=0.5, walkers=6.0)
    cross = Section(lanes=1, walkers=7.0, standing=4.0)
    width = main.curb + 3.0
    depth = cross.curb + 3.0
    sides = (-1, 1) if arms == 4 else (-1,)
    mouths = [(-depth, depth, side) for side in sides]
    street = Street(world, main, (0.0, 0.0), 0.0, (-reach, reach), mouths)

    end = width if arms == 4 else 400.0
    box = [(-width, end, side) for side in (-1, 1)]
    extent = (-reach, reach if arms == 4 else 0.0)
    return street, Street(world, cross, (0.0, 0.0), np.pi / 2, extent, box)


def _turn_off(world: World, speed: Speed, lane: int) -> tuple[Motion, float]:
    """The ego car round the near corner into the lane that leads away, and its slot in its lane."""
    radius = 9.0
    x = -0.5 * LANE - radius
    y = -world.traffic_side * (lane + 0.5) * LANE
    turn = (radius * np.pi / 2, -world.traffic_side * np.pi / 2)
    path = Path((x - 60.0, y, 0.0), [(60.0, 0.0), turn])
    ego = ego_motion(path, speed, world.duration, 62.0)
    return ego, ego.offset + x - 60.0  # the lane's own arc length counts from x = 0


def _fill_side_street(street: Street, arms: int, stop_line: float) -> None:
    """What stands, walks and waits along the side street of a junction."""
    rng, traffic_side = street.rng, street.world.traffic_side
    for side in (-1, 1):
        roadside.build(street, side)
        roadside.park(street, side)
        roadside.furnish(street, side)
        traffic.walk(street, side)
        if arms == 4 or side == -traffic_side:
            _queue(street, side, stop_line, int(rng.integers(3, 8)))


def t_junction(world: World) -> Motion:
    """A side street that ends at a through street."""
    return junction(world, arms=3)


def turning(world: World) -> Motion:
    """A junction at which the ego car turns into the side street."""
    return junction(world, turns=True)


def promenade(world: World) -> Motion:
    """A narrow street between crowded sidewalks: cyclists, rows of two-wheelers, stalls."""
    rng = world.rng
    pace = rng.uniform(3.5, 6.0)
    reach = street_reach(world.duration, pace)
    section = Section(
        lanes=1,
        parking=bool(rng.random() < 0.5),
        sidewalk=7.0,
        setback=0.3,
        walkers=26.0,
        standing=16.0,
        clutter=9.0,
        trees=7.0,
        building_heights=(7.0, 18.0),
        built=0.9,
        traffic_gap=20.0,
    )
    street = Street(world, section, (0.0, 0.0), rng.uniform(-0.1, 0.1), (-reach, reach))
    side = -world.traffic_side
    path = street.lane_path(side, 0)
    ego = ego_motion(path, Speed(pace), world.duration, 0.0)
    for s in np.arange(-60.0, 61.0, 30.0):
        which = int(rng.choice([-1, 1]))
        count = int(rng.integers(3, 8))
        roadside.wait_in_row(street, which, s, count, people.make_bicycle, 0.8)
        count = int(rng.integers(2, 6))
        roadside.wait_in_row(street, -which, s + 9.0, count, people.make_motorcycle, 1.1)
    if section.parking:
        scatter_rare(street, -side, 8.0)
    for i in range(8):
        barrier = furniture.make_barrier(rng, 'trestle')
        place = 25.0 + i * (barrier.size[1] + 0.2)
        street.stand(
            shape=barrier,
            s=place,
            d=-side * (section.curb + 0.5),
            yaw=np.pi / 2,
            lift=CURB,
        )
        street.stand(
            shape=furniture.make_cone(rng),
            s=22.0 - 2.5 * i,
            d=-side * (section.curb - 0.3),
        )
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
        sidewalk=5.5,
        walkers=12.0,
        standing=8.0,
        building_heights=(8.0, 24.0),
        trees=6.0,
        traffic_gap=24.0,
    )
    street = Street(
        world=world,
        section=section,
        origin=(0.0, 0.0),
        heading=rng.uniform(-0.05, 0.05),
        extent=(-reach, reach),
    )
    side = -world.traffic_side
    path = street.lane_path(side, 0)
    speed = Speed(pace, 0.6 * pace, 0.3 * world.duration, 0.6 * world.duration)
    ego = ego_motion(path, speed, world.duration, 0.0)
    for s in np.arange(-reach, reach, 9.0):
        make = furniture.make_tree if rng.random() < 0.7 else furniture.make_bush
        tree = make(rng)
        tree.size = (0.6, 0.6, 5.0)
        street.stand(tree, s, rng.normal(0, 0.2), lift=CURB)
    roadside.work_zone(street, side, 12.0, 44.0, 3.2)
    scatter_rare(street, -side, 2.0)
    bus = vehicles.make_bus(rng)
    d = side * (section.curb - 1.4)
    street.stand(bus, -30.0, d, street.flow(side), state='vehicle.stopped')
    roadside.wait_in_row(street, side, -18.0, 6, people.make_bicycle, 0.85)
    complete(world, street, side, pace, articulated=0.25, ego=ego)
    traffic.cycle(street, -side, 4.0)
    return ego
