"""Motion of road users: paths of straights and arcs, speed profiles, and the ground below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ground:
    """A gently curved ground, z = g0 + g1 x + g2 y + g3 x^2 + g4 x y + g5 y^2 (m).

    A quadric, because a ray meets it in closed form; its second derivatives bend a road by meters
    over 100 m.
    """

    coefficients: np.ndarray  # [6]

    def height(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Height at x, y (any shape), m."""
        g = self.coefficients
        return g[0] + g[1] * x + g[2] * y + g[3] * x * x + g[4] * x * y + g[5] * y * y

    def orientation(self, x: np.ndarray, y: np.ndarray, yaw: np.ndarray) -> np.ndarray:
        """Rotation of something that stands flat on the ground and heads to `yaw`.

        Args:
            x, y, yaw: [T] m, m, rad.
        Returns:
            [T, 3, 3], columns forward, left, up.
        """
        g = self.coefficients
        slope_x = g[1] + 2 * g[3] * x + g[4] * y
        slope_y = g[2] + g[4] * x + 2 * g[5] * y
        up = np.stack([-slope_x, -slope_y, np.ones_like(slope_x)], -1)
        up /= np.linalg.norm(up, axis=-1, keepdims=True)

        cos, sin = np.cos(yaw), np.sin(yaw)
        forward = np.stack([cos, sin, slope_x * cos + slope_y * sin], -1)
        forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
        return np.stack([forward, np.cross(up, forward), up], -1)


@dataclass(frozen=True)
class Speed:
    """Speed that changes once, smoothly: `before` until `start`, `after` from `end` (m/s, s)."""

    before: float
    after: float = 0.0
    start: float = np.inf
    end: float = np.inf

    def traveled(self, time: np.ndarray) -> np.ndarray:
        """Meters since time 0, any shape; the integral of a smoothstep between the two speeds."""
        if not np.isfinite(self.start):
            return self.before * time
        span = self.end - self.start
        u = np.clip((time - self.start) / span, 0.0, 1.0)
        eased = span * (u**3 - 0.5 * u**4) + np.maximum(time - self.end, 0.0)
        return self.before * time + (self.after - self.before) * eased

    def at(self, time: np.ndarray) -> np.ndarray:
        """Speed at `time`, m/s."""
        if not np.isfinite(self.start):
            return np.full(np.shape(time), self.before)
        u = np.clip((time - self.start) / (self.end - self.start), 0.0, 1.0)
        return self.before + (self.after - self.before) * (3 * u**2 - 2 * u**3)


def _advance(knot: np.ndarray, length: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """x, y, yaw [..., 3] after `length` meters of constant curvature (1/m)."""
    x, y, yaw = np.moveaxis(knot, -1, 0)
    half = 0.5 * curvature * length
    chord = length * np.sinc(half / np.pi)
    new_x = x + chord * np.cos(yaw + half)
    new_y = y + chord * np.sin(yaw + half)
    return np.stack([new_x, new_y, yaw + 2 * half], -1)


class Path:
    """A curve of straights and arcs with continuous heading, extended straight beyond both ends.

    Args:
        start: (x, y, yaw) at arc length 0, m and rad.
        pieces: (length m, turn rad) each; a turn of 0 is a straight, positive turns left.
    """

    def __init__(
        self, start: tuple[float, float, float], pieces: Sequence[tuple[float, float]] = ()
    ):
        lengths = np.array([piece[0] for piece in pieces], float)
        self.curvature = np.array([turn / length for length, turn in pieces] + [0.0])  # [K]
        # arc length at which each piece starts, [K]
        self.begin = np.concatenate([[0.0], np.cumsum(lengths)])
        knots = [np.array(start, float)]
        for i, length in enumerate(lengths):
            knots.append(_advance(knots[-1], length, self.curvature[i]))
        self.knots = np.array(knots)  # [K, 3]

    def at(self, s: np.ndarray) -> np.ndarray:
        """[T, 3] x, y, yaw at arc lengths s [T]."""
        s = np.asarray(s, float)
        piece = np.clip(np.searchsorted(self.begin, s, side='right') - 1, 0, len(self.begin) - 1)
        curvature = np.where(s < 0, 0.0, self.curvature[piece])
        return _advance(self.knots[piece], s - self.begin[piece], curvature)


@dataclass(frozen=True)
class Motion:
    """Where a road user is at any time: a place on a path, `offset` meters along it at time 0."""

    path: Path
    speed: Speed
    offset: float = 0.0
    lift: float = 0.0  # m above the ground: a sidewalk's height

    def pose(self, time: np.ndarray, ground: Ground) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pose at times [T] s: position on the ground [T, 3] m, rotation [T, 3, 3], yaw [T] rad."""
        arc_length = self.offset + self.speed.traveled(np.asarray(time, float))
        x, y, yaw = self.path.at(arc_length).T
        position = np.stack([x, y, ground.height(x, y) + self.lift], -1)
        return position, ground.orientation(x, y, yaw), yaw


def _stack_padded(columns: list[np.ndarray], length: int, fill: float) -> np.ndarray:
    """[M, length, ...] of M columns, shorter ones padded at their end."""
    shape = (-1, length, *columns[0].shape[1:]) if columns else (0, length)
    padded = []
    for column in columns:
        padding = np.full((length - len(column), *column.shape[1:]), fill)
        padded.append(np.concatenate([column, padding]))
    return np.array(padded).reshape(shape)


class Fleet:
    """M motions as arrays, so that all poses at one time cost a few numpy calls."""

    def __init__(self, motions: list[Motion]):
        paths = [motion.path for motion in motions]
        pieces = max((len(path.begin) for path in paths), default=1)
        self._begin = _stack_padded([path.begin for path in paths], pieces, np.inf)
        self._curvature = _stack_padded([path.curvature for path in paths], pieces, 0.0)
        knots = _stack_padded([path.knots for path in paths], pieces, 0.0)
        self._knots = knots.reshape(-1, pieces, 3)
        self._offset = np.array([motion.offset for motion in motions])
        self._lift = np.array([motion.lift for motion in motions])
        # one evaluation per distinct profile: columns of traffic share theirs
        self._speeds: dict[Speed, list[int]] = {}
        for index, motion in enumerate(motions):
            self._speeds.setdefault(motion.speed, []).append(index)

    def traveled(self, time: float) -> np.ndarray:
        """[M] arc lengths at `time`, m."""
        s = self._offset.copy()
        for speed, indices in self._speeds.items():
            s[indices] += float(speed.traveled(np.array(time)))
        return s

    def pose(self, time: float, ground: Ground) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Position [M, 3] m, rotation [M, 3, 3], yaw [M] rad at `time`, as each `Motion.pose`."""
        s = self.traveled(time)
        row = np.arange(len(s))
        piece = np.maximum((self._begin <= s[:, None]).sum(1) - 1, 0)
        curvature = np.where(s < 0, 0.0, self._curvature[row, piece])
        x, y, yaw = _advance(self._knots[row, piece], s - self._begin[row, piece], curvature).T
        position = np.stack([x, y, ground.height(x, y) + self._lift], -1)
        return position, ground.orientation(x, y, yaw), yaw
