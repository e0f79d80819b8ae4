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
from stratified3d.simulation.scene import Scene

TRAIN_LAYOUTS = {
    layout.__name__: layout
    for layout in (straight, junction, car_park, promenade, highway, turning)
}
VAL_LAYOUTS = {layout.__name__: layout for layout in (t_junction, boulevard)}
LAYOUTS = TRAIN_LAYOUTS | VAL_LAYOUTS


def build_scene(layout: str, key: tuple[int, int], duration: float) -> Scene:
    """Build a scene of one layout; the same arguments give the same scene anywhere.

    Args:
        layout: a key of LAYOUTS.
        key: (seed, scene number), of the layout's random numbers.
        duration: s that it lasts.
    Raises:
        ValueError: there is no such layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout '{layout}': use one of {', '.join(LAYOUTS)}")
    rng = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
    traffic_side = int(rng.choice([-1, 1]))
    tilt = tuple(rng.normal(0.0, 0.007, 2))
    pace = 18.0 if layout == 'highway' else 10.0
    reach = street_reach(duration, pace) + 70.0
    world = World(rng, reach, duration, traffic_side=traffic_side)
    ego = LAYOUTS[layout](world)
    return world.finish(ego, tilt)
