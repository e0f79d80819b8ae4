"""Layouts beyond the streets: a car park and a highway."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stratified3d.simulation.layouts import roadside, traffic
from stratified3d.simulation.layouts.street import LANE, Section, Street
from stratified3d.simulation.layouts.town import complete, ego_motion, scatter_rare, street_reach
from stratified3d.simulation.layouts.world import World
from stratified3d.simulation.objects import furniture, people, vehicles
from stratified3d.simulation.physics.materials import ASPHALT, CONCRETE, MARKING
from stratified3d.simulation.physics.paths import Motion, Path, Speed


def car_park(world: World) -> Motion:
    """Aisles of parked vehicles behind a street; people with trolleys, kerbs, hedges, a market
    hall."""
    rng = world.rng
    pace = rng.uniform(2.5, 4.0)
    pitch, half = 17.0, 75.0
    world.paint(0.0, 0.0, 0.0, 2 * half + 20.0, 5 * pitch + 12.0, ASPHALT)
    for aisle in range(-2, 3):
        for side in (-1, 1):
            y = aisle * pitch + side * 5.9
            for x in np.arange(-half, half, 2.75):
                world.paint(x - 1.37, y, np.pi / 2, 5.0, 0.3, MARKING)
                draw, yaw = (
                    rng.random(),
                    side * np.pi / 2 * rng.choice([-1, 1]) + rng.normal(0, 0.03),
                )
                if draw < 0.62:
                    shape = vehicles.make_car(rng) if draw < 0.57 else vehicles.make_truck(rng)
                    if shape.size[0] < 6.5:
                        world.stand(shape, x, y + rng.normal(0, 0.15), yaw, state='vehicle.parked')
                elif draw < 0.66:
                    world.stand(
                        people.make_motorcycle(rng, False), x, y, yaw, state='cycle.without_rider'
                    )
                elif draw < 0.69:
                    world.stand(furniture.make_cart(rng), x, y, yaw)
                elif draw < 0.71:
                    world.stand(furniture.make_clutter(rng), x, y, yaw)
        for x in np.arange(-half - 6.0, half + 7.0, 2 * half + 12.0):
            for dx in (-0.9, 0.9):
                world.stand(furniture.make_tree(rng), x + dx, aisle * pitch + 8.5, 0.0, solid=False)
    path = Path((-200.0, -1.0 * world.drive * 1.6, 0.0))
    ego = ego_motion(
        path,
        Speed(pace, pace * 0.6, 0.4 * world.duration, 0.7 * world.duration),
        world.duration,
        200.0,
    )
    # beside the aisles lies a street with everything that a street has
    section = Section(lanes=1, pavement=3.5, built=0.85, traffic_gap=18.0)
    street = Street(world, section, (0.0, -2.5 * pitch - 20.0), 0.0, (-170.0, 170.0))
    roadside.work_zone(street, 1, -10.0, 22.0, 3.0)
    scatter_rare(street, -1, 15.0)
    complete(world, street, -1, 8.0, built=(-1,))
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
                world.stream(
                    walk,
                    speed,
                    -half,
                    half,
                    lambda: rng.exponential(28.0) + 0.5,
                    lambda: (people.make_pedestrian(rng), 'pedestrian.standing'),
                )
    for _ in range(10):
        spot = rng.uniform(-60, 60), rng.integers(-2, 3) * pitch + rng.choice([-1, 1]) * 3.4
        world.stand(
            people.make_pedestrian(rng), *spot, rng.uniform(-3, 3), state='pedestrian.standing'
        )
    for i in range(12):
        world.stand(furniture.make_cone(rng), 14.0 + 3.0 * i, -0.35 * pitch, 0.0)
    for i in range(8):
        world.stand(
            furniture.make_barrier(rng, 'plastic'), 12.0 + 2.4 * i, 2.5 * pitch - 2.0, np.pi / 2
        )
    return ego


def highway(world: World) -> Motion:
    """Three lanes each way with lorries, noise barriers, and works on the hard shoulder."""
    rng = world.rng
    pace = rng.uniform(14.0, 18.0)
    reach = street_reach(world.duration, pace)
    section = Section(
        lanes=3,
        median=2.4,
        strip=3.6,
        parking=False,
        pavement=0.0,
        setback=3.0,
        storeys=(8.0, 22.0),
        built=0.45,
        walkers=0.0,
        traffic_gap=30.0,
    )
    street = Street(world, section, (0.0, 0.0), 0.0, (-reach, reach))
    side = -world.drive
    path = street.lane_path(side, 1)
    ego = ego_motion(path, Speed(pace), world.duration, 0.0)
    street.pave()
    for s in np.arange(-reach, reach, 9.0):
        for which in (-1, 1):
            street.stand(furniture.make_wall(9.0, 0.8, CONCRETE), s + 4.5, which * 0.6, solid=False)
            rail = (
                furniture.make_wall(9.0, 0.75, CONCRETE)
                if (s // 90) % 2
                else furniture.make_wall(9.0, 3.5, CONCRETE)
            )
            street.stand(rail, s + 4.5, which * (section.kerb + 0.8), solid=False)
    zone = 10.0
    roadside.work_zone(street, side, zone, zone + 60.0, 2.9)
    outer = section.median / 2 + section.lanes * LANE + 1.9
    for place in (-40.0, -75.0):
        street.stand(
            vehicles.make_trailer(rng),
            place,
            side * outer,
            street.flow(side),
            state='vehicle.parked',
        )
    street.stand(
        vehicles.make_truck(rng), -20.0, -side * outer, street.flow(-side), state='vehicle.stopped'
    )
    for s, make in ((-5.0, people.make_motorcycle), (-8.0, people.make_motorcycle)):
        street.stand(make(rng, False), s, -side * outer, 0.1, state='cycle.without_rider')
    for which in (-1, 1):
        for lane in range(section.lanes):
            own = which == side and lane == 1
            free = (ego.offset - 12.0, ego.offset + 22.0) if own else None
            speed = (
                ego.speed if own else Speed(pace * (1.25 - 0.2 * lane) * rng.uniform(0.95, 1.05))
            )
            traffic.drive(street, which, lane, speed, free, articulated=0.8 if lane else 0.2)
        roadside.build(street, which)
        roadside.furnish(street, which)
    # a footway behind the barrier
    walkway = Street(
        world, replace(section, pavement=3.0, walkers=5.0), (0.0, 0.0), 0.0, (-reach, reach)
    )
    traffic.walk(walkway, -side)
    return ego
