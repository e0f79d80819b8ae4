"""Unlabeled things along streets that resemble vehicles, barriers and people from afar."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stratified3d.simulation.objects.furniture import make_wall
from stratified3d.simulation.physics.materials import (
    BARK,
    CONCRETE,
    FOLIAGE,
    MESH,
    METAL,
    PAINT,
    PLASTIC,
)
from stratified3d.simulation.physics.primitives import Shape


def make_lookalike(rng: np.random.Generator) -> Shape:
    """Something as large as a car, long and low like a barrier, or as narrow as a person.

    Its x axis runs along the street.
    """
    kinds = list(_KINDS)
    shares = [share for _, share in _KINDS.values()]
    make, _ = _KINDS[kinds[rng.choice(len(kinds), p=shares)]]
    return make(rng)


def _hedge(rng: np.random.Generator) -> Shape:
    """A clipped hedge, now and then with gaps."""
    length, width, height = rng.uniform((1.5, 0.5, 0.6), (9.0, 1.1, 1.6))
    shape = Shape(None, (length, width, height))
    for x in np.arange(-length / 2 + 0.75, length / 2, 1.5):
        if rng.random() < 0.92:
            size = (1.5, width * rng.uniform(0.85, 1.1), height * rng.uniform(0.9, 1.05))
            shape.box((x, 0, size[2] / 2), size, FOLIAGE, rng.uniform(0.6, 1.4))
    if not shape.parts:
        shape.box((0, 0, height / 2), (length, width, height), FOLIAGE)
    return shape


def _low_wall(rng: np.random.Generator) -> Shape:
    """A garden wall or the parapet of a ramp."""
    return make_wall(rng.uniform(1.5, 9.0), rng.uniform(0.5, 1.3), CONCRETE)


def _fence(rng: np.random.Generator) -> Shape:
    """A fence of mesh, of a height between knee and head."""
    return make_wall(rng.uniform(2.0, 10.0), rng.uniform(0.7, 1.6), MESH)


def _rail(rng: np.random.Generator) -> Shape:
    """A guard rail on posts, or a railing of two bars."""
    length, height = rng.uniform((2.0, 0.65), (10.0, 1.15))
    shape = Shape(None, (length, 0.2, height))
    thick = rng.uniform(0.06, 0.31)
    shape.box((0, 0, height - thick / 2), (length, 0.08, thick), METAL, rng.uniform(0.6, 1.3))
    if rng.random() < 0.5:
        shape.box((0, 0, height / 2), (length, 0.05, 0.06), METAL)
    for x in np.arange(-length / 2 + 0.1, length / 2, 2.0):
        shape.box((x, 0, height / 2), (0.1, 0.1, height), METAL)
    return shape


def _post(rng: np.random.Generator) -> Shape:
    """A thick post, a meter for parking or a stone as tall as a person or a child."""
    height, radius = rng.uniform((1.0, 0.06), (2.1, 0.3))
    material = rng.choice([METAL, CONCRETE, PLASTIC, BARK])
    shape = Shape(None, (2 * radius, 2 * radius, height))
    top = radius * rng.uniform(0.6, 1.2)
    shape.frustum((0, 0, height / 2), radius, top, height, material, rng.uniform(0.5, 1.4))
    return shape


def _shrub(rng: np.random.Generator) -> Shape:
    """A shrub or a young tree of a person's height and breadth."""
    height, breadth = rng.uniform((1.0, 0.35), (2.2, 0.9))
    stem = rng.uniform(0.0, 0.4) * height
    shape = Shape(None, (breadth, breadth, height))
    if stem > 0.1:
        shape.frustum((0, 0, stem / 2), 0.04, 0.04, stem, BARK)
    size = (breadth, breadth * rng.uniform(0.8, 1.2), height - stem)
    shape.ellipsoid((0, 0, (height + stem) / 2), size, FOLIAGE, rng.uniform(0.6, 1.4))
    return shape


def _board(rng: np.random.Generator) -> Shape:
    """A sign board of a shop, a letter box or a switch box on a foot."""
    depth, width, height = rng.uniform((0.08, 0.4, 0.8), (0.5, 0.8, 1.7))
    shape = Shape(None, (depth, width, height))
    low = rng.choice([0.0, 0.4]) * height
    shape.box(
        (0, 0, (height + low) / 2), (depth, width, height - low), PAINT, rng.uniform(0.4, 1.4)
    )
    if low:
        shape.frustum((0, 0, low / 2), 0.05, 0.05, low, METAL)
    return shape


def _thicket(rng: np.random.Generator) -> Shape:
    """Shrubs that have grown into one, as large as a car."""
    length, width, height = rng.uniform((2.0, 1.2, 0.7), (6.0, 2.4, 2.2))
    shape = Shape(None, (length, width, height))
    for _ in range(rng.integers(3, 7)):
        size = rng.uniform(0.4, 0.8, 3) * (length, width, 1.0)
        size[2] = height * rng.uniform(0.7, 1.0)
        x, y = (np.array((length, width)) - size[:2]) / 2 * rng.uniform(-1, 1, 2)
        shape.ellipsoid((x, y, size[2] / 2 - 0.05), tuple(size), FOLIAGE, rng.uniform(0.6, 1.4))
    return shape


def _heap(rng: np.random.Generator) -> Shape:
    """A heap of earth or gravel, or a rock."""
    size = rng.uniform((1.2, 1.0, 0.5), (5.0, 3.0, 1.8))
    shape = Shape(None, tuple(size))
    shape.ellipsoid((0, 0, 0.0), (*size[:2], 2 * size[2]), CONCRETE, rng.uniform(0.5, 1.3))
    return shape


def _cabinet(rng: np.random.Generator) -> Shape:
    """A kiosk, a row of switch boxes or bins, or a covered load: one or two blocks."""
    length, width, height = rng.uniform((1.5, 0.6, 0.9), (4.8, 2.2, 2.3))
    shape = Shape(None, (length, width, height))
    material = rng.choice([PAINT, CONCRETE, PLASTIC])
    part = rng.uniform(0.4, 1.0) * length
    shape.box((0, 0, 0.3 * height), (length, width, 0.6 * height), material, rng.uniform(0.4, 1.4))
    place = (length - part) / 2 * rng.uniform(-1, 1)
    shape.box((place, 0, 0.5 * height), (part, width * 0.95, height), material)
    return shape


def make_verge(rng: np.random.Generator, length: float) -> Shape:
    """What runs along a road for tens of meters, x along it: a low wall, a bank or a rail.

    Walls and rails step up or down, banks are uneven and overgrown.
    """
    kind = rng.choice(['wall', 'bank', 'rail', 'fence'], p=[0.35, 0.35, 0.15, 0.15])
    height = rng.uniform(0.2, 1.3)
    width = rng.uniform(0.8, 2.4) if kind == 'bank' else rng.uniform(0.2, 0.6)
    shape = Shape(None, (length, width, height))
    shade = rng.uniform(0.6, 1.4)
    step = rng.uniform(2.0, 6.0)
    for x in np.arange(-length / 2 + step / 2, length / 2, step):
        high = height * rng.uniform(0.7, 1.0)
        if kind == 'bank':
            size = (step * rng.uniform(0.8, 1.6), width * rng.uniform(0.6, 1.0), 2 * high)
            shape.ellipsoid((x, rng.normal(0, 0.1), 0), size, FOLIAGE, rng.uniform(0.6, 1.4))
        elif kind == 'wall':
            shape.box((x, 0, high / 2 - 0.2), (step, width, high + 0.4), CONCRETE, shade)
        elif kind == 'fence':
            shape.box((x, 0, height / 2), (step, 0.03, height), MESH)
        else:
            shape.box((x, 0, height - 0.15), (step, 0.08, 0.3), METAL, shade)
            shape.box((x, 0, height / 2), (0.1, 0.1, height), METAL)
    return shape


# how each is made, and its share
_KINDS: dict[str, tuple[Callable[[np.random.Generator], Shape], float]] = {
    'hedge': (_hedge, 0.17),
    'low wall': (_low_wall, 0.08),
    'fence': (_fence, 0.11),
    'rail': (_rail, 0.09),
    'post': (_post, 0.15),
    'shrub': (_shrub, 0.12),
    'board': (_board, 0.08),
    'thicket': (_thicket, 0.1),
    'heap': (_heap, 0.05),
    'cabinet': (_cabinet, 0.05),
}
