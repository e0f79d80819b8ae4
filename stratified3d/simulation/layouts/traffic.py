"""Who is under way along a street: vehicles on lanes, walkers, cyclists."""

from __future__ import annotations

import numpy as np

from stratified3d.simulation.layouts.street import KERB, LANE, Street
from stratified3d.simulation.objects import people, vehicles
from stratified3d.simulation.physics.materials import MARKING
from stratified3d.simulation.physics.paths import Path, Speed
from stratified3d.simulation.physics.primitives import Shape


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
    travelled = float(speed.travelled(np.array(street.world.duration)))
    reach = max(abs(street.extent[0]), abs(street.extent[1]))
    low, high = span or (-reach - travelled, reach)
    forbidden = [(keep_free[0], keep_free[1] + travelled)] if keep_free else None
    mean = street.section.traffic_gap

    def gap() -> float:
        return (
            3.0 + street.rng.exponential(mean)
            if speed.before > 0.5
            else street.rng.uniform(1.5, 3.5)
        )

    def make() -> tuple[Shape, str]:
        return _vehicle(street)

    before = len(street.world.actors)
    street.world.stream(path, speed, low, high, gap, make, forbidden=forbidden)
    if articulated:
        _hitch(street, before, articulated)


def _vehicle(street: Street) -> tuple[Shape, str]:
    make = street.rng.choice(['car', 'truck', 'bus', 'motorcycle'], p=[0.76, 0.12, 0.06, 0.06])
    if make == 'motorcycle':
        return people.make_motorcycle(street.rng, True), 'cycle.with_rider'
    return getattr(vehicles, f'make_{make}')(street.rng), 'vehicle.stopped'


def _hitch(street: Street, first: int, share: float) -> None:
    """Give trailers to trucks that have room behind them."""
    actors = street.world.actors
    column = sorted(actors[first:], key=lambda actor: actor.motion.offset)
    for follower, actor in zip([None, *column], column):
        trailer = vehicles.make_trailer(street.rng)
        back = actor.motion.offset - actor.shape.size[0] / 2 - 0.3 - trailer.size[0] / 2
        limit = follower.motion.offset + follower.shape.size[0] / 2 + 2.0 if follower else -np.inf
        if (
            actor.shape.category == vehicles.TRUCK
            and street.rng.random() < share
            and back - trailer.size[0] / 2 > limit
        ):
            motion = type(actor.motion)(
                actor.motion.path, actor.motion.speed, back, actor.motion.lift
            )
            actors.append(type(actor)(trailer, motion, actor.state))


def walk(street: Street, side: int) -> None:
    """People on the pavement: walkers on parallel tracks, groups who stand, some who sit, prams and
    dogs."""
    section, rng, world = street.section, street.rng, street.world
    begin, end = section.kerb + 1.5, section.kerb + section.pavement - 1.1
    tracks = np.arange(begin, max(end, begin + 0.1), 0.85)
    reach = max(abs(street.extent[0]), abs(street.extent[1]))
    for d in tracks:
        direction = rng.choice([-1, 1])
        speed = Speed(rng.uniform(0.8, 1.6))
        path = Path(
            (*street.point(0.0, side * d), street.heading + (0.0 if direction > 0 else np.pi))
        )
        gaps = [
            (a - 1, b + 1) if direction > 0 else (-b - 1, -a + 1)
            for a, b, which in street.gaps
            if which == side
        ]
        mean = 100.0 * len(tracks) / max(section.walkers, 1e-3)
        world.stream(
            path,
            speed,
            -reach,
            reach,
            lambda mean=mean: _company(street, mean),
            lambda: _walker(street),
            KERB,
            gaps,
        )
    for _ in range(rng.poisson(section.standing * (street.extent[1] - street.extent[0]) / 100 / 2)):
        s, d = rng.uniform(*street.extent), section.kerb + rng.choice([0.6, section.pavement - 0.5])
        for _ in range(rng.integers(1, 5)):
            place = s + rng.normal(0, 0.9)
            if street.is_open(place, side, 1.0):
                continue
            sits = rng.random() < 0.1
            shape = people.make_sitting_person(rng) if sits else people.make_pedestrian(rng)
            state = 'pedestrian.sitting_lying_down' if sits else 'pedestrian.standing'
            street.stand(
                shape,
                place,
                side * (d + rng.normal(0, 0.15)),
                rng.uniform(-np.pi, np.pi),
                lift=KERB,
                state=state,
            )


def _company(street: Street, mean: float) -> float:
    """Meters to the next walker: people come in groups."""
    return (
        street.rng.uniform(0.2, 0.9)
        if street.rng.random() < 0.35
        else street.rng.exponential(1.5 * mean)
    )


def _walker(street: Street) -> tuple[Shape, str]:
    draw = street.rng.random()
    if draw < 0.02:
        return people.make_stroller(street.rng), ''
    if draw < 0.035:
        return people.make_dog(street.rng), ''
    return people.make_pedestrian(street.rng), 'pedestrian.standing'


def cycle(street: Street, side: int, rate: float) -> None:
    """Cyclists in their strip, `rate` per 100 m."""
    d = side * (street.section.median / 2 + street.section.lanes * LANE + street.section.strip / 2)
    path = Path((*street.point(0.0, d), street.heading + street.flow(side)))
    speed = Speed(street.rng.uniform(3.0, 6.0))
    reach = max(abs(street.extent[0]), abs(street.extent[1]))
    travelled = float(speed.travelled(np.array(street.world.duration)))
    street.world.stream(
        path,
        speed,
        -reach - travelled,
        reach,
        lambda: 2.0 + street.rng.exponential(100.0 / rate),
        lambda: (people.make_bicycle(street.rng, True), 'cycle.with_rider'),
    )


def cross(street: Street, s: float, rate: float = 6.0) -> None:
    """A zebra crossing at s whose walkers are on their way now."""
    half = street.section.kerb
    for d in np.arange(-half + 0.5, half, 1.2):
        street.world.paint(*street.point(s, d), street.heading, 3.0, 0.6, MARKING)
    for place in (s - 1.1, s - 0.3, s + 0.5, s + 1.3):
        sign = street.rng.choice([-1, 1])
        path = Path((*street.point(place, -sign * half), street.heading + sign * np.pi / 2))
        speed = Speed(street.rng.uniform(0.8, 1.5))
        street.world.stream(
            path,
            speed,
            -0.9 * street.world.duration,
            2 * half - 1.0,
            lambda: street.rng.uniform(0.4, 2.0) + street.rng.exponential(20.0 / rate),
            lambda: _walker(street),
        )
