"""How things move: paths of straights and arcs, speed profiles, and the ground that they follow."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ground:
    """A gently curved ground, z = g0 + g1 x + g2 y + g3 x^2 + g4 x y + g5 y^2 (m).

    A quadric, because a ray meets it in closed form; its second derivatives bend a road by metres over 100 m.
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
        slope_x, slope_y = g[1] + 2 * g[3] * x + g[4] * y, g[2] + g[4] * x + 2 * g[5] * y
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

    def travelled(self, time: np.ndarray) -> np.ndarray:
        """Metres since time 0, any shape; the integral of a smoothstep between the two speeds."""
        if not np.isfinite(self.start):
            return self.before * time
        span = self.end - self.start
        u = np.clip((time - self.start) / span, 0.0, 1.0)
        eased = span * (u ** 3 - 0.5 * u ** 4) + np.maximum(time - self.end, 0.0)
        return self.before * time + (self.after - self.before) * eased

    def at(self, time: np.ndarray) -> np.ndarray:
        """Speed at `time`, m/s."""
        if not np.isfinite(self.start):
            return np.full(np.shape(time), self.before)
        u = np.clip((time - self.start) / (self.end - self.start), 0.0, 1.0)
        return self.before + (self.after - self.before) * (3 * u ** 2 - 2 * u ** 3)


class Path:
    """A curve of straights and arcs with continuous heading; it goes on straight beyond both ends.

    Args:
        start: (x, y, yaw) at arc length 0, m and rad.
        pieces: (length m, turn rad) each; a turn of 0 is a straight, positive turns left.
    """

    def __init__(self, start: tuple[float, float, float], pieces: list[tuple[float, float]]):
        self._lengths = np.array([piece[0] for piece in pieces], float)
        self._curvature = np.array([turn / length for length, turn in pieces] + [0.0])
        self._begin = np.concatenate([[0.0], np.cumsum(self._lengths)])
        knots = [np.array(start, float)]
        for i, length in enumerate(self._lengths):
            knots.append(self._advance(knots[-1], length, self._curvature[i]))
        self._knots = np.array(knots)

    @staticmethod
    def _advance(knot: np.ndarray, length: np.ndarray, curvature: np.ndarray) -> np.ndarray:
        x, y, yaw = np.moveaxis(knot, -1, 0)
        half = 0.5 * curvature * length
        chord = length * np.sinc(half / np.pi)
        return np.stack([x + chord * np.cos(yaw + half), y + chord * np.sin(yaw + half), yaw + 2 * half], -1)

    def at(self, s: np.ndarray) -> np.ndarray:
        """[T, 3] x, y, yaw at arc lengths s [T]."""
        s = np.asarray(s, float)
        piece = np.clip(np.searchsorted(self._begin, s, side='right') - 1, 0, len(self._begin) - 1)
        curvature = np.where(s < 0, 0.0, self._curvature[piece])
        return self._advance(self._knots[piece], s - self._begin[piece], curvature)


@dataclass(frozen=True)
class Motion:
    """Where a road user is at any time: a place on a path, `offset` metres along it at time 0."""
    path: Path
    speed: Speed
    offset: float = 0.0
    lift: float = 0.0  # m above the ground: a pavement's height

    def pose(self, time: np.ndarray, ground: Ground) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pose at times [T] s: position on the ground [T, 3] m, rotation [T, 3, 3], yaw [T] rad."""
        time = np.atleast_1d(np.asarray(time, float))
        x, y, yaw = self.path.at(self.offset + self.speed.travelled(time)).T
        position = np.stack([x, y, ground.height(x, y) + self.lift], -1)
        return position, ground.orientation(x, y, yaw), yaw
