"""Shapes of cars and buses, with the size statistics of nuScenes' annotations.

Mean (length, width, height) per class as annotated in nuScenes (the anchors of CBGS,
arXiv:1908.09492, table 2): car 4.61 1.95 1.72, truck 6.74 2.46 2.73, bus 11.19 2.94 3.47, trailer
12.01 2.87 3.82, construction vehicle 6.38 2.73 3.13.
"""

from __future__ import annotations

import numpy as np

from stratified3d.simulation.physics.materials import (
    GLASS,
    PAINT,
    PLASTIC,
    RETROREFLECTOR,
    RUBBER,
)
from stratified3d.simulation.physics.primitives import Shape

CAR = 'vehicle.car'
BUS = 'vehicle.bus.rigid'
BENDY_BUS = 'vehicle.bus.bendy'


def draw_size(
    rng: np.random.Generator, mean: tuple[float, float, float], spread: float
) -> tuple[float, float, float]:
    """Length, width, height around a mean, m; length varies most, as in nuScenes."""
    length, width, height = mean
    jitter = np.clip(rng.standard_normal(3), -2.0, 2.0)
    return (
        length * (1 + spread * jitter[0]),
        width * (1 + 0.45 * spread * jitter[1]),
        height * (1 + 0.6 * spread * jitter[2]),
    )


def draw_color(rng: np.random.Generator) -> float:
    """Reflectance factor of a paint: black to white."""
    return float(rng.choice([0.12, 0.3, 0.6, 1.0, 1.7, 2.2], p=[0.2, 0.15, 0.2, 0.2, 0.15, 0.1]))


def add_wheels(
    shape: Shape, xs: list[float], width: float, radius: float, thickness: float = 0.22
) -> None:
    """Add a pair of wheels at each x, flush with `width`."""
    for x in xs:
        for side in (-1, 1):
            shape.wheel(x, side * (width / 2 - thickness / 2 - 0.03), radius, thickness, RUBBER)


def add_plates(shape: Shape, length: float, z: float) -> None:
    """Add license plates at both ends of a vehicle, z m above the ground."""
    for x in (-length / 2 + 0.02, length / 2 - 0.02):
        shape.box((x, 0.0, z), (0.03, 0.48, 0.12), RETROREFLECTOR)


# length, width, height, m
_CAR_SIZES = {
    'sedan': (4.75, 1.92, 1.52),
    'hatchback': (4.15, 1.86, 1.57),
    'estate': (4.75, 1.92, 1.60),
    'suv': (4.72, 2.02, 1.84),
    'minivan': (4.85, 2.02, 1.98),
}
# shares of the length before and behind the cabin
_CAR_ENDS = {
    'sedan': (0.28, 0.17),
    'hatchback': (0.25, 0.02),
    'estate': (0.26, 0.02),
    'suv': (0.25, 0.02),
    'minivan': (0.13, 0.02),
}
# insets of the windshield and the rear window, m
_CAR_WINDOWS = {
    'sedan': (0.75, 0.55),
    'hatchback': (0.7, 0.3),
    'estate': (0.7, 0.22),
    'suv': (0.6, 0.25),
    'minivan': (0.75, 0.12),
}


def make_car(rng: np.random.Generator) -> Shape:
    """A sedan, hatchback, station wagon, SUV or minivan."""
    kind = rng.choice(list(_CAR_SIZES), p=[0.34, 0.2, 0.12, 0.24, 0.1])
    length, width, height = size = draw_size(rng, _CAR_SIZES[kind], 0.05)
    shape = Shape(CAR, size)
    color = draw_color(rng)
    waist = height * rng.uniform(0.56, 0.62)
    is_suv = kind == 'suv'
    clearance = 0.2 + 0.05 * is_suv
    body = width - 0.1  # without the mirrors

    hull = waist - clearance
    center = (0, 0, clearance + hull / 2)
    shape.tapered(
        center=center,
        size=(length, body, hull),
        taper=(0.22, 0.12, 0.06),
        material=PAINT,
        shade=color,
    )
    _add_cabin(shape, kind, body, waist, color)
    add_wheels(shape, [length * 0.31, -length * 0.30], body, 0.33 + 0.05 * is_suv)
    add_plates(shape, length, 0.55)
    return shape


def _add_cabin(shape: Shape, kind: str, body: float, waist: float, color: float) -> None:
    """A car's windows, roof, door pillars and mirrors; `body` m wide, from height `waist` m up."""
    length, width, height = shape.size
    front, rear = _CAR_ENDS[kind]
    front_inset, rear_inset = _CAR_WINDOWS[kind]
    cabin = length * (1 - front - rear)
    x = length * (rear - front) / 2
    glass = height - waist
    center = (x, 0, waist + glass / 2 - 0.02)
    taper = (front_inset, rear_inset, 0.14)
    shape.tapered(
        center=center,
        size=(cabin, body - 0.12, glass),
        taper=taper,
        material=GLASS,
        shade=color,
    )

    roof = cabin - front_inset - rear_inset
    center = (x + (rear_inset - front_inset) / 2, 0, height - 0.03)
    shape.box(
        center=center,
        size=(roof, body - 0.40, 0.06),
        material=PAINT,
        shade=color,
    )

    for side in (-1, 1):
        pillar = (x - 0.1, side * (body / 2 - 0.15), waist + glass * 0.4)
        shape.box(
            center=pillar,
            size=(0.12, 0.08, glass * 0.8),
            material=PAINT,
            shade=color,
        )
        mirror = (x + cabin / 2 - 0.55, side * (width / 2 - 0.09), waist + 0.08)
        shape.box(mirror, (0.12, 0.18, 0.14), PAINT, color)


_BUS_SIZES = {'city': (11.9, 2.95, 3.35), 'coach': (12.4, 2.98, 3.8), 'mini': (7.2, 2.5, 3.0)}


def make_bus(rng: np.random.Generator) -> Shape:
    """A city bus, coach or minibus."""
    kind = rng.choice(list(_BUS_SIZES), p=[0.65, 0.2, 0.15])
    length, width, height = size = draw_size(rng, _BUS_SIZES[kind], 0.05)
    shape = Shape(BUS, size)
    color = draw_color(rng)
    body = width - 0.25
    waist = height * (0.52 if kind == 'coach' else 0.42)
    hull = (0, 0, 0.35 + (waist - 0.35) / 2)
    shape.tapered(
        center=hull,
        size=(length, body, waist - 0.35),
        taper=(0.03, 0.03, 0.0),
        material=PAINT,
        shade=color,
    )

    upper = height - waist
    front = 0.6 if kind == 'mini' else 0.2
    windows = (0, 0, waist + upper * 0.4)
    size = (length - 0.06, body - 0.06, upper * 0.8)
    shape.tapered(
        center=windows,
        size=size,
        taper=(front, 0.06, 0.05),
        material=GLASS,
        shade=0.8,
    )
    roof = (-0.1, 0, height - upper * 0.1)
    size = (length - 0.5, body - 0.1, upper * 0.2)
    shape.tapered(
        center=roof,
        size=size,
        taper=(0.15, 0.1, 0.12),
        material=PAINT,
        shade=color,
    )
    _add_bus_details(shape, body, waist, color)
    add_wheels(shape, [length * 0.30, -length * 0.27], body, 0.48, 0.3)
    add_plates(shape, length, 0.6)
    return shape


def _add_bus_details(shape: Shape, body: float, waist: float, color: float) -> None:
    """Pillars between the windows, and mirrors."""
    length, width, height = shape.size
    upper = height - waist
    for x in np.arange(-length / 2 + 0.15, length / 2 - 0.4, 1.6):
        for side in (-1, 1):
            pillar = (x, side * (body / 2 - 0.06), waist + upper * 0.4)
            shape.box(pillar, (0.18, 0.1, upper * 0.8), PAINT, color)
    for side in (-1, 1):
        mirror = (length / 2 - 0.12, side * (width / 2 - 0.07), height * 0.6)
        shape.box(mirror, (0.15, 0.14, 0.45), PLASTIC, 0.3)
