"""Vehicles composed of convex primitives, with the size statistics of nuScenes' annotations.

Mean (length, width, height) per class as annotated in nuScenes (the anchors of CBGS,
arXiv:1908.09492, table 2): car 4.61 1.95 1.72, truck 6.74 2.46 2.73, bus 11.19 2.94 3.47, trailer
12.01 2.87 3.82, construction vehicle 6.38 2.73 3.13.
"""

from __future__ import annotations

import numpy as np

from stratified3d.simulation.physics.materials import (
    GLASS,
    METAL,
    PAINT,
    PLASTIC,
    RETROREFLECTOR,
    RUBBER,
)
from stratified3d.simulation.physics.primitives import Shape, rotate_y

CAR = 'vehicle.car'
TRUCK = 'vehicle.truck'
BUS = 'vehicle.bus.rigid'
BENDY_BUS = 'vehicle.bus.bendy'
TRAILER = 'vehicle.trailer'


def draw_size(
    rng: np.random.Generator, mean: tuple[float, float, float], spread: float
) -> tuple[float, float, float]:
    """Length, width, height around a mean; width and height vary less than length, in nuScenes as
    here."""
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


def _plates(shape: Shape, length: float, z: float) -> None:
    for x in (-length / 2 + 0.02, length / 2 - 0.02):
        shape.box((x, 0.0, z), (0.03, 0.48, 0.12), RETROREFLECTOR)


def make_car(rng: np.random.Generator) -> Shape:
    """Sedan, hatchback, estate, van-like or off-roader."""
    kind = rng.choice(
        ['sedan', 'hatchback', 'estate', 'suv', 'minivan'], p=[0.34, 0.2, 0.12, 0.24, 0.1]
    )
    mean = {
        'sedan': (4.75, 1.92, 1.52),
        'hatchback': (4.15, 1.86, 1.57),
        'estate': (4.75, 1.92, 1.60),
        'suv': (4.72, 2.02, 1.84),
        'minivan': (4.85, 2.02, 1.98),
    }[kind]
    length, width, height = size = draw_size(rng, mean, 0.05)
    shape, color = Shape(CAR, size), draw_color(rng)
    waist, clearance = height * rng.uniform(0.56, 0.62), 0.2 + 0.05 * (kind == 'suv')
    body = width - 0.1  # without the mirrors
    hull = waist - clearance
    shape.tapered(
        (0, 0, clearance + hull / 2), (length, body, hull), (0.22, 0.12, 0.06), PAINT, color
    )
    front, rear = {
        'sedan': (0.28, 0.17),
        'hatchback': (0.25, 0.02),
        'estate': (0.26, 0.02),
        'suv': (0.25, 0.02),
        'minivan': (0.13, 0.02),
    }[kind]
    cabin = length * (1 - front - rear)
    center = length * (rear - front) / 2
    lean = {
        'sedan': (0.75, 0.55),
        'hatchback': (0.7, 0.3),
        'estate': (0.7, 0.22),
        'suv': (0.6, 0.25),
        'minivan': (0.75, 0.12),
    }[kind]
    glass = height - waist
    shape.tapered(
        (center, 0, waist + glass / 2 - 0.02),
        (cabin, body - 0.12, glass),
        (*lean, 0.14),
        GLASS,
        color,
    )
    roof = cabin - lean[0] - lean[1]
    shape.box(
        (center + (lean[1] - lean[0]) / 2, 0, height - 0.03),
        (roof, body - 0.40, 0.06),
        PAINT,
        color,
    )
    for side in (-1, 1):  # door pillars and mirrors
        shape.box(
            (center - 0.1, side * (body / 2 - 0.15), waist + glass * 0.4),
            (0.12, 0.08, glass * 0.8),
            PAINT,
            color,
        )
        shape.box(
            (center + cabin / 2 - 0.55, side * (width / 2 - 0.09), waist + 0.08),
            (0.12, 0.18, 0.14),
            PAINT,
            color,
        )
    add_wheels(shape, [length * 0.31, -length * 0.30], body, 0.33 + 0.05 * (kind == 'suv'))
    _plates(shape, length, 0.55)
    return shape


def _cab(
    shape: Shape, front: float, length: float, width: float, height: float, color: float
) -> None:
    """A truck's cab whose front is at x = front."""
    x = front - length / 2
    shape.tapered(
        (x, 0, 0.45 + (height - 0.45) * 0.25),
        (length, width, (height - 0.45) * 0.5),
        (0.05, 0, 0.02),
        PAINT,
        color,
    )
    shape.tapered(
        (x - 0.02, 0, 0.45 + (height - 0.45) * 0.75),
        (length - 0.06, width - 0.04, (height - 0.45) * 0.5),
        (0.45, 0.02, 0.1),
        GLASS if color < 0.5 else PAINT,
        color,
    )
    for side in (-1, 1):
        shape.box(
            (front - 0.25, side * (width / 2 + 0.05), height * 0.65),
            (0.12, 0.14, 0.4),
            PLASTIC,
            0.3,
        )


def make_truck(rng: np.random.Generator) -> Shape:
    """Pick-up, box van, flatbed, tipper or a semi-trailer's tractor."""
    kind = rng.choice(
        ['pickup', 'van', 'box', 'flatbed', 'tipper', 'tractor'],
        p=[0.24, 0.2, 0.27, 0.1, 0.1, 0.09],
    )
    mean = {
        'pickup': (5.6, 2.1, 1.95),
        'van': (5.9, 2.2, 2.55),
        'box': (8.0, 2.6, 3.3),
        'flatbed': (7.6, 2.55, 2.7),
        'tipper': (7.6, 2.65, 3.1),
        'tractor': (6.6, 2.7, 3.4),
    }[kind]
    length, width, height = size = draw_size(rng, mean, 0.09)
    shape, color, cargo = Shape(TRUCK, size), draw_color(rng), draw_color(rng)
    half, inner = length / 2, width - 0.2
    if kind == 'pickup':
        waist = height * 0.58
        shape.tapered(
            (0, 0, 0.3 + (waist - 0.3) / 2),
            (length, inner, waist - 0.3),
            (0.15, 0.03, 0.04),
            PAINT,
            color,
        )
        shape.tapered(
            (0.05 * length, 0, waist + (height - waist) / 2),
            (length * 0.4, inner - 0.1, height - waist),
            (0.6, 0.12, 0.14),
            GLASS,
            color,
        )
        shape.box((0.0, 0, height - 0.03), (length * 0.24, inner - 0.4, 0.06), PAINT, color)
        add_wheels(shape, [0.31 * length, -0.29 * length], inner, 0.4)
    elif kind == 'van':
        shape.tapered(
            (-0.1 * length, 0, 0.35 + (height - 0.35) / 2),
            (length * 0.8, inner, height - 0.35),
            (0.5, 0.04, 0.12),
            PAINT,
            color,
        )
        shape.tapered(
            (half - 0.14 * length, 0, 0.75),
            (length * 0.28, inner, 0.9),
            (0.3, 0, 0.05),
            PAINT,
            color,
        )
        shape.tapered(
            (half - 0.3 * length, 0, height * 0.62),
            (length * 0.24, inner - 0.08, 0.5),
            (0.5, 0, 0.06),
            GLASS,
        )
        add_wheels(shape, [0.32 * length, -0.3 * length], inner, 0.36)
    else:
        cab = 2.0 if kind != 'tractor' else 2.4
        top = height if kind == 'tractor' else min(height, 2.75)
        _cab(shape, half, cab, inner, top, color)
        shape.box((-0.05 * length, 0, 0.8), (length * 0.88, 0.9, 0.3), METAL, 0.4)
        bed = length - cab - 0.15
        middle = -half + bed / 2
        if kind == 'box':
            shape.box(
                (middle, 0, 1.0 + (height - 1.0) / 2), (bed, width, height - 1.0), PAINT, cargo
            )
        elif kind == 'flatbed':
            shape.box((middle, 0, 1.1), (bed, width, 0.25), METAL, 0.7)
            shape.box(
                (middle - bed * 0.15, 0, 1.1 + (height - 1.1) * 0.4),
                (bed * 0.5, width * 0.8, (height - 1.1) * 0.7),
                PLASTIC,
                cargo,
            )
            shape.box(
                (middle + bed / 2 - 0.05, 0, 1.1 + (height - 1.1) / 2),
                (0.08, width, height - 1.1),
                METAL,
                0.6,
            )
        elif kind == 'tipper':
            shape.tapered(
                (middle + 0.05, 0, 1.1 + (height - 1.1) / 2),
                (bed - 0.5, width - 0.3, height - 1.1),
                (-0.2, -0.3, -0.14),
                METAL,
                cargo,
            )
        wheels = [half - 1.2, -half + 1.1, -half + 2.2] if length > 7 else [half - 1.1, -half + 1.2]
        add_wheels(shape, wheels, width, 0.5, 0.3)
    _plates(shape, length, 0.6)
    return shape


def make_bus(rng: np.random.Generator) -> Shape:
    """City bus, coach or minibus."""
    kind = rng.choice(['city', 'coach', 'mini'], p=[0.65, 0.2, 0.15])
    mean = {'city': (11.9, 2.95, 3.35), 'coach': (12.4, 2.98, 3.8), 'mini': (7.2, 2.5, 3.0)}[kind]
    length, width, height = size = draw_size(rng, mean, 0.05)
    shape, color, body = Shape(BUS, size), draw_color(rng), width - 0.25
    waist = height * (0.42 if kind != 'coach' else 0.52)
    shape.tapered(
        (0, 0, 0.35 + (waist - 0.35) / 2),
        (length, body, waist - 0.35),
        (0.03, 0.03, 0.0),
        PAINT,
        color,
    )
    shape.tapered(
        (0, 0, waist + (height - waist) * 0.4),
        (length - 0.06, body - 0.06, (height - waist) * 0.8),
        (0.2 if kind != 'mini' else 0.6, 0.06, 0.05),
        GLASS,
        0.8,
    )
    shape.tapered(
        (-0.1, 0, height - (height - waist) * 0.1),
        (length - 0.5, body - 0.1, (height - waist) * 0.2),
        (0.15, 0.1, 0.12),
        PAINT,
        color,
    )
    for x in np.arange(-length / 2 + 0.15, length / 2 - 0.4, 1.6):  # pillars between the windows
        for side in (-1, 1):
            shape.box(
                (x, side * (body / 2 - 0.06), waist + (height - waist) * 0.4),
                (0.18, 0.1, (height - waist) * 0.8),
                PAINT,
                color,
            )
    for side in (-1, 1):
        shape.box(
            (length / 2 - 0.12, side * (width / 2 - 0.07), height * 0.6),
            (0.15, 0.14, 0.45),
            PLASTIC,
            0.3,
        )
    add_wheels(shape, [length * 0.30, -length * 0.27], body, 0.48, 0.3)
    _plates(shape, length, 0.6)
    return shape


def make_trailer(rng: np.random.Generator) -> Shape:
    """Box trailer, container chassis, tanker or a small drawbar trailer."""
    kind = rng.choice(['box', 'container', 'tank', 'small'], p=[0.4, 0.25, 0.15, 0.2])
    mean = {
        'box': (13.4, 2.9, 4.0),
        'container': (12.6, 2.8, 4.0),
        'tank': (11.5, 2.85, 3.7),
        'small': (6.0, 2.3, 2.7),
    }[kind]
    length, width, height = size = draw_size(rng, mean, 0.07)
    shape, color, half = Shape(TRAILER, size), draw_color(rng), length / 2
    floor = 1.25 if kind != 'small' else 0.7
    shape.box((0, 0, floor - 0.12), (length * 0.97, width * 0.45, 0.25), METAL, 0.5)
    if kind == 'tank':
        radius = (height - floor) / 2
        shape.frustum(
            (0, 0, height - radius), radius, radius, length - 0.1, METAL, 1.3, rotate_y(np.pi / 2)
        )
        shape.box((0, 0, floor), (length * 0.9, width, 0.12), METAL, 0.5)
    else:
        shape.box(
            (0, 0, floor + (height - floor) / 2), (length, width, height - floor), PAINT, color
        )
    axles = [-half + 1.2, -half + 2.4, -half + 3.6] if kind != 'small' else [-0.4, 0.4]
    add_wheels(shape, axles, width, 0.5 if kind != 'small' else 0.33, 0.3)
    if kind != 'small':
        for side in (-1, 1):
            shape.box((half - 2.6, side * 0.8, 0.6), (0.15, 0.15, 1.2), METAL)
            shape.box((-0.5, side * (width / 2 - 0.06), 0.8), (length * 0.4, 0.06, 0.4), METAL, 0.6)
    else:
        shape.box((half - 0.2, 0, 0.5), (0.4, 0.1, 0.1), METAL)
    shape.box((-half + 0.02, 0, floor - 0.35), (0.06, width * 0.9, 0.15), RETROREFLECTOR, 0.7)
    return shape
