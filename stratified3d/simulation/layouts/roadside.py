"""What stands along a street: facades, trees, clutter, parked vehicles, work zones."""

from __future__ import annotations

import numpy as np

from stratified3d.simulation.layouts.street import KERB, LANE, PARKING, Street
from stratified3d.simulation.objects import construction as machines
from stratified3d.simulation.objects import furniture, people, vehicles
from stratified3d.simulation.physics.materials import CONCRETE, FOLIAGE, MESH
from stratified3d.simulation.physics.primitives import Shape


def build(street: Street, side: int) -> None:
    """Facades, fences, walls, hedges behind the pavement, trees in front of the lower ones."""
    section, rng = street.section, street.rng
    s, line = street.extent[0], section.kerb + section.pavement + section.setback
    while s < street.extent[1]:
        length = rng.uniform(9.0, 26.0)
        middle = s + length / 2
        # 6 m beyond the mouth of a side street lies that street's own pavement
        inside = not any(
            s < b + 6.0 and s + length > a - 6.0 for a, b, which in street.gaps if which == side
        )
        if inside and rng.random() < section.built:
            height, back = rng.uniform(*section.storeys), rng.choice([0.0, 0.0, 1.5, 4.0, 9.0])
            building = furniture.make_building(rng, length, 14.0, height)
            street.stand(
                building,
                middle,
                side * (line + back + 7.0),
                0.0 if side < 0 else np.pi,
                solid=False,
            )
        elif inside:
            kind = rng.choice(['fence', 'wall', 'hedge', 'open'])
            if kind == 'hedge':
                for place in np.arange(s, s + length, 2.2):
                    street.stand(furniture.make_bush(rng), place, side * (line + 0.8))
            elif kind != 'open':
                wall = furniture.make_wall(
                    length, rng.uniform(1.0, 2.4), MESH if kind == 'fence' else CONCRETE
                )
                street.stand(wall, middle, side * line, solid=False)
            for _ in range(rng.integers(3, 9)):
                make = furniture.make_tree if rng.random() < 0.6 else furniture.make_bush
                street.stand(
                    make(rng), s + rng.uniform(0, length), side * (line + rng.uniform(2.0, 26.0))
                )
            if rng.random() < 0.35:
                street.stand(
                    furniture.make_container(rng),
                    middle,
                    side * (line + 6.0),
                    rng.uniform(-0.3, 0.3),
                )
        s += length + (0.0 if rng.random() < 0.6 else rng.uniform(1.0, 6.0))


def furnish(street: Street, side: int) -> None:
    """Trees, poles and clutter in the strip along the kerb, clutter along the facades."""
    section, rng = street.section, street.rng
    length = street.extent[1] - street.extent[0]
    d = section.kerb + 0.65
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
                street.stand(shape, s, side * d, side * np.pi / 2, lift=KERB)
    for _ in range(rng.poisson(0.4 * section.clutter * length / 100)):
        s = rng.uniform(*street.extent)
        if not street.is_open(s, side, 2.0):
            street.stand(
                furniture.make_clutter(rng),
                s,
                side * (section.kerb + section.pavement - 0.3),
                -side * np.pi / 2,
                lift=KERB,
            )


def park(street: Street, side: int) -> None:
    """Parked vehicles, motorcycles and bicycles in the parking lane."""
    section, rng = street.section, street.rng
    d, s = side * (section.kerb - PARKING / 2), street.extent[0] + rng.uniform(0, 5)
    while section.parking and s < street.extent[1]:
        kind = rng.random()
        if rng.random() > section.parked:
            s += rng.uniform(4.0, 12.0)
            continue
        if kind < 0.06:  # a row of motorcycles, nose to the kerb
            for _ in range(rng.integers(2, 6)):
                if not street.is_open(s, side, 3.0):
                    street.stand(
                        people.make_motorcycle(rng, False),
                        s,
                        d,
                        side * np.pi / 2 + rng.normal(0, 0.1),
                        state='cycle.without_rider',
                    )
                s += rng.uniform(0.95, 1.4)
            continue
        shape = (
            vehicles.make_truck(rng)
            if kind < 0.15
            else vehicles.make_trailer(rng)
            if kind < 0.17
            else vehicles.make_car(rng)
        )
        s += shape.size[0] / 2
        if not street.is_open(s, side, 3.0 + shape.size[0] / 2):
            street.stand(
                shape,
                s,
                d + rng.normal(0, 0.06),
                street.flow(side) + rng.normal(0, 0.02),
                state='vehicle.parked',
            )
        s += shape.size[0] / 2 + rng.uniform(0.5, 1.6)


def wait_in_row(
    street: Street, side: int, s: float, count: int, make, state: str, spacing: float
) -> None:
    """Things side by side along the kerb on the pavement: parked bicycles, motorcycles."""
    for i in range(count):
        place = s + i * spacing
        if not street.is_open(place, side, 1.0):
            street.stand(
                make(),
                place,
                side * (street.section.kerb + 0.75),
                side * np.pi / 2 + street.rng.normal(0, 0.12),
                lift=KERB,
                state=state,
            )


def work_zone(street: Street, side: int, low: float, high: float, depth: float) -> None:
    """A site of `depth` m beside the lanes: barriers, cones, machines, workers, heaps of earth."""
    section, rng = street.section, street.rng
    inner = section.median / 2 + section.lanes * LANE + 0.5
    kind = str(rng.choice(['jersey', 'plastic', 'trestle']))
    s = low
    while s < high:
        barrier = furniture.make_barrier(rng, kind)
        street.stand(
            barrier,
            s + barrier.size[1] / 2,
            side * inner + rng.normal(0, 0.05),
            np.pi / 2 + rng.normal(0, 0.03),
        )
        s += barrier.size[1] + rng.uniform(0.05, 0.5)
    for end, sign in ((low, -1), (high, 1)):
        for i in range(5):
            street.stand(
                furniture.make_cone(rng),
                end + sign * (1.2 + 2.2 * i),
                side * (inner + 0.3 + 0.35 * i),
                state='',
            )
    d = inner + depth / 2 + 0.5
    s = low + 5.0
    while s < high - 4.0:
        draw = rng.random()
        if s == low + 5.0 or draw < 0.45:
            street.stand(
                machines.make_construction_vehicle(rng),
                s,
                side * d,
                rng.choice([0, np.pi]) + rng.normal(0, 0.1),
                state='vehicle.parked' if rng.random() < 0.5 else 'vehicle.stopped',
            )
        elif draw < 0.75:
            street.stand(vehicles.make_truck(rng), s, side * d, 0.0, state='vehicle.parked')
        else:
            heap = Shape(None, (3.0, 2.0, 1.2)).ellipsoid(
                (0, 0, 0.1), (3.2, 2.2, 2.2), FOLIAGE, 0.8
            )
            street.stand(heap, s, side * d)
        s += rng.uniform(8.0, 12.0)
    for _ in range(rng.integers(4, 9)):
        street.stand(
            people.make_pedestrian(rng, people.WORKER),
            rng.uniform(low, high),
            side * (inner + rng.uniform(0.7, depth)),
            rng.uniform(-np.pi, np.pi),
            state='pedestrian.standing',
        )
