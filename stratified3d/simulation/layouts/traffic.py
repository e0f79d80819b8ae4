"""Road users that move along a street: vehicles on lanes, walkers, cyclists."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from stratified3d.simulation.layouts.street import CURB, LANE, Street
from stratified3d.simulation.objects import people, trucks, vehicles
from stratified3d.simulation.physics.materials import MARKING
from stratified3d.simulation.physics.paths import Path, Speed
from stratified3d.simulation.physics.primitives import Shape
from stratified3d.simulation.scene import Actor

_SHARES = {'car': 0.76, 'truck': 0.12, 'bus': 0.06, 'motorcycle': 0.06}  # of the traffic


def drive(
    street: Street,
    side: int,
    lane: int,
    speed: Speed,
    keep_free: tuple[float, float] | None = None,
    span: tuple[float, float] | None = None,
    articulated: float = 0.0,
) -> None:
    """Let traffic flow on a lane.

    Args:
        keep_free: arc lengths at time 0 left free for the ego car, m.
        span: arc lengths at time 0 that the traffic fills; the whole lane by default.
        articulated: share of tractors that pull a trailer.
    """
    path = street.lane_path(side, lane)
    traveled = float(speed.traveled(np.array(street.world.duration)))
    reach = max(abs(street.extent[0]), abs(street.extent[1]))
    low, high = span or (-reach - traveled, reach)
    forbidden = [(keep_free[0], keep_free[1] + traveled)] if keep_free else None
    mean = street.section.traffic_gap

    def draw_gap() -> float:
        if speed.before > 0.5:
            return 3.0 + street.rng.exponential(mean)
        return street.rng.uniform(1.5, 3.5)

    before = len(street.world.actors)
    make = partial(_make_vehicle, street)
    street.world.stream(
        path=path,
        speed=speed,
        low=low,
        high=high,
        gap=draw_gap,
        make=make,
        forbidden=forbidden,
    )
    if articulated:
        _hitch_trailers(street, before, articulated)


def _make_vehicle(street: Street) -> tuple[Shape, str]:
    kind = street.rng.choice(list(_SHARES), p=list(_SHARES.values()))
    if kind == 'motorcycle':
        return people.make_motorcycle(street.rng, rider=True), 'cycle.with_rider'
    make = {'car': vehicles.make_car, 'truck': trucks.make_truck, 'bus': vehicles.make_bus}[kind]
    return make(street.rng), 'vehicle.stopped'


def _hitch_trailers(street: Street, first: int, share: float) -> None:
    """Give trailers to trucks that have room behind them.

    Args:
        first: index of the lane's first actor; all later ones drive on it, too.
        share: of the trucks that pull one.
    """
    actors = street.world.actors
    column = sorted(actors[first:], key=lambda actor: actor.motion.offset)
    for follower, actor in zip([None, *column], column):
        trailer = trucks.make_trailer(street.rng)
        half = trailer.size[0] / 2
        middle = _rear(actor) - 0.3 - half
        limit = _front(follower) + 2.0 if follower else -np.inf
        if actor.shape.category != trucks.TRUCK or street.rng.random() >= share:
            continue
        if middle - half > limit:
            motion = replace(actor.motion, offset=middle)
            actors.append(Actor(trailer, motion, actor.state))


def _front(actor: Actor) -> float:
    """Arc length of an actor's front at time 0, m."""
    return actor.motion.offset + actor.shape.size[0] / 2


def _rear(actor: Actor) -> float:
    """Arc length of an actor's rear at time 0, m."""
    return actor.motion.offset - actor.shape.size[0] / 2


def walk(street: Street, side: int) -> None:
    """Walkers on parallel tracks of a sidewalk, and groups of people who stand or sit."""
    section, rng, world = street.section, street.rng, street.world
    begin = section.curb + 1.5
    end = section.curb + section.sidewalk - 1.1
    tracks = np.arange(begin, max(end, begin + 0.1), 0.85)
    reach = max(abs(street.extent[0]), abs(street.extent[1]))
    mean = 100.0 * len(tracks) / max(section.walkers, 1e-3)
    draw_gap = partial(_draw_walker_gap, street, mean)
    make = partial(_make_walker, street)
    for d in tracks:
        forward = rng.choice([-1, 1]) > 0
        speed = Speed(
            before=rng.uniform(0.8, 1.6),
        )
        heading = street.heading + (0.0 if forward else np.pi)
        path = Path((*street.point(0.0, side * d), heading))
        gaps = [
            (low - 1, high + 1) if forward else (-high - 1, -low + 1)
            for low, high, which in street.gaps
            if which == side
        ]
        world.stream(
            path=path,
            speed=speed,
            low=-reach,
            high=reach,
            gap=draw_gap,
            make=make,
            lift=CURB,
            forbidden=gaps,
        )

    length = street.extent[1] - street.extent[0]
    for _ in range(rng.poisson(section.standing * length / 100 / 2)):
        _place_group(street, side)


def _place_group(street: Street, side: int) -> None:
    """People who stand or sit together on the sidewalk."""
    section, rng = street.section, street.rng
    s = rng.uniform(*street.extent)
    d = section.curb + rng.choice([0.6, section.sidewalk - 0.5])
    for _ in range(rng.integers(1, street.world.largest_group + 1)):
        place = s + rng.normal(0, 0.9)
        if street.is_open(place, side, 1.0):
            continue
        if rng.random() < 0.1:
            shape, state = people.make_sitting_person(rng), 'pedestrian.sitting_lying_down'
        else:
            shape, state = people.make_pedestrian(rng), 'pedestrian.standing'
        beside = side * (d + rng.normal(0, 0.15))
        yaw = rng.uniform(-np.pi, np.pi)
        street.stand(
            shape=shape,
            s=place,
            d=beside,
            yaw=yaw,
            lift=CURB,
            state=state,
        )


def _draw_walker_gap(street: Street, mean: float) -> float:
    """Meters to the next walker: people come in groups."""
    if street.rng.random() < 0.35:
        return street.rng.uniform(0.2, 0.9)
    return street.rng.exponential(1.5 * mean)


def _make_walker(street: Street) -> tuple[Shape, str]:
    draw = street.rng.random()
    if draw < 0.02:
        return people.make_stroller(street.rng), ''
    if draw < 0.035:
        return people.make_dog(street.rng), ''
    return people.make_pedestrian(street.rng), 'pedestrian.standing'


def cycle(street: Street, side: int, rate: float) -> None:
    """Cyclists in their strip, `rate` per 100 m."""
    section, rng = street.section, street.rng
    d = side * (section.median / 2 + section.lanes * LANE + section.strip / 2)
    path = Path((*street.point(0.0, d), street.heading + street.flow(side)))
    speed = Speed(rng.uniform(3.0, 6.0))
    reach = max(abs(street.extent[0]), abs(street.extent[1]))
    traveled = float(speed.traveled(np.array(street.world.duration)))

    def draw_gap() -> float:
        return 2.0 + rng.exponential(100.0 / rate)

    def make() -> tuple[Shape, str]:
        return people.make_bicycle(rng, rider=True), 'cycle.with_rider'

    street.world.stream(path, speed, -reach - traveled, reach, draw_gap, make)


def cross(street: Street, s: float, rate: float = 6.0) -> None:
    """A crosswalk at s with walkers on it."""
    rng, world = street.rng, street.world
    half = street.section.curb
    for d in np.arange(-half + 0.5, half, 1.2):
        world.paint(*street.point(s, d), street.heading, 3.0, 0.6, MARKING)

    def draw_gap() -> float:
        return rng.uniform(0.4, 2.0) + rng.exponential(20.0 / rate)

    make = partial(_make_walker, street)
    for place in (s - 1.1, s - 0.3, s + 0.5, s + 1.3):
        sign = rng.choice([-1, 1])
        start = street.point(place, -sign * half)
        path = Path((*start, street.heading + sign * np.pi / 2))
        speed = Speed(
            before=rng.uniform(0.8, 1.5),
        )
        low = -0.9 * world.duration
        world.stream(
            path=path,
            speed=speed,
            low=low,
            high=2 * half - 1.0,
            gap=draw_gap,
            make=make,
        )
