"""Layouts beyond the streets: a car park and a highway."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stratified3d.simulation.layouts import roadside, traffic
from stratified3d.simulation.layouts.street import LANE, Section, Street
from stratified3d.simulation.layouts.town import complete, ego_motion, scatter_rare, street_reach
from stratified3d.simulation.layouts.world import World
from stratified3d.simulation.objects import furniture, people, trucks, vehicles
from stratified3d.simulation.physics.materials import ASPHALT, CONCRETE, MARKING
from stratified3d.simulation.physics.paths import Motion, Path, Speed
from stratified3d.simulation.physics.primitives import Shape

PITCH = 17.0  # m between the aisles of a car park
HALF_AISLE = 75.0  # m
BAY = 2.75  # m, width of a parking space


def car_park(world: World) -> Motion:
    """Aisles of parked vehicles behind a street, with shoppers, hedges and a market hall."""
    rng = world.rng
    pace = rng.uniform(2.5, 4.0)
    world.paint(
        x=0.0,
        y=0.0,
        yaw=0.0,
        length=2 * HALF_AISLE + 20.0,
        width=5 * PITCH + 12.0,
        material=ASPHALT,
    )
    for aisle in range(-2, 3):
        _park_along_aisle(world, aisle * PITCH)

    path = Path((-200.0, -1.0 * world.traffic_side * 1.6, 0.0))
    speed = Speed(pace, pace * 0.6, 0.4 * world.duration, 0.7 * world.duration)
    ego = ego_motion(path, speed, world.duration, 200.0)

    # beside the aisles lies a street with everything that a street has
    section = Section(lanes=1, sidewalk=3.5, built=0.85, traffic_gap=18.0)
    street = Street(
        world=world,
        section=section,
        origin=(0.0, -2.5 * PITCH - 20.0),
        heading=0.0,
        extent=(-170.0, 170.0),
    )
    roadside.work_zone(street, 1, -10.0, 22.0, 3.0)
    scatter_rare(street, -1, 15.0)
    complete(world, street, -1, 8.0, built=(-1,))
    _build_around_car_park(world)
    _let_people_shop(world)
    _close_part_of_car_park(world)
    return ego


def _park_along_aisle(world: World, y: float) -> None:
    """Parking spaces on both sides of an aisle, most of them taken, and trees at its ends."""
    for side in (-1, 1):
        row = y + side * 5.9
        for x in np.arange(-HALF_AISLE, HALF_AISLE, BAY):
            world.paint(x - 1.37, row, np.pi / 2, 5.0, 0.3, MARKING)
            _use_bay(world, x, row, side)
    end = HALF_AISLE + 6.0
    for x in np.arange(-end, end + 1.0, 2 * end):
        for dx in (-0.9, 0.9):
            tree = furniture.make_tree(world.rng)
            world.stand(tree, x + dx, y + 8.5, 0.0, solid=False)


def _use_bay(world: World, x: float, y: float, side: int) -> None:
    """Put a vehicle, a cart, clutter or nothing into one parking space."""
    rng = world.rng
    draw = rng.random()
    yaw = side * np.pi / 2 * rng.choice([-1, 1]) + rng.normal(0, 0.03)
    if draw < 0.62:
        shape = vehicles.make_car(rng) if draw < 0.57 else trucks.make_truck(rng)
        if shape.size[0] < 6.5:
            world.stand(
                shape=shape,
                x=x,
                y=y + rng.normal(0, 0.15),
                yaw=yaw,
                state='vehicle.parked',
            )
    elif draw < 0.66:
        motorcycle = people.make_motorcycle(rng, rider=False)
        world.stand(motorcycle, x, y, yaw, state='cycle.without_rider')
    elif draw < 0.69:
        world.stand(
            shape=furniture.make_cart(rng),
            x=x,
            y=y,
            yaw=yaw,
        )
    elif draw < 0.71:
        world.stand(furniture.make_clutter(rng), x, y, yaw)


def _build_around_car_park(world: World) -> None:
    """A market hall behind the aisles and buildings beyond their ends."""
    rng = world.rng
    for x in np.arange(-80.0, 80.0, 24.0):
        hall = furniture.make_building(rng, 24.0, 20.0, rng.uniform(7.0, 12.0))
        world.stand(hall, x + 12.0, 2.5 * PITCH + 22.0, np.pi, solid=False)
        for end in (-1, 1):
            tower = furniture.make_building(rng, 30.0, 16.0, rng.uniform(6.0, 16.0))
            if abs(x) < 30.0:
                yaw = end * np.pi / 2
                world.stand(tower, end * (HALF_AISLE + 30.0), x, yaw, solid=False)


def _let_people_shop(world: World) -> None:
    """People who walk along the aisles or stand between the cars."""
    rng = world.rng

    def draw_gap() -> float:
        return rng.exponential(28.0) + 0.5

    def make_shopper() -> tuple[Shape, str]:
        return people.make_pedestrian(rng), 'pedestrian.standing'

    for aisle in range(-2, 3):
        for offset in (-2.9, 2.9):
            speed = Speed(rng.uniform(0.9, 1.5))
            path = Path((0.0, aisle * PITCH + offset, rng.choice([0.0, np.pi])))
            world.stream(
                path=path,
                speed=speed,
                low=-HALF_AISLE,
                high=HALF_AISLE,
                gap=draw_gap,
                make=make_shopper,
            )
    for _ in range(10):
        x = rng.uniform(-60, 60)
        y = rng.integers(-2, 3) * PITCH + rng.choice([-1, 1]) * 3.4
        shape, state = make_shopper()
        world.stand(
            shape=shape,
            x=x,
            y=y,
            yaw=rng.uniform(-3, 3),
            state=state,
        )


def _close_part_of_car_park(world: World) -> None:
    """A row of cones along an aisle and a row of barriers before the market hall."""
    for i in range(12):
        world.stand(furniture.make_cone(world.rng), 14.0 + 3.0 * i, -0.35 * PITCH, 0.0)
    for i in range(8):
        barrier = furniture.make_barrier(world.rng, 'plastic')
        world.stand(barrier, 12.0 + 2.4 * i, 2.5 * PITCH - 2.0, np.pi / 2)


def highway(world: World) -> Motion:
    """Three lanes each way with trucks, noise barriers, and works on the hard shoulder."""
    rng = world.rng
    pace = rng.uniform(14.0, 18.0)
    reach = street_reach(world.duration, pace)
    section = Section(
        lanes=3,
        median=2.4,
        strip=3.6,
        parking=False,
        sidewalk=0.0,
        setback=3.0,
        building_heights=(8.0, 22.0),
        built=0.45,
        walkers=0.0,
        traffic_gap=30.0,
    )
    street = Street(world, section, (0.0, 0.0), 0.0, (-reach, reach))
    side = -world.traffic_side
    ego = ego_motion(street.lane_path(side, 1), Speed(pace), world.duration, 0.0)
    street.pave()
    _raise_noise_barriers(street)
    zone = 10.0
    roadside.work_zone(street, side, zone, zone + 60.0, 2.9)
    _stop_on_shoulders(street, side)
    for which in (-1, 1):
        for lane in range(section.lanes):
            share = 0.8 if lane else 0.2
            if which == side and lane == 1:
                free = (ego.offset - 12.0, ego.offset + 22.0)
                traffic.drive(street, which, lane, ego.speed, free, articulated=share)
            else:
                speed = Speed(pace * (1.25 - 0.2 * lane) * rng.uniform(0.95, 1.05))
                traffic.drive(street, which, lane, speed, articulated=share)
        roadside.build(street, which)
        roadside.furnish(street, which)

    # a footway behind the barrier
    footway = replace(section, sidewalk=3.0, walkers=5.0)
    traffic.walk(Street(world, footway, (0.0, 0.0), 0.0, (-reach, reach)), -side)
    return ego


def _raise_noise_barriers(street: Street) -> None:
    """A wall in the median, and low rails and noise barriers by turns along both edges."""
    for s in np.arange(*street.extent, 9.0):
        for side in (-1, 1):
            divider = furniture.make_wall(9.0, 0.8, CONCRETE)
            street.stand(divider, s + 4.5, side * 0.6, solid=False)
            height = 0.75 if (s // 90) % 2 else 3.5
            barrier = furniture.make_wall(9.0, height, CONCRETE)
            street.stand(barrier, s + 4.5, side * (street.section.curb + 0.8), solid=False)


def _stop_on_shoulders(street: Street, side: int) -> None:
    """Trailers on one hard shoulder, a truck and two motorcycles on the other."""
    rng, section = street.rng, street.section
    outer = section.median / 2 + section.lanes * LANE + 1.9
    d = side * outer
    for s in (-40.0, -75.0):
        trailer = trucks.make_trailer(rng)
        street.stand(trailer, s, d, street.flow(side), state='vehicle.parked')
    truck = trucks.make_truck(rng)
    street.stand(truck, -20.0, -d, street.flow(-side), state='vehicle.stopped')
    for s in (-5.0, -8.0):
        motorcycle = people.make_motorcycle(rng, rider=False)
        street.stand(motorcycle, s, -d, 0.1, state='cycle.without_rider')
