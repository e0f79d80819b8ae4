"""Unlabeled things along streets that resemble barriers and people from afar."""

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
    """Something long and low like a barrier, or upright and narrow like a person; x runs along."""
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


# how each is made, and its share
_KINDS: dict[str, tuple[Callable[[np.random.Generator], Shape], float]] = {
    'hedge': (_hedge, 0.22),
    'low wall': (_low_wall, 0.1),
    'fence': (_fence, 0.14),
    'rail': (_rail, 0.12),
    'post': (_post, 0.18),
    'shrub': (_shrub, 0.14),
    'board': (_board, 0.1),
}
