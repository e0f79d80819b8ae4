"""Shapes of construction vehicles; sizes as in `vehicles`."""

from __future__ import annotations

import numpy as np

from stratified3d.simulation.objects.vehicles import add_wheels, draw_size
from stratified3d.simulation.physics.materials import GLASS, METAL, PAINT
from stratified3d.simulation.physics.primitives import Shape, rotate_y, rotate_z

CONSTRUCTION = 'vehicle.construction'


def _add_beam(
    shape: Shape,
    begin: tuple[float, float],
    end: tuple[float, float],
    thickness: float,
    shade: float,
) -> None:
    """Add a part of an excavator's arm between two points (x, z) beside the cab."""
    dx = end[0] - begin[0]
    dz = end[1] - begin[1]
    center = ((begin[0] + end[0]) / 2, -0.3, (begin[1] + end[1]) / 2)
    size = (np.hypot(dx, dz) + 0.1, 0.9 * thickness, thickness)
    shape.box(center, size, PAINT, shade, rotate_y(-np.arctan2(dz, dx)))


_SIZES = {'excavator': (7.2, 2.8, 3.3), 'loader': (6.9, 2.7, 3.2), 'roller': (4.6, 2.3, 2.9)}


def make_construction_vehicle(rng: np.random.Generator) -> Shape:
    """An excavator, wheel loader or roller."""
    kind = rng.choice(list(_SIZES), p=[0.45, 0.35, 0.2])
    shape = Shape(CONSTRUCTION, draw_size(rng, _SIZES[kind], 0.1))
    yellow = rng.uniform(1.0, 1.6)
    if kind == 'excavator':
        _add_excavator(shape, yellow, rng.uniform(-0.25, 0.25))
    elif kind == 'loader':
        _add_loader(shape, yellow)
    else:
        _add_roller(shape, yellow)
    return shape


def _add_excavator(shape: Shape, yellow: float, yaw: float) -> None:
    """Tracks, a body rotated by `yaw` rad, a cab, an arm and its bucket."""
    length, width, height = shape.size
    half = length / 2
    rear = -half + 1.9
    for side in (-1, 1):
        track = (rear, side * (width / 2 - 0.28), 0.42)
        shape.tapered(track, (3.7, 0.55, 0.8), (0.3, 0.3, 0.0), METAL, 0.5)
    body = (2.7, width * 0.8, 1.1)
    shape.box(
        center=(rear - 0.2, 0, 1.45),
        size=body,
        material=PAINT,
        shade=yellow,
        rotation=rotate_z(yaw),
    )
    cab = (rear + 0.7, width * 0.25, 0.9 + (height - 0.9) / 2)
    shape.tapered(
        center=cab,
        size=(1.5, 1.0, height - 0.9),
        taper=(0.3, 0.1, 0.08),
        material=GLASS,
        shade=yellow,
    )

    elbow = (half - 1.5, height - 0.25)
    _add_beam(shape, (rear + 0.9, 1.5), elbow, 0.42, yellow)
    _add_beam(shape, elbow, (half - 0.6, 0.7), 0.34, yellow)
    shape.tapered(
        center=(half - 0.7, -0.3, 0.4),
        size=(0.9, 1.1, 0.7),
        taper=(0.3, 0.1, 0.0),
        material=METAL,
        shade=0.6,
    )


def _add_loader(shape: Shape, yellow: float) -> None:
    """Engine, front frame, cab, lift arms, bucket and wheels."""
    length, width, height = shape.size
    half = length / 2
    shape.box((-half + 1.2, 0, 1.35), (2.3, width * 0.75, 1.1), PAINT, yellow)
    shape.box((0.6, 0, 1.1), (2.2, width * 0.5, 0.7), PAINT, yellow)
    cab = (-half + 2.4, 0, 1.4 + (height - 1.4) / 2)
    shape.tapered(cab, (1.5, 1.4, height - 1.4), (0.2, 0.15, 0.1), GLASS, yellow)
    for side in (-1, 1):
        arm = (half - 1.5, side * 0.55, 1.15)
        shape.box(arm, (2.4, 0.2, 0.3), PAINT, yellow, rotate_y(0.3))
    shape.tapered((half - 0.5, 0, 0.55), (1.0, width, 1.0), (-0.0, 0.5, 0.0), METAL, 0.8)
    add_wheels(shape, [0.22 * length, -0.25 * length], width, 0.72, 0.55)


def _add_roller(shape: Shape, yellow: float) -> None:
    """Two drums, a body, and a roof on four posts."""
    length, width, height = shape.size
    half = length / 2
    for x in (half - 0.65, -half + 0.65):
        shape.wheel(x, 0.0, 0.62, width * 0.85, METAL, 0.6)
    shape.box((0, 0, 1.15), (length * 0.75, width * 0.7, 0.7), PAINT, yellow)
    shape.box((0, 0, height - 0.06), (1.9, width * 0.75, 0.1), PAINT, yellow)
    for x in (-0.85, 0.85):
        for side in (-1, 1):
            post = (x, side * width * 0.33, 1.5 + (height - 1.5) / 2)
            shape.box(post, (0.09, 0.09, height - 1.5), METAL)
