"""How things move: paths of straights and arcs, speed profiles, and the ground that they follow."""

from __future__ import annotations

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
    return np.stack(
        [x + chord * np.cos(yaw + half), y + chord * np.sin(yaw + half), yaw + 2 * half], -1
    )


class Path:
    """A curve of straights and arcs with continuous heading; it goes on straight beyond both ends.

    Args:
        start: (x, y, yaw) at arc length 0, m and rad.
        pieces: (length m, turn rad) each; a turn of 0 is a straight, positive turns left.
    """

    def __init__(self, start: tuple[float, float, float], pieces: list[tuple[float, float]] = ()):
        lengths = np.array([piece[0] for piece in pieces], float)
        self.curvature = np.array([turn / length for length, turn in pieces] + [0.0])  # [K]
        self.begin = np.concatenate(
            [[0.0], np.cumsum(lengths)]
        )  # [K] arc length at which each piece starts
        knots = [np.array(start, float)]
        for i, length in enumerate(lengths):
            knots.append(_advance(knots[-1], length, self.curvature[i]))
        self.knots = np.array(knots)  # [K, 3]

    def at(self, s: np.ndarray) -> np.ndarray:
        """[T, 3] x, y, yaw at arc lengths s [T]."""
        s = np.asarray(s, float)
        piece = np.clip(np.searchsorted(self.begin, s, side='right') - 1, 0, len(self.begin) - 1)
        return _advance(
            self.knots[piece], s - self.begin[piece], np.where(s < 0, 0.0, self.curvature[piece])
        )


@dataclass(frozen=True)
class Motion:
    """Where a road user is at any time: a place on a path, `offset` meters along it at time 0."""

    path: Path
    speed: Speed
    offset: float = 0.0
    lift: float = 0.0  # m above the ground: a pavement's height

    def pose(self, time: np.ndarray, ground: Ground) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pose at times [T] s: position on the ground [T, 3] m, rotation [T, 3, 3], yaw [T] rad."""
        x, y, yaw = self.path.at(self.offset + self.speed.travelled(np.asarray(time, float))).T
        position = np.stack([x, y, ground.height(x, y) + self.lift], -1)
        return position, ground.orientation(x, y, yaw), yaw


class Fleet:
    """Many motions as arrays, so that all poses at one time cost a few numpy calls.

    Args:
        motions: M of them.
    """

    def __init__(self, motions: list[Motion]):
        pieces = max((len(motion.path.begin) for motion in motions), default=1)

        def pad(column: np.ndarray, fill: float) -> np.ndarray:
            return np.concatenate(
                [column, np.full((pieces - len(column), *column.shape[1:]), fill)]
            )

        self._begin = np.array([pad(motion.path.begin, np.inf) for motion in motions]).reshape(
            -1, pieces
        )
        self._curvature = np.array([pad(motion.path.curvature, 0.0) for motion in motions]).reshape(
            -1, pieces
        )
        self._knots = np.array([pad(motion.path.knots, 0.0) for motion in motions]).reshape(
            -1, pieces, 3
        )
        self._offset = np.array([motion.offset for motion in motions])
        self._lift = np.array([motion.lift for motion in motions])
        self._speeds = {}  # one evaluation per distinct profile: columns of traffic share theirs
        for index, motion in enumerate(motions):
            self._speeds.setdefault(motion.speed, []).append(index)

    def travelled(self, time: float) -> np.ndarray:
        """[M] arc lengths at `time`, m."""
        s = self._offset.copy()
        for speed, members in self._speeds.items():
            s[members] += float(speed.travelled(np.array(time)))
        return s

    def pose(self, time: float, ground: Ground) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Position [M, 3] m, rotation [M, 3, 3], yaw [M] rad at `time`; the same as each motion's
        own `pose`."""
        s = self.travelled(time)
        row = np.arange(len(s))
        piece = np.maximum((self._begin <= s[:, None]).sum(1) - 1, 0)
        curvature = np.where(s < 0, 0.0, self._curvature[row, piece])
        x, y, yaw = _advance(self._knots[row, piece], s - self._begin[row, piece], curvature).T
        return (
            np.stack([x, y, ground.height(x, y) + self._lift], -1),
            ground.orientation(x, y, yaw),
            yaw,
        )
