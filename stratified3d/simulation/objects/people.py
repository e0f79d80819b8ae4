"""Shapes of pedestrians, cycles and animals, with the sizes that nuScenes annotates.

Means (length, width, height): pedestrian 0.73 0.66 1.76, bicycle 1.68 0.60 1.27, motorcycle 2.10
0.76 1.44 m (as in `vehicles`); the box of a cycle includes its rider.
"""

from __future__ import annotations

import numpy as np

from stratified3d.simulation.physics.materials import (
    CLOTH,
    MESH,
    METAL,
    PAINT,
    PLASTIC,
    RETROREFLECTOR,
    RUBBER,
    SKIN,
)
from stratified3d.simulation.physics.primitives import Shape, rotate_x, rotate_y

ADULT = 'human.pedestrian.adult'
CHILD = 'human.pedestrian.child'
WORKER = 'human.pedestrian.construction_worker'
POLICE = 'human.pedestrian.police_officer'
STROLLER = 'human.pedestrian.stroller'
BICYCLE = 'vehicle.bicycle'
MOTORCYCLE = 'vehicle.motorcycle'
ANIMAL = 'animal'


def _person(
    shape: Shape,
    height: float,
    color: float,
    seat: float = 0.0,
    x: float = 0.0,
    lean: float = 0.0,
    swing: float = 0.0,
    girth: float = 1.0,
) -> None:
    """Add head, torso, arms and legs.

    Args:
        height, color: of the person, m, and of the clothes.
        seat: height of a rider's hips, m; 0 for who stands.
        x: of the hips, m.
        lean: how far the head is moved forward, m.
        swing: how far the legs swing, m.
        girth: factor on the width.
    """
    leg = 0.47 * height
    hip = seat or leg
    torso = 0.36 * height
    top = hip + torso
    foot_x = x + (0.18 if seat else 0.0)
    for side in (-1, 1):
        center = (foot_x, side * 0.1 * girth, hip - leg / 2 + 0.03)
        shape.frustum(
            center=center,
            foot=0.06,
            top=0.085 * girth,
            height=leg,
            material=CLOTH,
            shade=color * 0.7,
            sway=side * swing,
        )
        center = (x + lean * 0.7, side * 0.24 * girth, hip + torso * 0.55)
        size = (0.13, 0.13, torso * 1.05)
        shape.ellipsoid(center, size, CLOTH, color, sway=-0.6 * side * swing)

    center = (x + lean * 0.5, 0, hip + torso / 2)
    shape.ellipsoid(center, (0.28 * girth, 0.44 * girth, torso * 1.25), CLOTH, color)
    shape.ellipsoid(
        center=(x + lean, 0, top + 0.1 * height),
        size=(0.2, 0.17, 0.145 * height),
        material=SKIN,
    )


def make_pedestrian(rng: np.random.Generator, category: str | None = None) -> Shape:
    """An upright adult, child, worker or police officer, some with a bag or a backpack."""
    if category is None:
        category = str(rng.choice([ADULT, CHILD, POLICE], p=[0.93, 0.055, 0.015]))
    height = rng.normal(1.27, 0.12) if category == CHILD else rng.normal(1.75, 0.09)
    height = float(np.clip(height, 1.0, 1.98))
    scale = height / 1.75
    stretch = np.clip(rng.standard_normal(2), -2, 2)
    length = scale * (0.74 + 0.10 * stretch[0])
    width = scale * (0.66 + 0.06 * stretch[1])
    shape = Shape(category, (length, width, height))

    color = rng.choice([0.4, 0.8, 1.2, 2.0])
    girth = rng.uniform(0.85, 1.2)
    swing = 0.45 * length - 0.085 * girth * scale
    _person(shape, height, color, swing=swing, girth=girth * scale)
    extra = rng.random()
    if category == WORKER:  # a vest and a helmet
        shape.frustum(
            center=(0, 0, 0.66 * height),
            foot=0.19,
            top=0.19,
            height=0.1,
            material=RETROREFLECTOR,
        )
        shape.ellipsoid(
            center=(0, 0, 0.95 * height),
            size=(0.26, 0.22, 0.16),
            material=PLASTIC,
        )
    elif extra < 0.25:
        backpack = (-0.2 * scale, 0, 0.68 * height)
        shape.box(
            center=backpack,
            size=(0.18, 0.3, 0.42),
            material=CLOTH,
            shade=color * 0.6,
        )
    elif extra < 0.4:
        bag = (0.05, 0.3 * scale, 0.38 * height)
        shape.box(bag, (0.32, 0.12, 0.3), CLOTH, 1.3)
    return shape


def make_sitting_person(rng: np.random.Generator) -> Shape:
    """Someone who sits on a low wall or a bench."""
    shape = Shape(ADULT, (0.82, 0.65, 1.28))
    color = rng.choice([0.5, 1.0, 1.6])
    shape.ellipsoid((-0.15, 0, 0.8), (0.28, 0.44, 0.62), CLOTH, color)
    shape.ellipsoid((-0.12, 0, 1.16), (0.2, 0.17, 0.24), SKIN)
    for side in (-1, 1):
        shape.box((0.1, side * 0.11, 0.5), (0.45, 0.15, 0.15), CLOTH, 0.7)
        shape.frustum((0.3, side * 0.11, 0.25), 0.06, 0.07, 0.48, CLOTH, 0.7)
    return shape


def make_stroller(rng: np.random.Generator) -> Shape:
    """A stroller; nuScenes annotates it, no detection class covers it."""
    shape = Shape(STROLLER, (0.95, 0.55, 1.02))
    color = rng.uniform(0.4, 1.2)
    shape.tapered((0.05, 0, 0.62), (0.7, 0.42, 0.36), (-0.05, -0.05, -0.03), CLOTH, color)
    shape.box((-0.32, 0, 0.85), (0.28, 0.4, 0.06), METAL, 0.8, rotate_y(0.7))
    for x in (-0.28, 0.3):
        for side in (-0.2, 0.2):
            shape.wheel(x, side, 0.13, 0.05, RUBBER)
    return shape


def _vary(
    rng: np.random.Generator, mean: float, spread: float, low: float = -2.0, high: float = 2.0
) -> float:
    """A normal number around a mean, at most `low` and `high` standard deviations from it."""
    return mean + spread * np.clip(rng.standard_normal(), low, high)


def make_bicycle(rng: np.random.Generator, rider: bool) -> Shape:
    """A bicycle, parked or ridden."""
    length = _vary(rng, 1.70, 0.08)
    width = _vary(rng, 0.60, 0.05)
    height = _vary(rng, 1.72 if rider else 1.1, 0.06, low=-1.5)
    shape = Shape(BICYCLE, (length, width, height))
    base = length / 2 - 0.33
    for x in (-base, base):
        shape.wheel(x, 0.0, 0.33, 0.035, MESH)

    # the frame, the saddle and the handlebar
    shape.box(
        center=(0.05, 0, 0.62),
        size=(0.75, 0.04, 0.05),
        material=METAL,
        shade=1.0,
        rotation=rotate_y(-0.15),
    )
    shape.box(
        center=(-0.1, 0, 0.45),
        size=(0.6, 0.04, 0.05),
        material=METAL,
        shade=1.0,
        rotation=rotate_y(-0.75),
    )
    shape.box(
        center=(0.25, 0, 0.48),
        size=(0.05, 0.04, 0.62),
        material=METAL,
        shade=1.0,
        rotation=rotate_y(-0.3),
    )
    shape.box((-0.22, 0, 0.92), (0.25, 0.14, 0.06), PLASTIC, 0.4)
    shape.box((base - 0.12, 0, 1.02), (0.06, width - 0.04, 0.05), METAL)
    if rider:
        person = (height - 0.06) / 1.05
        color = rng.choice([0.5, 1.0, 1.8])
        seat = 0.88 * height / 1.72
        _person(shape, person, color, seat=seat, x=-0.2, lean=0.2)
    elif rng.random() < 0.4:  # a basket
        shape.box((base, 0, 0.85), (0.3, 0.3, 0.22), METAL, 0.6)
    return shape


def make_motorcycle(rng: np.random.Generator, rider: bool) -> Shape:
    """A motorcycle or a scooter, parked or ridden."""
    scooter = rng.random() < 0.5
    length = _vary(rng, 1.92 if scooter else 2.2, 0.09)
    height = _vary(rng, 1.62 if rider else 1.22, 0.05)
    width = _vary(rng, 0.78, 0.05)
    shape = Shape(MOTORCYCLE, (length, width, height))
    color = rng.choice([0.2, 0.6, 1.2])
    radius = 0.24 if scooter else 0.31
    rear = -length / 2
    for x in (rear + radius, length / 2 - radius):
        shape.wheel(x, 0.0, radius, 0.14, RUBBER)

    body = (length * 0.5, 0.34, 0.45)
    shape.tapered(
        center=(-0.2 * length, 0, 0.56),
        size=body,
        taper=(0.1, 0.0, 0.03),
        material=PAINT,
        shade=color,
    )
    shape.box(
        center=(-0.1 * length, 0, 0.8),
        size=(length * 0.36, 0.26, 0.1),
        material=PLASTIC,
        shade=0.4,
    )
    shield = (0.16, 0.36 if scooter else 0.2, 0.75)
    shape.box((length * 0.24, 0, 0.68), shield, PAINT, color, rotate_y(-0.4))
    handlebar = (length * 0.17, 0, 1.02)
    shape.frustum(
        center=handlebar,
        foot=0.03,
        top=0.03,
        height=width - 0.04,
        material=METAL,
        shade=1.0,
        rotation=rotate_x(np.pi / 2),
    )
    shape.box((rear + 0.06, 0, 0.5), (0.03, 0.2, 0.16), RETROREFLECTOR)
    if rng.random() < 0.4:  # a top case
        shape.box((rear + 0.25, 0, 0.95), (0.36, 0.4, 0.3), PLASTIC, 0.6)
    if rider:
        _person(shape, height + 0.05, color + 0.5, seat=0.78, x=-0.2, lean=0.15)
    return shape


def make_dog(rng: np.random.Generator) -> Shape:
    """A dog on a walk."""
    shape = Shape(ANIMAL, (0.85, 0.32, 0.62))
    shape.ellipsoid((0, 0, 0.42), (0.66, 0.26, 0.28), CLOTH, rng.uniform(0.5, 1.6))
    shape.ellipsoid((0.33, 0, 0.54), (0.24, 0.16, 0.16), CLOTH)
    for x in (-0.22, 0.22):
        for side in (-0.08, 0.08):
            shape.frustum((x, side, 0.16), 0.03, 0.04, 0.32, CLOTH, sway=0.08 * np.sign(side * x))
    return shape
