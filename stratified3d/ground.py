"""Where the ground is in a point cloud: a robust plane through the low points near the sensor."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

REACH = 25.0  # m around the sensor
_NEAREST = 2.5  # m; closer points are mostly of the car that carries the sensor
_CELL = 2.0  # m
_VOTE = 0.1  # m from a trial plane
_NEARBY = 4.0  # m; up to there, low points count the same
# m around the plane, of the points that it is fitted to, one after the other
_LAYERS = (0.15, 0.1, 0.08, 0.06, 0.06, 0.06)
_LAYER = 0.15  # m above and below the plane: noise, and the curvature of a road
_STEEPEST = 0.15  # rise over run: 8.5 degrees
_TRIALS = 400
_FEWEST = 50  # points near the sensor
_BASE = 8.0  # m^2, the least area of the triangle that a trial plane goes through
_SHARE = 0.1  # of the points that are in the plane, at least
_SPREAD = 1.0  # m, standard deviation of the plane's points across their longest direction
_GAP = 0.45  # m; what is farther from the plane is clearly above or below it
_MOST_BELOW = (0.03, 0.3)  # share of all points, and of those above
_DENSITY = 2.0  # of points in the plane, over that in the layer just above it
_PATCH = 0.5  # m


class Ground(NamedTuple):
    """The plane z = height + slope_x x + slope_y y, in meters."""

    height: float
    slope_x: float
    slope_y: float

    def above(self, points: np.ndarray) -> np.ndarray:
        """Heights [P] of points [P, >= 3] above it, m."""
        x, y, z = points[:, :3].T
        return z - self.height - self.slope_x * x - self.slope_y * y


def find_ground(points: np.ndarray) -> tuple[Ground | None, str]:
    """Find the ground, up to 8 degrees steep, within 25 m of the sensor.

    Planes through three low points each are tried; the one near most low points is fitted to the
    points close to it. It is the ground if little lies below it, if it is denser or wider than what
    is just above it, and if it is more than a line.

    A sector of 60 degrees ahead is enough. To a side, where a wall or a bank may fill what is seen,
    60 degrees fail in one frame of ten, 120 in none, by frames of simulated streets.

    Args:
        points: [P, >= 3] x, y, z (m), z up.
    Returns:
        The ground, or None, and the reason why there is none.
    """
    points = _near(points)
    low = _lowest_per_cell(points)
    if len(points) < _FEWEST or len(low) < 3:
        return None, f'only {len(points)} points lie {_NEAREST:g} to {REACH:g} m from the sensor'

    ground = _best_plane(low)
    for layer in _LAYERS:
        ground = _fit(points[np.abs(ground.above(points)) < layer], ground)
    reason = _doubt(ground, points)
    return (None, reason) if reason else (ground, '')


def _near(points: np.ndarray) -> np.ndarray:
    """Finite points [N, 3], float64, neither of the car itself nor far away."""
    points = points[:, :3].astype(np.float64)
    with np.errstate(invalid='ignore', over='ignore'):
        distance = np.hypot(points[:, 0], points[:, 1])
        is_near = (distance > _NEAREST) & (distance < REACH)
    return points[is_near & np.isfinite(points).all(1)]


def _lowest_per_cell(points: np.ndarray) -> np.ndarray:
    """The lowest point [C, 3] of each square cell."""
    column, row = np.floor(points[:, :2] / _CELL).astype(int).T
    order = np.lexsort((points[:, 2], row, column))
    cells = np.stack([column, row], 1)[order]
    is_first = np.ones(len(cells), bool)
    is_first[1:] = (cells[1:] != cells[:-1]).any(1)
    return points[order[is_first]]


def _best_plane(low: np.ndarray) -> Ground:
    """The plane through three of the low points [C, 3] that is near most of them.

    They count by the inverse of their distance, as in `_fit`. The first trial is level, at the
    median, for clouds in which no three points will do.
    """
    level = np.array([[np.median(low[:, 2]), 0.0, 0.0]])
    rng = np.random.default_rng(0)  # the same points give the same ground
    corners = low[rng.integers(len(low), size=(_TRIALS, 3))]
    trials = np.concatenate([level, _planes_through(corners)])

    design = np.concatenate([np.ones((len(low), 1)), low[:, :2]], 1)
    distance = np.abs(low[:, 2] - trials @ design.T)  # [trials, C]
    weight = 1 / np.maximum(np.hypot(*low[:, :2].T), _NEARBY)
    votes = (distance < _VOTE) @ weight
    return Ground(*trials[votes.argmax()].tolist())


def _planes_through(corners: np.ndarray) -> np.ndarray:
    """Height and slopes [T, 3] of the planes through triangles [N, 3, 3], without the steep ones
    and those of slim triangles."""
    sides = corners[:, 1:] - corners[:, :1]
    normal = np.cross(sides[:, 0], sides[:, 1])
    is_large = np.abs(normal[:, 2]) > 2 * _BASE
    corners = corners[is_large]
    normal = normal[is_large]

    slopes = -normal[:, :2] / normal[:, 2:]
    height = corners[:, 0, 2] - (slopes * corners[:, 0, :2]).sum(1)
    is_flat = np.hypot(*slopes.T) < _STEEPEST
    return np.concatenate([height[:, None], slopes], 1)[is_flat]


def _fit(points: np.ndarray, before: Ground) -> Ground:
    """The plane with the least squares to points [N, 3]; the one before if it would be steep.

    Points count by the inverse of their distance: what is asked for is the height at the sensor.
    """
    if len(points) < 3:
        return before
    weight = 1 / np.hypot(points[:, 0], points[:, 1])
    design = np.stack([weight, weight * points[:, 0], weight * points[:, 1]], 1)
    height, *slopes = np.linalg.lstsq(design, weight * points[:, 2], rcond=None)[0].tolist()
    return before if np.hypot(*slopes) > _STEEPEST else Ground(height, *slopes)


def _doubt(ground: Ground, points: np.ndarray) -> str:
    """Why a plane is not the ground of points [N, 3]; empty if it is."""
    above = ground.above(points)
    below = (above < -_GAP).mean()
    higher = (above > _GAP).mean()
    most, most_of_higher = _MOST_BELOW
    if below > most + most_of_higher * higher:
        return f'{below:.0%} of the points lie below the flattest surface'

    is_inside = np.abs(above) < _LAYER
    is_over = (above > _LAYER) & (above < _GAP)
    is_dense = is_inside.sum() >= _DENSITY * is_over.sum()
    # a wall close by has many points on little area
    is_wide = _patches(points[is_inside]) >= _DENSITY * _patches(points[is_over])
    if is_inside.sum() < _SHARE * len(points) or not (is_dense or is_wide):
        return 'no flat surface is denser or wider than what is just above it'

    covariance = np.cov(points[is_inside, :2].T)
    spread = np.linalg.eigvalsh(covariance)[0] ** 0.5
    if spread < _SPREAD:
        return f'the flattest surface is a strip, {2 * spread:.1f} m wide'
    return ''


def _patches(points: np.ndarray) -> int:
    """How many squares of the plan points [N, 3] lie in."""
    return len(np.unique(np.floor(points[:, :2] / _PATCH).astype(int), axis=0))
