"""The layouts: which streets meet, what is built along them, who is under way, and what the ego car
does."""

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
    """Build one scene; the same arguments give the same scene anywhere.

    Args:
        layout: a key of LAYOUTS.
        key: (seed, scene number), of the layout's random numbers.
        duration: s that it lasts.
    Raises:
        ValueError: there is no such layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout '{layout}' is none of {', '.join(LAYOUTS)}")
    rng = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
    drive = int(rng.choice([-1, 1]))
    tilt = tuple(rng.normal(0.0, 0.007, 2))
    world = World(
        rng,
        street_reach(duration, 18.0 if layout == 'highway' else 10.0) + 70.0,
        duration,
        drive=drive,
    )
    ego = LAYOUTS[layout](world)
    return world.finish(ego, tilt)
