"""Ray casting over convex primitives and a curved ground, exact to rounding, in numba.

Culling: for one sweep every primitive gets an interval of azimuths, seen from the middle of the
sensor's path and widened by what sensor and primitive move meanwhile. Each of N_BINS azimuth bins
lists its primitives from near to far, so a ray meets a few dozen candidates and stops at the first
one that begins behind its nearest hit.
"""

from __future__ import annotations

import math

import numpy as np

from stratified3d.jit import compiled
from stratified3d.simulation.physics.intersect import (
    MISS,
    half_lengths,
    hit_box,
    hit_ellipsoid,
    hit_frustum,
    hit_ground,
    hit_tapered,
    incidence_cosine,
)
from stratified3d.simulation.physics.primitives import BOX, FRUSTUM, TAPERED, Primitives

N_BINS = 720
NOTHING, GROUND = -1, -2  # values of `hit` that name no primitive


@compiled
def _view(p, middle, travel, half_time, kind, center, rotation, half, velocity):
    """Nearest distance, azimuth of the center and the interval around it under which primitive p is
    seen."""
    ex, ey, ez = half_lengths(kind[p], half[p])
    r = rotation[p]
    vx, vy, vz = center[p, 0] - middle[0], center[p, 1] - middle[1], center[p, 2] - middle[2]
    speed = math.sqrt(velocity[p, 0] ** 2 + velocity[p, 1] ** 2 + velocity[p, 2] ** 2)
    margin = travel + speed * half_time + 1e-3
    gap = 0.0
    for axis in range(3):
        local = abs(r[0, axis] * vx + r[1, axis] * vy + r[2, axis] * vz)
        beyond = local - (ex if axis == 0 else ey if axis == 1 else ez)
        if beyond > 0.0:
            gap += beyond * beyond
    near = max(math.sqrt(gap) - margin, 0.0)
    # the footprint: where the sensor stands over it, every azimuth sees it
    azimuth = math.atan2(vy, vx)
    low, high, nearest = 0.0, 0.0, MISS
    for corner in range(8):
        sx = ex if corner & 1 else -ex
        sy = ey if corner & 2 else -ey
        sz = ez if corner & 4 else -ez
        x = vx + r[0, 0] * sx + r[0, 1] * sy + r[0, 2] * sz
        y = vy + r[1, 0] * sx + r[1, 1] * sy + r[1, 2] * sz
        angle = (math.atan2(y, x) - azimuth + math.pi) % (2.0 * math.pi) - math.pi
        low, high = min(low, angle), max(high, angle)
    reach_x = abs(r[0, 0]) * ex + abs(r[0, 1]) * ey + abs(r[0, 2]) * ez
    reach_y = abs(r[1, 0]) * ex + abs(r[1, 1]) * ey + abs(r[1, 2]) * ez
    reach_z = abs(r[2, 0]) * ex + abs(r[2, 1]) * ey + abs(r[2, 2]) * ez
    clear_z = max(abs(vz) - reach_z, 0.0)
    nearest = math.sqrt(
        max(gap - clear_z * clear_z, 0.0)
    )  # a lower bound of the horizontal distance to the footprint
    outside = max(abs(vx) - reach_x, abs(vy) - reach_y)  # another one
    nearest = max(nearest, outside)
    if nearest <= 1.5 * margin or high - low > 0.98 * math.pi:
        return near, azimuth, -math.pi, math.pi
    slack = math.asin(min(margin / nearest, 1.0)) + 1e-6
    return near, azimuth, low - slack, high + slack


@compiled
def _build_bins(middle, travel, half_time, max_range, kind, center, rotation, half, velocity):
    """Candidates per azimuth bin, near to far: CSR `start` [N_BINS + 1], `member`, and each
    primitive's distance."""
    count = len(kind)
    near = np.empty(count)
    first = np.empty(count, np.int64)
    width = np.zeros(count, np.int64)
    scale = N_BINS / (2.0 * math.pi)
    for p in range(count):
        near[p], azimuth, low, high = _view(
            p, middle, travel, half_time, kind, center, rotation, half, velocity
        )
        if near[p] < max_range:
            first[p] = math.floor((azimuth + low + math.pi) * scale)
            width[p] = min(math.floor((azimuth + high + math.pi) * scale) - first[p] + 1, N_BINS)
    start = np.zeros(N_BINS + 1, np.int64)
    for p in range(count):
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
    return start, member, near


@compiled
def _cast(origins, rotations, delays, directions, limits, primitives, ground, max_range):
    kind, center, rotation, half, taper, velocity = (
        primitives.kind,
        primitives.center,
        primitives.rotation,
        primitives.half,
        primitives.taper,
        primitives.velocity,
    )
    n_columns, n_beams = directions.shape[0], directions.shape[1]
    middle_time = 0.5 * (delays[0] + delays[-1])
    half_time = 0.5 * abs(delays[-1] - delays[0])
    middle = 0.5 * (origins[0] + origins[-1])
    travel = 0.0
    for c in range(n_columns):
        travel = max(travel, math.sqrt(((origins[c] - middle) ** 2).sum()))
    start, member, near = _build_bins(
        middle,
        travel,
        half_time,
        max_range,
        kind,
        center + velocity * middle_time,
        rotation,
        half,
        velocity,
    )
    radius2 = np.empty(len(kind))
    for p in range(len(kind)):
        ex, ey, ez = half_lengths(kind[p], half[p])
        radius2[p] = ex * ex + ey * ey + ez * ez

    distance = np.full((n_columns, n_beams), MISS)
    hit = np.full((n_columns, n_beams), NOTHING, np.int64)
    cosine = np.zeros((n_columns, n_beams))
    scale = N_BINS / (2.0 * math.pi)
    for c in range(n_columns):
        ox, oy, oz = origins[c, 0], origins[c, 1], origins[c, 2]
        turn = rotations[c]
        for b in range(n_beams):
            bx, by, bz = directions[c, b, 0], directions[c, b, 1], directions[c, b, 2]
            dx = turn[0, 0] * bx + turn[0, 1] * by + turn[0, 2] * bz
            dy = turn[1, 0] * bx + turn[1, 1] * by + turn[1, 2] * bz
            dz = turn[2, 0] * bx + turn[2, 1] * by + turn[2, 2] * bz
            best = min(limits[c, b], max_range)
            found = NOTHING
            t = hit_ground(ox, oy, oz, dx, dy, dz, ground)
            if t < best:
                best, found = t, GROUND
            place = min(int((math.atan2(dy, dx) + math.pi) * scale), N_BINS - 1)
            for i in range(start[place], start[place + 1]):
                p = member[i]
                if near[p] > best:
                    break
                vx = ox - center[p, 0] - velocity[p, 0] * delays[c]
                vy = oy - center[p, 1] - velocity[p, 1] * delays[c]
                vz = oz - center[p, 2] - velocity[p, 2] * delays[c]
                along = vx * dx + vy * dy + vz * dz
                if vx * vx + vy * vy + vz * vz - along * along > radius2[p]:
                    continue
                r, h = rotation[p], half[p]
                lx = r[0, 0] * vx + r[1, 0] * vy + r[2, 0] * vz
                ly = r[0, 1] * vx + r[1, 1] * vy + r[2, 1] * vz
                lz = r[0, 2] * vx + r[1, 2] * vy + r[2, 2] * vz
                ex = r[0, 0] * dx + r[1, 0] * dy + r[2, 0] * dz
                ey = r[0, 1] * dx + r[1, 1] * dy + r[2, 1] * dz
                ez = r[0, 2] * dx + r[1, 2] * dy + r[2, 2] * dz
                if kind[p] == BOX:
                    t = hit_box(lx, ly, lz, ex, ey, ez, h[0], h[1], h[2])
                elif kind[p] == TAPERED:
                    t = hit_tapered(
                        lx,
                        ly,
                        lz,
                        ex,
                        ey,
                        ez,
                        h[0],
                        h[1],
                        h[2],
                        taper[p, 0],
                        taper[p, 1],
                        taper[p, 2],
                    )
                elif kind[p] == FRUSTUM:
                    t = hit_frustum(lx, ly, lz, ex, ey, ez, h[0], h[1], h[2])
                else:
                    t = hit_ellipsoid(lx, ly, lz, ex, ey, ez, h[0], h[1], h[2])
                if t < best:
                    best, found = t, p
                    cosine[c, b] = incidence_cosine(
                        kind[p], lx + t * ex, ly + t * ey, lz + t * ez, ex, ey, ez, h, taper[p]
                    )
            if found == GROUND:
                x, y = ox + best * dx, oy + best * dy
                sx = ground[1] + 2.0 * ground[3] * x + ground[4] * y
                sy = ground[2] + ground[4] * x + 2.0 * ground[5] * y
                cosine[c, b] = abs(dz - sx * dx - sy * dy) / math.sqrt(1.0 + sx * sx + sy * sy)
            if found != NOTHING:
                distance[c, b], hit[c, b] = best, found
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
        origins: [C, 3] where the sensor is when each column fires, m, world frame; meant to lie
        within a few meters.
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
    if directions.ndim != 3 or (rotations.shape, delays.shape, directions.shape[::2]) != (
        (columns, 3, 3),
        (columns,),
        (columns, 3),
    ):
        raise ValueError(
            f'cast_rays: origins {origins.shape}, rotations {rotations.shape}, delays {delays.shape} and '
            f'directions {directions.shape} must be [C,3], [C,3,3], [C] and [C,B,3]'
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
    half = primitives.half
    round_ = (primitives.kind == FRUSTUM)[:, None]
    return np.where(round_, np.stack([half[:, :2].max(1), half[:, :2].max(1), half[:, 2]], 1), half)
