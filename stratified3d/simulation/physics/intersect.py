"""Intersections of one ray with one convex primitive or the ground, in closed form.

The `hit_` functions take a ray o + t d as six numbers, d of unit length, in the primitive's own
frame, and return the smallest t > 0 at which it enters, MISS for none. A primitive that contains
the origin is not seen. numba notices changes of a kernel's own file only: after an edit here, touch
raycast.py or delete __pycache__.
"""

from __future__ import annotations

import math

import numpy as np

from stratified3d.jit import compiled
from stratified3d.simulation.physics.primitives import BOX, FRUSTUM, TAPERED

MISS = np.inf
TINY = 1e-12


@compiled
def to_parent(r, i, x, y, z):
    """r[i] @ (x, y, z): a vector of frame i with rotations r [I, 3, 3], in the frame around it."""
    return (
        r[i, 0, 0] * x + r[i, 0, 1] * y + r[i, 0, 2] * z,
        r[i, 1, 0] * x + r[i, 1, 1] * y + r[i, 1, 2] * z,
        r[i, 2, 0] * x + r[i, 2, 1] * y + r[i, 2, 2] * z,
    )


@compiled
def to_local(r, i, x, y, z):
    """r[i].T @ (x, y, z): a vector of the surrounding frame, in frame i."""
    return (
        r[i, 0, 0] * x + r[i, 1, 0] * y + r[i, 2, 0] * z,
        r[i, 0, 1] * x + r[i, 1, 1] * y + r[i, 2, 1] * z,
        r[i, 0, 2] * x + r[i, 1, 2] * y + r[i, 2, 2] * z,
    )


@compiled
def hit_box(ox, oy, oz, dx, dy, dz, hx, hy, hz):
    """A box with half-lengths hx, hy, hz."""
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
    """Outward normal and offset of one of the six faces: n . p <= offset.

    Sides 0 to 5 are the top, the foot, the front, the rear, the left and the right.
    """
    if side == 0:
        return 0.0, 0.0, 1.0, hz
    if side == 1:
        return 0.0, 0.0, -1.0, hz

    inset = sides
    if side == 2:
        inset = front
    elif side == 3:
        inset = rear
    lean = inset / (2.0 * hz)
    length = math.sqrt(1.0 + lean * lean)
    sign = 1.0 if side % 2 == 0 else -1.0
    across = sign / length
    up = lean / length
    if side < 4:
        return across, 0.0, up, (hx - lean * hz) / length
    return 0.0, across, up, (hy - lean * hz) / length


@compiled
def hit_tapered(ox, oy, oz, dx, dy, dz, hx, hy, hz, front, rear, sides):
    """A box whose top is drawn in by front, rear and sides."""
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
def _hit_mantle(ox, oy, oz, dx, dy, dz, slope, h, radius):
    """The side of the frustum that has `radius` at height oz and `slope` along z."""
    a = dx * dx + dy * dy - (slope * dz) ** 2
    b = ox * dx + oy * dy - radius * slope * dz
    c = ox * ox + oy * oy - radius * radius
    root = b * b - a * c
    if root < 0.0 or abs(a) <= TINY:
        return MISS

    best = MISS
    root = math.sqrt(root)
    for t in ((-b - root) / a, (-b + root) / a):
        z = oz + t * dz
        # the second cone of the double cone has a negative radius
        if 0.0 < t < best and abs(z) <= h and radius + slope * t * dz >= 0.0:
            best = t
    return best


@compiled
def _hit_cap(ox, oy, oz, dx, dy, dz, foot, top, h):
    """The foot or the top of a frustum, whichever faces the ray."""
    if abs(dz) <= TINY:
        return MISS
    end = -h if dz > 0.0 else h
    limit = foot if end < 0.0 else top
    t = (end - oz) / dz
    if t > 0.0 and (ox + t * dx) ** 2 + (oy + t * dy) ** 2 <= limit * limit:
        return t
    return MISS


@compiled
def hit_frustum(ox, oy, oz, dx, dy, dz, foot, top, h):
    """A cylinder or cone with these radii and half-height h."""
    slope = (top - foot) / (2.0 * h)
    radius = 0.5 * (foot + top) + slope * oz
    # from inside only exits remain: a solid that contains the sensor is not seen
    if abs(oz) <= h and ox * ox + oy * oy - radius * radius <= 0.0:
        return MISS
    mantle = _hit_mantle(ox, oy, oz, dx, dy, dz, slope, h, radius)
    cap = _hit_cap(ox, oy, oz, dx, dy, dz, foot, top, h)
    return min(mantle, cap)


@compiled
def hit_ellipsoid(ox, oy, oz, dx, dy, dz, hx, hy, hz):
    """An ellipsoid with half-axes hx, hy, hz: the unit sphere after scaling."""
    ox, oy, oz = ox / hx, oy / hy, oz / hz
    dx, dy, dz = dx / hx, dy / hy, dz / hz
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - 1.0
    root = b * b - a * c
    if root < 0.0 or c <= 0.0 or b >= 0.0:
        return MISS
    return (-b - math.sqrt(root)) / a


@compiled
def _first_root(a, b, c):
    """Smallest positive t with a t^2 + b t + c = 0, without cancellation; MISS if none is."""
    root = b * b - 4.0 * a * c
    if root < 0.0:
        return MISS
    q = -0.5 * (b + math.copysign(math.sqrt(root), b))
    one = q / a
    other = c / q
    first = min(one, other)
    if first > 0.0:
        return first
    second = max(one, other)
    return second if second > 0.0 else MISS


@compiled
def hit_ground(ox, oy, oz, dx, dy, dz, ground):
    """Distance to z = g0 + g1 x + g2 y + g3 x^2 + g4 x y + g5 y^2, met from above.

    The ground's coefficients are `ground` [6], in the frame of the ray.
    """
    g = ground
    a = -(g[3] * dx * dx + g[4] * dx * dy + g[5] * dy * dy)

    linear = g[1] * dx + g[2] * dy
    climb = linear + 2.0 * g[3] * ox * dx + g[4] * (ox * dy + oy * dx) + 2.0 * g[5] * oy * dy
    b = dz - climb

    plane = g[0] + g[1] * ox + g[2] * oy
    height = plane + g[3] * ox * ox + g[4] * ox * oy + g[5] * oy * oy
    c = oz - height

    if abs(a) < TINY:
        return -c / b if b < 0.0 else MISS
    return _first_root(a, b, c)


@compiled
def ground_cosine(x, y, dx, dy, dz, ground):
    """|cos| of the angle between a ray and the ground's normal at x, y."""
    slope_x = ground[1] + 2.0 * ground[3] * x + ground[4] * y
    slope_y = ground[2] + ground[4] * x + 2.0 * ground[5] * y
    length = math.sqrt(1.0 + slope_x * slope_x + slope_y * slope_y)
    return abs(dz - slope_x * dx - slope_y * dy) / length


@compiled
def _box_cosine(x, y, z, dx, dy, dz, half):
    """`incidence_cosine` of a box: the face whose plane lies nearest to the point was hit."""
    gap_x = abs(abs(x) - half[0])
    gap_y = abs(abs(y) - half[1])
    gap_z = abs(abs(z) - half[2])
    if gap_x <= gap_y and gap_x <= gap_z:
        return abs(dx)
    return abs(dy) if gap_y <= gap_z else abs(dz)


@compiled
def _tapered_cosine(x, y, z, dx, dy, dz, half, taper):
    """`incidence_cosine` of a tapered box: the face whose plane lies nearest was hit."""
    best, cosine = MISS, 1.0
    hx, hy, hz = half[0], half[1], half[2]
    front, rear, sides = taper[0], taper[1], taper[2]
    for side in range(6):
        nx, ny, nz, offset = _tapered_plane(side, hx, hy, hz, front, rear, sides)
        gap = abs(offset - (nx * x + ny * y + nz * z))
        if gap < best:
            best = gap
            cosine = abs(nx * dx + ny * dy + nz * dz)
    return cosine


@compiled
def incidence_cosine(kind, x, y, z, dx, dy, dz, half, taper):
    """|cos| of the angle between a ray and the normal of the surface point x, y, z that it hits.

    All in the primitive's frame.
    """
    if kind == BOX:
        return _box_cosine(x, y, z, dx, dy, dz, half)
    if kind == TAPERED:
        return _tapered_cosine(x, y, z, dx, dy, dz, half, taper)

    if kind == FRUSTUM:
        if abs(z) > half[2] - 1e-7:
            return abs(dz)
        slope = -(half[1] - half[0]) / (2.0 * half[2])
        nx, ny, nz = x, y, slope * math.sqrt(x * x + y * y)
    else:
        nx, ny, nz = x / half[0] ** 2, y / half[1] ** 2, z / half[2] ** 2
    dot = abs(nx * dx + ny * dy + nz * dz)
    return dot / max(math.sqrt(nx * nx + ny * ny + nz * nz), TINY)


@compiled
def half_lengths(kind, half):
    """Half-lengths of the box around a primitive, in its own frame."""
    if kind == FRUSTUM:
        radius = max(half[0], half[1])
        return radius, radius, half[2]
    return half[0], half[1], half[2]
