"""The layouts by name, and scenes built from them."""

from __future__ import annotations

import numpy as np

from stratified3d.simulation.layouts.outskirts import car_park, highway
from stratified3d.simulation.layouts.town import (
    boulevard,
    junction,
    promenade,
    straight,
    street_reach,
    t_junction,
    turning,
)
from stratified3d.simulation.layouts.world import World
from stratified3d.simulation.physics.scanners import MIXED, choose_mounting
from stratified3d.simulation.scene import Scene

TRAIN_LAYOUTS = {
    layout.__name__: layout
    for layout in (straight, junction, car_park, promenade, highway, turning)
}
VAL_LAYOUTS = {layout.__name__: layout for layout in (t_junction, boulevard)}
LAYOUTS = TRAIN_LAYOUTS | VAL_LAYOUTS
_OF_SENSOR = 1 << 62  # beside a scene's number: the key of what its sensor draws


def build_scene(
    layout: str, key: tuple[int, int], duration: float, sensor: str = 'nuscenes'
) -> Scene:
    """Build a scene of one layout; the same arguments give the same scene anywhere.

    Args:
        layout: a key of LAYOUTS.
        key: (seed, scene number), of the layout's random numbers.
        duration: s that it lasts.
        sensor: a key of MOUNTINGS, or 'mixed': another mounting in each scene, tilted more, in
            steeper streets with more unlabeled things that resemble objects, and larger groups of
            people.
    Raises:
        ValueError: there is no such layout or sensor.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout '{layout}': use one of {', '.join(LAYOUTS)}")
    rng = _generator(*key)
    sensor_rng = _generator(key[0], key[1] + _OF_SENSOR)
    mounting = choose_mounting(sensor, sensor_rng)
    is_mixed = sensor == MIXED
    traffic_side = int(rng.choice([-1, 1]))
    tilt = tuple(rng.normal(0.0, 0.015 if is_mixed else 0.007, 2))
    pace = 18.0 if layout == 'highway' else 10.0
    reach = street_reach(duration, pace) + 70.0
    world = World(
        rng,
        reach,
        duration,
        bend=sensor_rng.uniform(1.0, 5.0) if is_mixed else 1.5,
        traffic_side=traffic_side,
        lookalikes=sensor_rng.uniform(0.0, 14.0) if is_mixed else 0.0,
        largest_group=8 if is_mixed else 4,
    )
    ego = LAYOUTS[layout](world)
    return world.finish(ego, tilt, mounting)


def _generator(seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array((seed, number), np.uint64)))
