"""Shapes of things that stand in a street: cones, barriers, and clutter without annotations.

Means (length, width, height) as annotated in nuScenes: traffic cone 0.40 0.40 1.06, barrier 0.49
2.49 0.98 m (a barrier's long side is its width).
"""

from __future__ import annotations

import numpy as np

from stratified3d.simulation.objects.people import make_bicycle
from stratified3d.simulation.physics.materials import (
    BARK,
    CONCRETE,
    FACADE,
    FOLIAGE,
    GLASS,
    MESH,
    METAL,
    PAINT,
    PLASTIC,
    RETROREFLECTOR,
    RUBBER,
)
from stratified3d.simulation.physics.primitives import Shape

CONE = 'movable_object.trafficcone'
BARRIER = 'movable_object.barrier'
DEBRIS = 'movable_object.debris'
CART = 'movable_object.pushable_pullable'
RACK = 'static_object.bicycle_rack'


# height and width of the foot, m; radii of the body at its foot and at its top, m
_CONES = {
    'cone': (0.85, 0.42, 0.16, 0.03),
    'delineator': (1.2, 0.38, 0.06, 0.05),
    'drum': (1.05, 0.52, 0.25, 0.2),
}


def make_cone(rng: np.random.Generator) -> Shape:
    """A cone, a tall delineator or a drum: nuScenes annotates all as traffic cones."""
    kind = rng.choice(list(_CONES), p=[0.6, 0.25, 0.15])
    height, foot, low, high = _CONES[kind]
    height = float(np.clip(height + 0.12 * rng.standard_normal(), 0.5, 1.5))
    foot = float(np.clip(foot + 0.03 * rng.standard_normal(), 0.3, 0.6))
    shape = Shape(CONE, (foot, foot, height))
    shape.box((0, 0, 0.03), (foot, foot, 0.06), RUBBER, 1.5)
    shape.frustum((0, 0, height / 2 + 0.03), low, high, height - 0.06, PLASTIC)

    band = 0.62 * height
    radius = low + (high - low) * 0.62 + 0.012
    shape.frustum((0, 0, band), radius, radius - 0.015, 0.18, RETROREFLECTOR)
    return shape


_BARRIER_SIZES = {  # depth, width, height, m
    'jersey': (0.6, 2.9, 0.92),
    'plastic': (0.52, 2.0, 1.05),
    'trestle': (0.45, 2.3, 1.08),
}


def make_barrier(rng: np.random.Generator, kind: str) -> Shape:
    """A `'jersey'` (concrete), `'plastic'` (filled with water) or `'trestle'` (boards) barrier."""
    depth, width, height = _BARRIER_SIZES[kind]
    width *= 1 + 0.04 * rng.standard_normal()
    height *= 1 + 0.04 * rng.standard_normal()
    shape = Shape(BARRIER, (depth, width, height))
    if kind == 'trestle':
        for side in (-1, 1):
            y = side * (width / 2 - 0.15)
            shape.box((0, y, 0.04), (depth, 0.06, 0.08), METAL)
            shape.box((0, y, height / 2), (0.06, 0.06, height), METAL)
        shape.box((0, 0, height - 0.13), (0.05, width, 0.26), RETROREFLECTOR, 0.5)
        shape.box((0, 0, 0.5), (0.05, width, 0.12), PLASTIC)
        return shape

    material = CONCRETE if kind == 'jersey' else PLASTIC
    foot = (depth, width, 0.34)
    shape.tapered(
        center=(0, 0, 0.17),
        size=foot,
        taper=(0.12, 0.12, 0.0),
        material=material,
        shade=rng.uniform(0.7, 1.3),
    )
    center = (0, 0, 0.34 + (height - 0.34) / 2)
    wall = (depth * 0.55, width - 0.04, height - 0.34)
    shape.tapered(
        center=center,
        size=wall,
        taper=(0.05, 0.05, 0.0),
        material=material,
        shade=rng.uniform(0.7, 1.3),
    )
    return shape


def make_bicycle_rack(rng: np.random.Generator) -> Shape:
    """A rack with bicycles, annotated as one rack."""
    count = int(rng.integers(4, 8))
    shape = Shape(RACK, (1.9, 0.7 * count + 0.4, 1.15))
    for i in range(count):
        y = (i - (count - 1) / 2) * 0.7
        shape.box((0, y, 0.4), (0.9, 0.05, 0.8), METAL, 0.8)
        if rng.random() < 0.75:
            for kind, center, *rest in make_bicycle(rng, rider=False).parts:
                x, beside, z = center
                shape.parts.append((kind, (x, beside + y + 0.12, z), *rest))
    return shape


def make_cart(rng: np.random.Generator) -> Shape:
    """A cart or a wheeled bin, annotated but of no detection class."""
    shape = Shape(CART, (0.8, 0.62, 1.05))
    shade = rng.uniform(0.4, 1.4)
    shape.tapered((0, 0, 0.6), (0.75, 0.55, 0.8), (-0.05, -0.05, -0.03), PLASTIC, shade)
    for side in (-0.25, 0.25):
        shape.wheel(-0.25, side, 0.14, 0.06, RUBBER)
    return shape


def make_debris(rng: np.random.Generator) -> Shape:
    """A heap of bags, annotated but of no detection class."""
    shape = Shape(DEBRIS, (1.0, 0.9, 0.6))
    for _ in range(3):
        x, y = rng.uniform(-0.25, 0.25, 2)
        shape.ellipsoid((x, y, 0.25), (0.5, 0.45, 0.55), PLASTIC, rng.uniform(0.4, 1.0))
    return shape


# kinds of clutter and how often each one stands in a street
_CLUTTER = {
    'bin': 0.14,
    'cabinet': 0.14,
    'bollard': 0.2,
    'hydrant': 0.08,
    'planter': 0.12,
    'bench': 0.1,
    'column': 0.06,
    'box': 0.06,
    'machine': 0.05,
    'rock': 0.05,
}


def make_clutter(rng: np.random.Generator) -> Shape:
    """Something that resembles an object of interest from afar: unlabeled, as in the real data."""
    kind = rng.choice(list(_CLUTTER), p=list(_CLUTTER.values()))
    shape = Shape(None, (1.0, 1.0, 1.0))
    tall = rng.uniform(0.85, 1.15)
    bright = rng.uniform(0.4, 1.4)
    if kind == 'bin':
        shape.frustum((0, 0, 0.5 * tall), 0.25, 0.28, tall, PLASTIC, bright)
    elif kind == 'cabinet':
        size = (rng.uniform(0.4, 0.6), rng.uniform(0.6, 1.4), 1.2 * tall)
        shape.box((0, 0, 0.6 * tall), size, METAL, bright)
    elif kind == 'bollard':
        shape.frustum(
            center=(0, 0, 0.45 * tall),
            foot=0.09,
            top=0.09,
            height=0.9 * tall,
            material=METAL,
            shade=bright,
        )
        shape.ellipsoid((0, 0, 0.9 * tall), (0.22, 0.22, 0.16), METAL, bright)
    elif kind == 'hydrant':
        shape.frustum((0, 0, 0.35), 0.12, 0.1, 0.7, METAL, bright)
        shape.ellipsoid((0, 0, 0.72), (0.26, 0.26, 0.2), METAL, bright)
    elif kind == 'planter':
        size = (rng.uniform(0.7, 2.4), 0.8, 0.56)
        shape.tapered(
            center=(0, 0, 0.28),
            size=size,
            taper=(-0.05, -0.05, -0.05),
            material=CONCRETE,
            shade=bright,
        )
        shape.ellipsoid((0, 0, 0.85), (0.8, 0.7, 0.7 * tall), FOLIAGE)
    elif kind == 'bench':
        _add_bench(shape)
    elif kind == 'column':
        shape.frustum(
            center=(0, 0, 1.5 * tall),
            foot=0.55,
            top=0.55,
            height=3.0 * tall,
            material=PAINT,
            shade=bright,
        )
    elif kind == 'box':
        shape.frustum((0, 0, 0.5), 0.05, 0.05, 1.0, METAL)
        shape.box((0, 0, 1.25), (0.4, 0.5, 0.65), PAINT, bright)
    elif kind == 'machine':
        shape.box((0, 0, 0.9), (0.8, 1.0, 1.8), METAL, bright)
    else:
        shape.ellipsoid((0, 0, 0.3), (1.3, 1.0, 0.9 * tall), CONCRETE, bright)
    return shape


def _add_bench(shape: Shape) -> None:
    shape.box((0, 0, 0.45), (0.5, 1.7, 0.08), BARK)
    shape.box((-0.22, 0, 0.7), (0.06, 1.7, 0.4), BARK)
    for side in (-0.7, 0.7):
        shape.box((0, side, 0.21), (0.4, 0.08, 0.42), METAL)


def make_container(rng: np.random.Generator) -> Shape:
    """A skip or a shed: of a vehicle's size, but not a vehicle."""
    shape = Shape(None, (4.0, 2.0, 1.6))
    if rng.random() < 0.5:
        size = (rng.uniform(3.2, 5.5), 1.9, 1.5)
        shape.tapered((0, 0, 0.75), size, (-0.35, -0.35, -0.05), METAL, rng.uniform(0.4, 1))
    else:
        shape.box((0, 0, 1.25), (rng.uniform(2.5, 6.0), 2.3, 2.5), METAL, rng.uniform(0.4, 1.2))
    return shape


def make_tree(rng: np.random.Generator) -> Shape:
    """A trunk under a crown of a few overlapping ellipsoids."""
    shape = Shape(None, (4.0, 4.0, 8.0))
    trunk = rng.uniform(2.0, 3.4)
    crown = rng.uniform(3.0, 6.0)
    radius = rng.uniform(1.5, 3.2)
    tone = np.exp(rng.normal(0.2, 0.5))
    shape.frustum((0, 0, trunk / 2 + 0.4), rng.uniform(0.12, 0.28), 0.1, trunk + 0.8, BARK)
    for _ in range(4):
        x, y = rng.normal(0, 0.35 * radius, 2)
        z = trunk + crown * rng.uniform(0.3, 0.6)
        size = (1.5 * radius, 1.5 * radius, crown * rng.uniform(0.6, 0.9))
        shape.ellipsoid((x, y, z), size, FOLIAGE, tone)
    return shape


def make_bush(rng: np.random.Generator) -> Shape:
    """A bush; some are as large as a car or a person."""
    shape = Shape(None, (2.0, 2.0, 1.5))
    length = rng.uniform(0.7, 3.5)
    height = rng.uniform(0.7, 1.9)
    for x in np.linspace(-length / 3, length / 3, 3):
        center = (x, rng.normal(0, 0.12), height * 0.45)
        size = (length * 0.6, rng.uniform(0.8, 1.5), height)
        shape.ellipsoid(center, size, FOLIAGE, rng.uniform(0.6, 1.4))
    return shape


def make_pole(rng: np.random.Generator) -> Shape:
    """A lamp post, a sign or traffic lights."""
    kind = rng.choice(['lamp', 'sign', 'signal'], p=[0.4, 0.4, 0.2])
    shape = Shape(None, (0.3, 0.3, 5.0))
    if kind == 'lamp':
        shape.frustum((0, 0, 4.0), 0.12, 0.07, 8.0, METAL, 0.8)
        shape.box((0, 0.9, 7.9), (0.15, 2.0, 0.12), METAL, 0.8)
    elif kind == 'sign':
        shape.frustum((0, 0, 1.4), 0.04, 0.04, 2.8, METAL)
        shape.box((0.05, 0, 2.5), (0.03, 0.65, 0.65), RETROREFLECTOR)
    else:
        _add_traffic_lights(shape)
    return shape


def _add_traffic_lights(shape: Shape) -> None:
    """A pole with one signal on it and one on an arm over the road."""
    shape.frustum((0, 0, 2.6), 0.1, 0.09, 5.2, METAL)
    shape.box((0.1, 1.5, 5.1), (0.12, 3.2, 0.12), METAL)
    shape.box((0.15, 2.9, 4.9), (0.25, 0.35, 1.0), PLASTIC, 0.3)
    shape.box((0.15, 0, 2.6), (0.25, 0.35, 0.8), PLASTIC, 0.3)


def make_bus_shelter(rng: np.random.Generator) -> Shape:
    """A shelter of glass with a roof."""
    shape = Shape(None, (4.0, 1.5, 2.5))
    length = rng.uniform(3.0, 5.0)
    shape.box((0, 0, 2.45), (length, 1.5, 0.12), METAL)
    shape.box((0, 0.7, 1.25), (length, 0.04, 2.1), GLASS, 2.0)
    for x in (-length / 2 + 0.1, length / 2 - 0.1):
        shape.box((x, 0.6, 1.2), (0.1, 0.1, 2.4), METAL)
        shape.box((x, -0.1, 1.2), (0.08, 1.1, 1.5), RETROREFLECTOR if x > 0 else GLASS, 0.3)
    return shape


def make_building(rng: np.random.Generator, length: float, depth: float, height: float) -> Shape:
    """A block with bays, an overhang and shop windows; its front faces +y, centered on x."""
    shape = Shape(None, (length, depth, height))
    tone = np.exp(rng.normal(0.1, 0.55))
    shape.box((0, 0, height / 2 - 1.0), (length, depth, height + 2.0), FACADE, tone)
    bay = rng.uniform(3.0, 6.0)
    for x in np.arange(-length / 2 + bay / 2, length / 2 - 0.5, bay):
        center = (x, depth / 2 + 0.15, height / 2 - 0.5)
        shape.box(center, (0.5, 0.3, height + 1.0), FACADE, tone * 0.8)
    if rng.random() < 0.6:
        shape.box((0, depth / 2 + 0.01, 1.4), (length * 0.9, 0.04, 1.9), GLASS, 1.5)
    if rng.random() < 0.5:
        shape.box((0, depth / 2 + 0.6, 3.4), (length * 0.85, 1.2, 0.2), METAL, 0.6)
    return shape


def make_wall(length: float, height: float, material: int = CONCRETE) -> Shape:
    """A straight wall along x (material MESH: a fence)."""
    shape = Shape(None, (length, 0.2, height))
    if material == MESH:
        shape.box((0, 0, height / 2), (length, 0.03, height), MESH)
        for x in np.arange(-length / 2, length / 2 + 0.1, 2.5):
            shape.frustum((x, 0, height / 2), 0.04, 0.04, height, METAL)
    else:
        shape.box((0, 0, height / 2 - 0.2), (length, 0.25, height + 0.4), material)
    return shape


def make_slab(length: float, width: float, height: float, material: int) -> Shape:
    """A raised slab of sidewalk along x; its curbs are its sides."""
    shape = Shape(None, (length, width, height))
    shape.box((0, 0, height / 2 - 0.15), (length, width, height + 0.3), material)
    return shape
