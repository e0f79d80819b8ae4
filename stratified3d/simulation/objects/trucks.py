"""Shapes of trucks and trailers; sizes as in `vehicles`."""

from __future__ import annotations

import numpy as np

from stratified3d.simulation.objects.vehicles import (
    add_plates,
    add_wheels,
    draw_color,
    draw_size,
)
from stratified3d.simulation.physics.materials import (
    GLASS,
    METAL,
    PAINT,
    PLASTIC,
    RETROREFLECTOR,
)
from stratified3d.simulation.physics.primitives import Shape, rotate_y

TRUCK = 'vehicle.truck'
TRAILER = 'vehicle.trailer'


def _cab(
    shape: Shape, front: float, length: float, width: float, height: float, color: float
) -> None:
    """A truck's cab whose front is at x = front."""
    x = front - length / 2
    half = (height - 0.45) * 0.5
    lower = (x, 0, 0.45 + (height - 0.45) * 0.25)
    shape.tapered(lower, (length, width, half), (0.05, 0, 0.02), PAINT, color)

    upper = (x - 0.02, 0, 0.45 + (height - 0.45) * 0.75)
    material = GLASS if color < 0.5 else PAINT
    shape.tapered(upper, (length - 0.06, width - 0.04, half), (0.45, 0.02, 0.1), material, color)
    for side in (-1, 1):
        mirror = (front - 0.25, side * (width / 2 + 0.05), height * 0.65)
        shape.box(mirror, (0.12, 0.14, 0.4), PLASTIC, 0.3)


# length, width, height, m
_TRUCK_SIZES = {
    'pickup': (5.6, 2.1, 1.95),
    'van': (5.9, 2.2, 2.55),
    'box': (8.0, 2.6, 3.3),
    'flatbed': (7.6, 2.55, 2.7),
    'tipper': (7.6, 2.65, 3.1),
    'tractor': (6.6, 2.7, 3.4),
}


def make_truck(rng: np.random.Generator) -> Shape:
    """A pick-up, van, box truck, flatbed, dump truck or a semi-trailer's tractor."""
    kind = rng.choice(list(_TRUCK_SIZES), p=[0.24, 0.2, 0.27, 0.1, 0.1, 0.09])
    size = draw_size(rng, _TRUCK_SIZES[kind], 0.09)
    shape = Shape(TRUCK, size)
    color = draw_color(rng)
    cargo = draw_color(rng)
    if kind == 'pickup':
        _add_pickup(shape, color)
    elif kind == 'van':
        _add_van(shape, color)
    else:
        _add_truck(shape, kind, color, cargo)
    add_plates(shape, size[0], 0.6)
    return shape


def _add_pickup(shape: Shape, color: float) -> None:
    length, width, height = shape.size
    inner = width - 0.2
    waist = height * 0.58
    hull = (0, 0, 0.3 + (waist - 0.3) / 2)
    shape.tapered(hull, (length, inner, waist - 0.3), (0.15, 0.03, 0.04), PAINT, color)

    glass = height - waist
    cabin = (0.05 * length, 0, waist + glass / 2)
    shape.tapered(cabin, (length * 0.4, inner - 0.1, glass), (0.6, 0.12, 0.14), GLASS, color)
    shape.box((0.0, 0, height - 0.03), (length * 0.24, inner - 0.4, 0.06), PAINT, color)
    add_wheels(shape, [0.31 * length, -0.29 * length], inner, 0.4)


def _add_van(shape: Shape, color: float) -> None:
    length, width, height = shape.size
    half = length / 2
    inner = width - 0.2
    body = (-0.1 * length, 0, 0.35 + (height - 0.35) / 2)
    shape.tapered(body, (length * 0.8, inner, height - 0.35), (0.5, 0.04, 0.12), PAINT, color)

    hood = (half - 0.14 * length, 0, 0.75)
    shape.tapered(hood, (length * 0.28, inner, 0.9), (0.3, 0, 0.05), PAINT, color)
    windshield = (half - 0.3 * length, 0, height * 0.62)
    shape.tapered(windshield, (length * 0.24, inner - 0.08, 0.5), (0.5, 0, 0.06), GLASS)
    add_wheels(shape, [0.32 * length, -0.3 * length], inner, 0.36)


def _add_truck(shape: Shape, kind: str, color: float, cargo: float) -> None:
    """A cab, a frame, wheels, and what this kind of truck carries behind the cab."""
    length, width, height = shape.size
    half = length / 2
    inner = width - 0.2
    is_tractor = kind == 'tractor'
    cab = 2.4 if is_tractor else 2.0
    top = height if is_tractor else min(height, 2.75)
    _cab(shape, half, cab, inner, top, color)
    shape.box(
        center=(-0.05 * length, 0, 0.8),
        size=(length * 0.88, 0.9, 0.3),
        material=METAL,
        shade=0.4,
    )

    bed = length - cab - 0.15
    middle = -half + bed / 2
    _add_cargo(shape, kind, bed, middle, cargo)
    axles = [half - 1.1, -half + 1.2]
    if length > 7:
        axles = [half - 1.2, -half + 1.1, -half + 2.2]
    add_wheels(shape, axles, width, 0.5, 0.3)


def _add_cargo(shape: Shape, kind: str, bed: float, middle: float, color: float) -> None:
    """What lies on a truck's bed, `bed` m long around x = middle."""
    _, width, height = shape.size
    tall = height - 1.1
    center = 1.1 + tall / 2
    if kind == 'box':
        size = (bed, width, height - 1.0)
        shape.box(
            center=(middle, 0, 1.0 + (height - 1.0) / 2),
            size=size,
            material=PAINT,
            shade=color,
        )
    elif kind == 'flatbed':
        shape.box((middle, 0, 1.1), (bed, width, 0.25), METAL, 0.7)
        load = (middle - bed * 0.15, 0, 1.1 + tall * 0.4)
        shape.box(
            center=load,
            size=(bed * 0.5, width * 0.8, tall * 0.7),
            material=PLASTIC,
            shade=color,
        )
        front_wall = (middle + bed / 2 - 0.05, 0, center)
        shape.box(front_wall, (0.08, width, tall), METAL, 0.6)
    elif kind == 'tipper':
        size = (bed - 0.5, width - 0.3, tall)
        shape.tapered(
            center=(middle + 0.05, 0, center),
            size=size,
            taper=(-0.2, -0.3, -0.14),
            material=METAL,
            shade=color,
        )


_TRAILER_SIZES = {
    'box': (13.4, 2.9, 4.0),
    'container': (12.6, 2.8, 4.0),
    'tank': (11.5, 2.85, 3.7),
    'small': (6.0, 2.3, 2.7),
}


def make_trailer(rng: np.random.Generator) -> Shape:
    """A box trailer, container chassis, tanker or a small drawbar trailer."""
    kind = rng.choice(list(_TRAILER_SIZES), p=[0.4, 0.25, 0.15, 0.2])
    length, width, height = size = draw_size(rng, _TRAILER_SIZES[kind], 0.07)
    shape = Shape(TRAILER, size)
    color = draw_color(rng)
    half = length / 2
    floor = 0.7 if kind == 'small' else 1.25
    shape.box(
        center=(0, 0, floor - 0.12),
        size=(length * 0.97, width * 0.45, 0.25),
        material=METAL,
        shade=0.5,
    )

    tall = height - floor
    if kind == 'tank':
        radius = tall / 2
        axis = rotate_y(np.pi / 2)
        shape.frustum(
            center=(0, 0, height - radius),
            foot=radius,
            top=radius,
            height=length - 0.1,
            material=METAL,
            shade=1.3,
            rotation=axis,
        )
        shape.box((0, 0, floor), (length * 0.9, width, 0.12), METAL, 0.5)
    else:
        shape.box((0, 0, floor + tall / 2), (length, width, tall), PAINT, color)
    _add_chassis(shape, kind == 'small')
    shape.box(
        center=(-half + 0.02, 0, floor - 0.35),
        size=(0.06, width * 0.9, 0.15),
        material=RETROREFLECTOR,
        shade=0.7,
    )
    return shape


def _add_chassis(shape: Shape, is_small: bool) -> None:
    """A trailer's wheels, and its legs and side guards or its drawbar."""
    length, width, _ = shape.size
    half = length / 2
    if is_small:
        add_wheels(shape, [-0.4, 0.4], width, 0.33, 0.3)
        shape.box((half - 0.2, 0, 0.5), (0.4, 0.1, 0.1), METAL)
        return
    add_wheels(shape, [-half + 1.2, -half + 2.4, -half + 3.6], width, 0.5, 0.3)
    for side in (-1, 1):
        shape.box((half - 2.6, side * 0.8, 0.6), (0.15, 0.15, 1.2), METAL)
        guard = (-0.5, side * (width / 2 - 0.06), 0.8)
        shape.box(guard, (length * 0.4, 0.06, 0.4), METAL, 0.6)
