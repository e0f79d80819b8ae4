"""Cast rays against convex primitives and a curved ground, exact to rounding, in numba.

Culling: for one sweep every primitive gets an interval of azimuths, seen from the middle of the
sensor's path and widened by what sensor and primitive move meanwhile. Each of N_BINS azimuth bins
lists its primitives from near to far, so a ray meets a few dozen candidates and stops at the first
one that begins behind its nearest hit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from stratified3d.jit import compiled
from stratified3d.simulation.physics.intersect import (
    MISS,
    ground_cosine,
    half_lengths,
    hit_box,
    hit_ellipsoid,
    hit_frustum,
    hit_ground,
    hit_tapered,
    incidence_cosine,
    to_local,
    to_parent,
)
from stratified3d.simulation.physics.primitives import BOX, FRUSTUM, TAPERED, Primitives

N_BINS = 720
BINS_PER_RADIAN = N_BINS / (2.0 * math.pi)
NOTHING, GROUND = -1, -2  # values of `hit` that name no primitive


class Candidates(NamedTuple):
    """Primitives that a ray may hit, by azimuth bin, in CSR form.

    Attributes:
        start: [N_BINS + 1] where each bin's entries begin in `member`.
        member: [M] indices of primitives, each bin's from near to far.
        near: [P] lower bound of each primitive's distance from the sensor, m.
        radius2: [P] squared radius of the sphere around each primitive, m^2.
    """

    start: np.ndarray
    member: np.ndarray
    near: np.ndarray
    radius2: np.ndarray


@compiled
def _corner_azimuths(rotation, ex, ey, ez, vx, vy, azimuth):
    """Lowest and highest azimuth of a box's eight corners, relative to its center's `azimuth`."""
    lo, hi = 0.0, 0.0
    for corner in range(8):
        sx = ex if corner & 1 else -ex
        sy = ey if corner & 2 else -ey
        sz = ez if corner & 4 else -ez
        x = vx + rotation[0, 0] * sx + rotation[0, 1] * sy + rotation[0, 2] * sz
        y = vy + rotation[1, 0] * sx + rotation[1, 1] * sy + rotation[1, 2] * sz
        angle = (math.atan2(y, x) - azimuth + math.pi) % (2.0 * math.pi) - math.pi
        lo = min(lo, angle)
        hi = max(hi, angle)
    return lo, hi


@compiled
def _reach(rotation, axis, ex, ey, ez):
    """Half-length of a rotated box along one of the parent's axes."""
    x = abs(rotation[axis, 0]) * ex
    y = abs(rotation[axis, 1]) * ey
    z = abs(rotation[axis, 2]) * ez
    return x + y + z


@compiled
def _box_gap2(rotation, p, ex, ey, ez, vx, vy, vz):
    """Squared distance from the sensor to a rotated box whose center is (vx, vy, vz) away."""
    x, y, z = to_local(rotation, p, vx, vy, vz)
    gap2 = 0.0
    for local, half in ((x, ex), (y, ey), (z, ez)):
        beyond = abs(local) - half
        if beyond > 0.0:
            gap2 += beyond * beyond
    return gap2


@compiled
def _horizontal_distance(rotation, ex, ey, ez, vx, vy, vz, gap2):
    """Lower bound of the horizontal distance from the sensor to a rotated box's footprint."""
    clear_z = max(abs(vz) - _reach(rotation, 2, ex, ey, ez), 0.0)
    bound = math.sqrt(max(gap2 - clear_z * clear_z, 0.0))

    beside_x = abs(vx) - _reach(rotation, 0, ex, ey, ez)
    beside_y = abs(vy) - _reach(rotation, 1, ex, ey, ez)
    return max(bound, max(beside_x, beside_y))


@compiled
def _margin(velocity, p, travel, half_time):
    """How far sensor and primitive p move apart or together within a sweep, m."""
    speed = math.sqrt(velocity[p, 0] ** 2 + velocity[p, 1] ** 2 + velocity[p, 2] ** 2)
    return travel + speed * half_time + 1e-3


@compiled
def _view(p, middle, margin, kind, center, rotation, half):
    """Nearest distance of primitive p, the azimuth of its center and the interval around it."""
    ex, ey, ez = half_lengths(kind[p], half[p])
    vx = center[p, 0] - middle[0]
    vy = center[p, 1] - middle[1]
    vz = center[p, 2] - middle[2]
    gap2 = _box_gap2(rotation, p, ex, ey, ez, vx, vy, vz)
    near = max(math.sqrt(gap2) - margin, 0.0)
    azimuth = math.atan2(vy, vx)
    lo, hi = _corner_azimuths(rotation[p], ex, ey, ez, vx, vy, azimuth)

    # where the sensor stands over the footprint, every azimuth sees it
    horizontal = _horizontal_distance(rotation[p], ex, ey, ez, vx, vy, vz, gap2)
    if horizontal <= 1.5 * margin or hi - lo > 0.98 * math.pi:
        return near, azimuth, -math.pi, math.pi

    slack = math.asin(min(margin / horizontal, 1.0)) + 1e-6
    return near, azimuth, lo - slack, hi + slack


@compiled
def _azimuth_intervals(middle, travel, half_time, max_range, primitives, center):
    """First azimuth bin, number of bins and nearest distance of each primitive, [P] each.

    Primitives beyond max_range are in no bin.
    """
    count = len(primitives.kind)
    near = np.empty(count)
    first = np.empty(count, np.int64)
    width = np.zeros(count, np.int64)
    for p in range(count):
        margin = _margin(primitives.velocity, p, travel, half_time)
        near[p], azimuth, lo, hi = _view(
            p,
            middle,
            margin,
            primitives.kind,
            center,
            primitives.rotation,
            primitives.half,
        )
        if near[p] < max_range:
            first[p] = math.floor((azimuth + lo + math.pi) * BINS_PER_RADIAN)
            last = math.floor((azimuth + hi + math.pi) * BINS_PER_RADIAN)
            width[p] = min(last - first[p] + 1, N_BINS)
    return first, width, near


@compiled
def _fill_bins(first, width, near):
    """`start` and `member` of `Candidates`: a counting sort of primitives into bins."""
    start = np.zeros(N_BINS + 1, np.int64)
    for p in range(len(near)):
        for i in range(width[p]):
            start[(first[p] + i) % N_BINS + 1] += 1
    for i in range(N_BINS):
        start[i + 1] += start[i]

    member = np.empty(start[N_BINS], np.int64)
    filled = start[:-1].copy()
    for p in np.argsort(near, kind='mergesort'):
        for i in range(width[p]):
            place = (first[p] + i) % N_BINS
            member[filled[place]] = p
            filled[place] += 1
    return start, member


@compiled
def _squared_radii(kind, half):
    """[P] squared radius of the sphere around each primitive, m^2."""
    radius2 = np.empty(len(kind))
    for p in range(len(kind)):
        ex, ey, ez = half_lengths(kind[p], half[p])
        radius2[p] = ex * ex + ey * ey + ez * ez
    return radius2


@compiled
def _largest_distance(origins, middle):
    """Distance of the farthest of `origins` [C, 3] from `middle` [3], m."""
    largest = 0.0
    for c in range(len(origins)):
        largest = max(largest, math.sqrt(((origins[c] - middle) ** 2).sum()))
    return largest


@compiled
def _find_candidates(origins, delays, primitives, max_range):
    """`Candidates` for a sensor that passes `origins` [C, 3] at `delays` [C]."""
    middle_time = 0.5 * (delays[0] + delays[-1])
    half_time = 0.5 * abs(delays[-1] - delays[0])
    middle = 0.5 * (origins[0] + origins[-1])
    travel = _largest_distance(origins, middle)
    center = primitives.center + primitives.velocity * middle_time
    first, width, near = _azimuth_intervals(
        middle, travel, half_time, max_range, primitives, center
    )
    start, member = _fill_bins(first, width, near)
    radius2 = _squared_radii(primitives.kind, primitives.half)
    return Candidates(start, member, near, radius2)


@compiled
def _find_bin(dx, dy):
    """Azimuth bin of a ray's direction."""
    azimuth = math.atan2(dy, dx) + math.pi
    return min(int(azimuth * BINS_PER_RADIAN), N_BINS - 1)


@compiled
def _cast_column(
    c,
    origins,
    rotations,
    delays,
    directions,
    limits,
    candidates,
    primitives,
    ground,
    distance,
    hit,
    cosine,
):
    """Cast the rays of column c into row c of distance, hit and cosine.

    One function per column, not per ray or primitive: passing arrays costs more than a ray.
    """
    start, member, near, radius2 = candidates
    kind, center, rotation, half, taper, velocity, _, _, _ = primitives
    ox, oy, oz = origins[c, 0], origins[c, 1], origins[c, 2]
    for b in range(directions.shape[1]):
        bx, by, bz = directions[c, b, 0], directions[c, b, 1], directions[c, b, 2]
        dx, dy, dz = to_parent(rotations, c, bx, by, bz)
        best, found = limits[c, b], NOTHING
        t = hit_ground(ox, oy, oz, dx, dy, dz, ground)
        if t < best:
            best, found = t, GROUND

        place = _find_bin(dx, dy)
        for i in range(start[place], start[place + 1]):
            p = member[i]
            if near[p] > best:
                break

            # skip a primitive whose sphere the ray's line misses
            vx = ox - center[p, 0] - velocity[p, 0] * delays[c]
            vy = oy - center[p, 1] - velocity[p, 1] * delays[c]
            vz = oz - center[p, 2] - velocity[p, 2] * delays[c]
            along = vx * dx + vy * dy + vz * dz
            if vx * vx + vy * vy + vz * vz - along * along > radius2[p]:
                continue

            lx, ly, lz = to_local(rotation, p, vx, vy, vz)
            ex, ey, ez = to_local(rotation, p, dx, dy, dz)
            hx, hy, hz = half[p, 0], half[p, 1], half[p, 2]
            if kind[p] == BOX:
                t = hit_box(lx, ly, lz, ex, ey, ez, hx, hy, hz)
            elif kind[p] == TAPERED:
                front, rear, sides = taper[p, 0], taper[p, 1], taper[p, 2]
                t = hit_tapered(lx, ly, lz, ex, ey, ez, hx, hy, hz, front, rear, sides)
            elif kind[p] == FRUSTUM:
                t = hit_frustum(lx, ly, lz, ex, ey, ez, hx, hy, hz)
            else:
                t = hit_ellipsoid(lx, ly, lz, ex, ey, ez, hx, hy, hz)
            if t < best:
                best, found = t, p
                x, y, z = lx + t * ex, ly + t * ey, lz + t * ez
                cosine[c, b] = incidence_cosine(kind[p], x, y, z, ex, ey, ez, half[p], taper[p])

        if found == GROUND:
            cosine[c, b] = ground_cosine(ox + best * dx, oy + best * dy, dx, dy, dz, ground)
        if found != NOTHING:
            distance[c, b], hit[c, b] = best, found


@compiled
def _cast(origins, rotations, delays, directions, limits, primitives, ground, max_range):
    """See `cast_rays`, whose arguments are checked and complete."""
    candidates = _find_candidates(origins, delays, primitives, max_range)
    limits = np.minimum(limits, max_range)
    distance = np.full(limits.shape, MISS)
    hit = np.full(limits.shape, NOTHING, np.int64)
    cosine = np.zeros(limits.shape)
    for c in range(len(origins)):
        _cast_column(
            c,
            origins,
            rotations,
            delays,
            directions,
            limits,
            candidates,
            primitives,
            ground,
            distance,
            hit,
            cosine,
        )
    return distance, hit, cosine


def cast_rays(
    origins: np.ndarray,
    rotations: np.ndarray,
    delays: np.ndarray,
    directions: np.ndarray,
    primitives: Primitives,
    ground: np.ndarray,
    *,
    max_range: float,
    limits: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find what every ray meets first.

    Args:
        origins: [C, 3] where the sensor is when each column fires, m, world frame; all within a
            few meters, or culling is slow.
        rotations: [C, 3, 3] sensor to world.
        delays: [C] firing time, s, ascending; a primitive lies at `center + velocity * delay`.
        directions: [C, B, 3] unit vectors in the sensor frame.
        primitives: in the world frame.
        ground: [6] coefficients of its height: 1, x, y, x^2, x y, y^2.
        max_range: m.
        limits: [C, B] distance beyond which a ray is blocked (by the ego car), m; None for none.
    Returns:
        distance [C, B] m (inf: nothing), hit [C, B] int64 (primitive, GROUND or NOTHING),
        |cos(incidence)| [C, B].
    Raises:
        ValueError: the arrays' shapes do not belong together, or a primitive has no extent.
    """
    columns = len(origins)
    if (
        directions.ndim != 3
        or directions.shape[::2] != (columns, 3)
        or rotations.shape != (columns, 3, 3)
        or delays.shape != (columns,)
    ):
        raise ValueError(
            f'cast_rays: origins {origins.shape}, rotations {rotations.shape}, '
            f'delays {delays.shape} and directions {directions.shape} must be '
            '[C, 3], [C, 3, 3], [C] and [C, B, 3]'
        )
    if len(primitives.kind) and not (_extents(primitives) > 0).all():
        raise ValueError('cast_rays: every primitive needs a positive size along each axis')
    if limits is None:
        limits = np.full(directions.shape[:2], np.inf)
    return _cast(
        np.ascontiguousarray(origins),
        np.ascontiguousarray(rotations),
        delays,
        np.ascontiguousarray(directions),
        limits,
        primitives,
        ground,
        max_range,
    )


def _extents(primitives: Primitives) -> np.ndarray:
    """[P, 3] half-lengths of the box around each primitive, in its own frame."""
    half = primitives.half
    radius = half[:, :2].max(1)
    around_frustum = np.stack([radius, radius, half[:, 2]], 1)
    is_frustum = (primitives.kind == FRUSTUM)[:, None]
    return np.where(is_frustum, around_frustum, half)
