"""Things that stand along a street: facades, trees, clutter, parked vehicles, work zones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stratified3d.simulation.layouts.street import CURB, LANE, PARKING, Street
from stratified3d.simulation.objects import furniture, people, trucks, vehicles
from stratified3d.simulation.objects.construction import make_construction_vehicle
from stratified3d.simulation.objects.lookalikes import make_lookalike, make_verge
from stratified3d.simulation.physics.materials import CONCRETE, FOLIAGE, MESH
from stratified3d.simulation.physics.primitives import Shape


def build(street: Street, side: int) -> None:
    """Line a side with facades, fences, walls and hedges, and trees behind the lower ones."""
    section, rng = street.section, street.rng
    s = street.extent[0]
    while s < street.extent[1]:
        length = rng.uniform(9.0, 26.0)
        # 6 m beyond the mouth of a side street lies that street's own sidewalk
        is_free = not any(
            s < high + 6.0 and s + length > low - 6.0
            for low, high, which in street.gaps
            if which == side
        )
        if is_free and rng.random() < section.built:
            _place_building(street, side, s, length)
        elif is_free:
            _leave_open(street, side, s, length)
        s += length + (0.0 if rng.random() < 0.6 else rng.uniform(1.0, 6.0))


def _place_building(street: Street, side: int, s: float, length: float) -> None:
    """A building from s to s + length, at or behind the building line."""
    section, rng = street.section, street.rng
    height = rng.uniform(*section.building_heights)
    back = rng.choice([0.0, 0.0, 1.5, 4.0, 9.0])
    building = furniture.make_building(rng, length, 14.0, height)
    d = side * (section.building_line + back + 7.0)
    yaw = 0.0 if side < 0 else np.pi
    street.stand(building, s + length / 2, d, yaw, solid=False)


def _leave_open(street: Street, side: int, s: float, length: float) -> None:
    """A lot without a building from s to s + length: a fence, wall or hedge, and plants."""
    rng = street.rng
    line = street.section.building_line
    middle = s + length / 2
    kind = rng.choice(['fence', 'wall', 'hedge', 'open'])
    if kind == 'hedge':
        for place in np.arange(s, s + length, 2.2):
            street.stand(
                shape=furniture.make_bush(rng),
                s=place,
                d=side * (line + 0.8),
            )
    elif kind != 'open':
        material = MESH if kind == 'fence' else CONCRETE
        wall = furniture.make_wall(length, rng.uniform(1.0, 2.4), material)
        street.stand(wall, middle, side * line, solid=False)
    for _ in range(rng.integers(3, 9)):
        make = furniture.make_tree if rng.random() < 0.6 else furniture.make_bush
        plant = make(rng)
        place = s + rng.uniform(0, length)
        street.stand(
            shape=plant,
            s=place,
            d=side * (line + rng.uniform(2.0, 26.0)),
        )
    if rng.random() < 0.35:
        container = furniture.make_container(rng)
        street.stand(
            shape=container,
            s=middle,
            d=side * (line + 6.0),
            yaw=rng.uniform(-0.3, 0.3),
        )


def furnish(street: Street, side: int) -> None:
    """Trees, poles and clutter in the strip along the curb, clutter along the facades."""
    section, rng = street.section, street.rng
    length = street.extent[1] - street.extent[0]
    d = section.curb + 0.65
    for make, rate in (
        (furniture.make_tree, section.trees),
        (furniture.make_pole, 3.0),
        (furniture.make_clutter, 0.6 * section.clutter),
    ):
        for _ in range(rng.poisson(rate * length / 100)):
            s = rng.uniform(*street.extent)
            if not street.is_open(s, side, 2.0):
                shape = make(rng)
                shape.size = (0.6, 0.6, shape.size[2])  # of its trunk or foot: crowns may touch
                street.stand(
                    shape=shape,
                    s=s,
                    d=side * d,
                    yaw=side * np.pi / 2,
                    lift=CURB,
                )

    along_facades = section.curb + section.sidewalk - 0.3
    for _ in range(rng.poisson(0.4 * section.clutter * length / 100)):
        s = rng.uniform(*street.extent)
        if not street.is_open(s, side, 2.0):
            clutter = furniture.make_clutter(rng)
            street.stand(
                shape=clutter,
                s=s,
                d=side * along_facades,
                yaw=-side * np.pi / 2,
                lift=CURB,
            )
    if street.world.lookalikes:
        add_verges(street, side)
        add_lookalikes(street, side)


def add_verges(street: Street, side: int) -> None:
    """Walls, banks and rails of some tens of meters, behind the curb or behind the sidewalk."""
    section, rng = street.section, street.rng
    low, high = street.extent
    s = low + rng.uniform(0.0, 60.0)
    while s < high:
        length = rng.uniform(8.0, 40.0)
        verge = make_verge(rng, length)
        width = verge.size[1]
        is_at_curb = width < 0.8 and rng.random() < 0.4  # people walk beside it
        d = section.curb + (0.1 if is_at_curb else section.sidewalk + 0.1) + width / 2
        middle = s + length / 2
        if not street.is_open(middle, side, length / 2 + 2.0):
            lift = CURB if d < section.curb + section.sidewalk else 0.0
            street.stand(verge, middle, side * d, lift=lift)
        s += length + rng.uniform(5.0, 120.0)


def add_lookalikes(street: Street, side: int) -> None:
    """Things that resemble barriers and people, along the curb and before the facades."""
    section, rng = street.section, street.rng
    low, high = street.extent
    for _ in range(rng.poisson(street.world.lookalikes * (high - low) / 100)):
        s = rng.uniform(low, high)
        shape = make_lookalike(rng)
        places = (0.6, section.sidewalk - 0.5, section.sidewalk + 0.7)
        d = section.curb + rng.choice(places) + rng.normal(0, 0.15)
        if not street.is_open(s, side, shape.size[0] / 2 + 1.0):
            lift = CURB if d < section.curb + section.sidewalk else 0.0
            street.stand(shape, s, side * d, rng.normal(0, 0.05), lift=lift)


def park(street: Street, side: int) -> None:
    """Parked vehicles and motorcycles in the parking lane."""
    section, rng = street.section, street.rng
    d = side * (section.curb - PARKING / 2)
    s = street.extent[0] + rng.uniform(0, 5)
    while section.parking and s < street.extent[1]:
        kind = rng.random()
        if rng.random() > section.parked:
            s += rng.uniform(4.0, 12.0)
        elif kind < 0.06:
            s = _park_motorcycles(street, side, s, d)
        else:
            shape = _make_parked_vehicle(rng, kind)
            half = shape.size[0] / 2
            s += half
            if not street.is_open(s, side, 3.0 + half):
                beside = d + rng.normal(0, 0.06)
                yaw = street.flow(side) + rng.normal(0, 0.02)
                street.stand(
                    shape=shape,
                    s=s,
                    d=beside,
                    yaw=yaw,
                    state='vehicle.parked',
                )
            s += half + rng.uniform(0.5, 1.6)


def _make_parked_vehicle(rng: np.random.Generator, draw: float) -> Shape:
    """Mostly a car; `draw` is uniform in [0.06, 1]."""
    if draw < 0.15:
        return trucks.make_truck(rng)
    if draw < 0.17:
        return trucks.make_trailer(rng)
    return vehicles.make_car(rng)


def _park_motorcycles(street: Street, side: int, s: float, d: float) -> float:
    """Park a row of motorcycles from s on, nose to the curb; returns where the row ends."""
    rng = street.rng
    for _ in range(rng.integers(2, 6)):
        if not street.is_open(s, side, 3.0):
            motorcycle = people.make_motorcycle(rng, rider=False)
            yaw = side * np.pi / 2 + rng.normal(0, 0.1)
            street.stand(motorcycle, s, d, yaw, state='cycle.without_rider')
        s += rng.uniform(0.95, 1.4)
    return s


def wait_in_row(
    street: Street,
    side: int,
    s: float,
    count: int,
    make: Callable[[np.random.Generator, bool], Shape],
    spacing: float,
) -> None:
    """Two-wheelers side by side on the sidewalk along the curb.

    Args:
        s: where the row begins, m.
        make: takes a generator and whether there is a rider.
        spacing: m from one to the next.
    """
    d = side * (street.section.curb + 0.75)
    for i in range(count):
        place = s + i * spacing
        if not street.is_open(place, side, 1.0):
            shape = make(street.rng, False)
            yaw = side * np.pi / 2 + street.rng.normal(0, 0.12)
            street.stand(shape, place, d, yaw, lift=CURB, state='cycle.without_rider')


def work_zone(street: Street, side: int, low: float, high: float, depth: float) -> None:
    """A site of `depth` m beside the lanes: barriers, cones, machines, workers, heaps of earth."""
    section, rng = street.section, street.rng
    inner = section.median / 2 + section.lanes * LANE + 0.5
    _fence_site(street, side, low, high, inner)
    d = side * (inner + depth / 2 + 0.5)
    first = low + 5.0
    s = first
    while s < high - 4.0:
        draw = rng.random()
        if s == first or draw < 0.45:
            machine = make_construction_vehicle(rng)
            yaw = rng.choice([0, np.pi]) + rng.normal(0, 0.1)
            state = 'vehicle.parked' if rng.random() < 0.5 else 'vehicle.stopped'
            street.stand(
                shape=machine,
                s=s,
                d=d,
                yaw=yaw,
                state=state,
            )
        elif draw < 0.75:
            street.stand(
                shape=trucks.make_truck(rng),
                s=s,
                d=d,
                yaw=0.0,
                state='vehicle.parked',
            )
        else:
            heap = Shape(None, (3.0, 2.0, 1.2))
            heap.ellipsoid((0, 0, 0.1), (3.2, 2.2, 2.2), FOLIAGE, 0.8)
            street.stand(heap, s, d)
        s += rng.uniform(8.0, 12.0)

    for _ in range(rng.integers(4, 9)):
        worker = people.make_pedestrian(rng, people.WORKER)
        place = rng.uniform(low, high)
        beside = side * (inner + rng.uniform(0.7, depth))
        yaw = rng.uniform(-np.pi, np.pi)
        street.stand(
            shape=worker,
            s=place,
            d=beside,
            yaw=yaw,
            state='pedestrian.standing',
        )


def _fence_site(street: Street, side: int, low: float, high: float, inner: float) -> None:
    """Barriers along a site at `inner` m from the axis, and a taper of cones at both ends."""
    rng = street.rng
    kind = str(rng.choice(['jersey', 'plastic', 'trestle']))
    s = low
    while s < high:
        barrier = furniture.make_barrier(rng, kind)
        width = barrier.size[1]
        d = side * inner + rng.normal(0, 0.05)
        street.stand(
            shape=barrier,
            s=s + width / 2,
            d=d,
            yaw=np.pi / 2 + rng.normal(0, 0.03),
        )
        s += width + rng.uniform(0.05, 0.5)
    for end, sign in ((low, -1), (high, 1)):
        for i in range(5):
            place = end + sign * (1.2 + 2.2 * i)
            d = side * (inner + 0.3 + 0.35 * i)
            street.stand(
                shape=furniture.make_cone(rng),
                s=place,
                d=d,
            )
