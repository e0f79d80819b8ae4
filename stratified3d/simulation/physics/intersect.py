"""Where one ray meets one convex primitive or the ground: closed forms, in the primitive's own
frame.

All take a ray o + t d as six numbers, d of unit length, and return the smallest t > 0 at which it
enters, MISS for none; a primitive that holds the origin is not seen. numba notices changes of a
kernel's own file only: after an edit here, touch raycast.py or delete __pycache__.
"""

from __future__ import annotations

import math

import numpy as np

from stratified3d.jit import compiled
from stratified3d.simulation.physics.primitives import BOX, FRUSTUM, TAPERED

MISS = np.inf
TINY = 1e-12


@compiled
def hit_box(ox, oy, oz, dx, dy, dz, hx, hy, hz):
    near, far = 0.0, MISS
    for o, d, h in ((ox, dx, hx), (oy, dy, hy), (oz, dz, hz)):
        if abs(d) < TINY:
            if abs(o) > h:
                return MISS
        else:
            middle, reach = -o / d, h / abs(d)
            near = max(near, middle - reach)
            far = min(far, middle + reach)
    return near if 0.0 < near <= far else MISS


@compiled
def _tapered_plane(side, hx, hy, hz, front, rear, sides):
    """Outward normal and offset of one of the six faces: n . p <= offset."""
    if side == 0:
        return 0.0, 0.0, 1.0, hz
    if side == 1:
        return 0.0, 0.0, -1.0, hz
    lean = (front if side == 2 else rear if side == 3 else sides) / (2.0 * hz)
    length = math.sqrt(1.0 + lean * lean)
    if side < 4:
        return (1.0 if side == 2 else -1.0) / length, 0.0, lean / length, (hx - lean * hz) / length
    return 0.0, (1.0 if side == 4 else -1.0) / length, lean / length, (hy - lean * hz) / length


@compiled
def hit_tapered(ox, oy, oz, dx, dy, dz, hx, hy, hz, front, rear, sides):
    near, far = 0.0, MISS
    for side in range(6):
        nx, ny, nz, offset = _tapered_plane(side, hx, hy, hz, front, rear, sides)
        gap = offset - (nx * ox + ny * oy + nz * oz)
        speed = nx * dx + ny * dy + nz * dz
        if abs(speed) < TINY:
            if gap < 0.0:
                return MISS
        elif speed > 0.0:
            far = min(far, gap / speed)
        else:
            near = max(near, gap / speed)
        if near > far:
            return MISS
    return near if near > 0.0 else MISS


@compiled
def hit_frustum(ox, oy, oz, dx, dy, dz, foot, top, h):
    best = MISS
    slope = (top - foot) / (2.0 * h)
    radius = 0.5 * (foot + top) + slope * oz
    a = dx * dx + dy * dy - (slope * dz) ** 2
    b = ox * dx + oy * dy - radius * slope * dz
    c = ox * ox + oy * oy - radius * radius
    root = b * b - a * c
    if root >= 0.0 and abs(a) > TINY:
        root = math.sqrt(root)
        for t in ((-b - root) / a, (-b + root) / a):
            z = oz + t * dz
            # the second cone of the double cone has a negative radius
            if 0.0 < t < best and abs(z) <= h and radius + slope * t * dz >= 0.0:
                best = t
    if abs(dz) > TINY:
        end = -h if dz > 0.0 else h  # the cap that faces the ray
        t = (end - oz) / dz
        limit = foot if end < 0.0 else top
        if 0.0 < t < best and (ox + t * dx) ** 2 + (oy + t * dy) ** 2 <= limit * limit:
            best = t
    # from inside only exits remain: a solid that holds the sensor is not seen
    inside = abs(oz) <= h and c <= 0.0
    return MISS if inside else best


@compiled
def hit_ellipsoid(ox, oy, oz, dx, dy, dz, hx, hy, hz):
    ox, oy, oz, dx, dy, dz = ox / hx, oy / hy, oz / hz, dx / hx, dy / hy, dz / hz
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - 1.0
    root = b * b - a * c
    if root < 0.0 or c <= 0.0 or b >= 0.0:
        return MISS
    return (-b - math.sqrt(root)) / a


@compiled
def hit_ground(ox, oy, oz, dx, dy, dz, ground):
    """Distance along a ray to z = g0 + g1 x + g2 y + g3 x^2 + g4 x y + g5 y^2, inf if it never
    meets it from above."""
    a = -(ground[3] * dx * dx + ground[4] * dx * dy + ground[5] * dy * dy)
    b = dz - (
        ground[1] * dx
        + ground[2] * dy
        + 2.0 * ground[3] * ox * dx
        + ground[4] * (ox * dy + oy * dx)
        + 2.0 * ground[5] * oy * dy
    )
    c = oz - (
        ground[0]
        + ground[1] * ox
        + ground[2] * oy
        + ground[3] * ox * ox
        + ground[4] * ox * oy
        + ground[5] * oy * oy
    )
    if abs(a) < TINY:
        return -c / b if b < 0.0 else MISS
    root = b * b - 4.0 * a * c
    if root < 0.0:
        return MISS
    q = -0.5 * (b + math.copysign(math.sqrt(root), b))
    first, second = q / a, c / q
    low, high = min(first, second), max(first, second)
    return low if low > 0.0 else high if high > 0.0 else MISS


@compiled
def incidence_cosine(kind, x, y, z, dx, dy, dz, half, taper):
    """|cos| of the angle between a ray and the surface normal where it hits, all in the primitive's
    frame."""
    if kind == BOX:
        ex, ey, ez = abs(abs(x) - half[0]), abs(abs(y) - half[1]), abs(abs(z) - half[2])
        return abs(dx) if ex <= ey and ex <= ez else abs(dy) if ey <= ez else abs(dz)
    if kind == TAPERED:
        best, cosine = MISS, 1.0
        for side in range(6):
            nx, ny, nz, offset = _tapered_plane(
                side, half[0], half[1], half[2], taper[0], taper[1], taper[2]
            )
            gap = abs(offset - (nx * x + ny * y + nz * z))
            if gap < best:
                best, cosine = gap, abs(nx * dx + ny * dy + nz * dz)
        return cosine
    if kind == FRUSTUM:
        if abs(z) > half[2] - 1e-7:
            return abs(dz)
        nx, ny, nz = x, y, -(half[1] - half[0]) / (2.0 * half[2]) * math.sqrt(x * x + y * y)
    else:
        nx, ny, nz = x / half[0] ** 2, y / half[1] ** 2, z / half[2] ** 2
    return abs(nx * dx + ny * dy + nz * dz) / max(math.sqrt(nx * nx + ny * ny + nz * nz), TINY)


@compiled
def half_lengths(kind, half):
    """Half-lengths of the box around a primitive, in its own frame."""
    if kind == FRUSTUM:
        radius = max(half[0], half[1])
        return radius, radius, half[2]
    return half[0], half[1], half[2]
