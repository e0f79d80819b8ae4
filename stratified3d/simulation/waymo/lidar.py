"""Waymo's five LiDARs: a 64-beam TOP that turns with the car under way, four short-range ones, and
their range images.

Row 0 of a range image is the highest beam; column j looks, in the vehicle frame, towards the
heading ((W - j - 0.5) / W * 2 - 1) pi, so the middle one looks ahead and the image runs clockwise
from the rear.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from stratified3d.simulation.physics.lidar import MountedLidar, Noise, Pose, fire, receive, tip
from stratified3d.simulation.scene import Scene

TURN_SECONDS = 0.1
TOP, FRONT, SIDE_LEFT, SIDE_RIGHT, REAR = range(1, 6)  # Waymo's laser names
_TOP_ROWS, _TOP_COLUMNS, _TOP_RANGE = 64, 2650, 75.0
_SHORT_ROWS, _SHORT_COLUMNS, _SHORT_RANGE = 200, 600, 20.0
_SHORT_HALF_FIELD = math.radians(60.0)
_TOP_PLACE, _TOP_YAW = (1.43, 0.0, 2.184), 2.59  # m, rad: its cable does not point ahead
_SHORT_PLACES = {  # laser: (heading rad, place m)
    FRONT: (0.0, (4.07, 0.0, 0.69)),
    SIDE_LEFT: (math.pi / 2, (3.25, 1.02, 0.98)),
    SIDE_RIGHT: (-math.pi / 2, (3.25, -1.02, 0.98)),
    REAR: (math.pi, (-1.15, 0.0, 0.47)),
}
_SECOND_GAP, _SECOND_SHARE = (
    1.0,
    0.35,
)  # m between two echoes that are told apart; how often there is a second one
_DIVERGENCE = 3e-3  # rad, of the beam: what lies slanted in it stretches the echo


class RangeImages(NamedTuple):
    """One laser's frame: returns 1 and 2, each [H, W, 4] float32 range (m, -1 where there is none),
    intensity, elongation, in-no-label-zone (1 or -1); pose [H, W, 6] float32 roll, pitch, yaw, x,
    y, z (TOP, else None); points [N, 3] of all returns in the scene, m, row by row and return by
    return."""

    first: np.ndarray
    second: np.ndarray
    pose: np.ndarray | None
    points: np.ndarray


class WaymoLidar(MountedLidar):
    """One laser with its calibration.

    Attributes:
        laser: its name, 1 to 5. shape: rows and columns of its range image. max_range: m.
        columns: those of its image that it fills. inclinations: rad, ascending; None where `limits`
        say it all.
        limits: (min, max) of the inclination: rows are spread evenly between them.
    """

    def __init__(self, laser: int, tilt: tuple[float, float]):
        self.laser = laser
        if laser == TOP:
            self.shape, self.max_range, yaw, place = (
                (_TOP_ROWS, _TOP_COLUMNS),
                _TOP_RANGE,
                _TOP_YAW,
                _TOP_PLACE,
            )
            # beams lie closest together near the horizon
            self.inclinations = 0.042 - 0.352 * np.linspace(1.0, 0.0, _TOP_ROWS) ** 1.6
            self.limits = (float(self.inclinations[0]), float(self.inclinations[-1]))
            heading, rows = headings(_TOP_COLUMNS), self.inclinations
            self.columns = np.arange(_TOP_COLUMNS)
            delays = (self.columns - (_TOP_COLUMNS - 1) / 2) * (TURN_SECONDS / _TOP_COLUMNS)
        else:
            self.shape, self.max_range = (_SHORT_ROWS, _SHORT_COLUMNS), _SHORT_RANGE
            yaw, place = _SHORT_PLACES[laser]
            self.inclinations, self.limits = None, (-math.pi / 2, math.pi / 6)
            low, high = self.limits
            rows = low + (np.arange(_SHORT_ROWS) + 0.5) / _SHORT_ROWS * (high - low)
            every = headings(_SHORT_COLUMNS)
            aside = np.abs((every - yaw + math.pi) % (2 * math.pi) - math.pi)
            self.columns = np.flatnonzero(aside < _SHORT_HALF_FIELD)
            heading, delays = every[self.columns], np.zeros(len(self.columns))
        turn = np.array(
            [
                [math.cos(yaw), -math.sin(yaw), 0.0],
                [math.sin(yaw), math.cos(yaw), 0.0],
                [0.0, 0.0, 1.0],
            ]
        )
        mount = Pose(tip(*tilt) @ turn, np.array(place))
        azimuth = heading - math.atan2(mount.rotation[1, 0], mount.rotation[0, 0])
        azimuth, rows = azimuth[:, None], rows[None, ::-1]
        directions = np.stack(
            np.broadcast_arrays(
                np.cos(azimuth) * np.cos(rows), np.sin(azimuth) * np.cos(rows), np.sin(rows)
            ),
            -1,
        )
        super().__init__(mount, directions, delays, 640 + laser)

    def extrinsic(self) -> np.ndarray:
        """[4, 4] sensor to vehicle."""
        return to_matrix(self.mount)

    def scan(
        self,
        scene: Scene,
        time: float,
        rng: np.random.Generator,
        noise: Noise,
        zone: np.ndarray,
        origin: np.ndarray,
    ) -> RangeImages:
        """One frame, the turn of TOP centered on its timestamp.

        Args:
            rng: of this frame and laser alone.
            zone: [3] no-label zone, x, y and radius in the scene, m.
            origin: [3] m, of the scene on the map; pixel poses are given on the map.
        """
        vehicle = scene.ego_pose(time + self.delays)  # [C]
        poses = vehicle @ self.mount
        primitives = scene.primitives_at(time)
        cast = fire(self, poses, primitives, scene.ground.coefficients, self.max_range)
        first, intensity, world = receive(self, poses, primitives, scene.surface, cast, noise, rng)
        first[~np.isfinite(cast[0])] = 0.0  # the own car's roof is left out
        # a pulse that meets an edge goes on to what lies behind it, where the next column looks
        beyond = np.roll(cast[0], -1, 0)
        second = np.where(
            (first > 0) & np.isfinite(beyond) & (beyond > first + _SECOND_GAP), beyond, 0.0
        )
        second *= rng.random(second.shape) < _SECOND_SHARE
        slant = np.sqrt(np.maximum(1 - cast[2] ** 2, 0.0)) / np.maximum(cast[2], 0.05)
        elongation = np.minimum(np.where(first > 0, first * _DIVERGENCE * slant, 0.0), 1.5)
        images, seen = [], []
        for measured, bright in ((first, intensity / 64.0), (second, intensity / 128.0)):
            spots = (
                poses.translation[:, None] + np.swapaxes(world, 1, 2) * measured[..., None]
            )  # [C, B, 3]
            hidden = np.where(
                np.hypot(spots[..., 0] - zone[0], spots[..., 1] - zone[1]) < zone[2], 1.0, -1.0
            )
            image = np.full((*self.shape, 4), -1.0, np.float32)
            columns = np.stack([measured, bright, elongation, hidden], -1).astype(np.float32)
            columns[measured <= 0] = -1.0
            image[:, self.columns] = np.swapaxes(columns, 0, 1)
            images.append(image)
            seen.append(np.swapaxes(spots, 0, 1)[(measured > 0).T])
        pose = self._pixel_poses(vehicle, origin) if self.laser == TOP else None
        return RangeImages(*images, pose, np.concatenate(seen))

    def _pixel_poses(self, vehicle: Pose, origin: np.ndarray) -> np.ndarray:
        r = vehicle.rotation
        angles = [
            np.arctan2(r[:, 2, 1], r[:, 2, 2]),
            -np.arcsin(r[:, 2, 0]),
            np.arctan2(r[:, 1, 0], r[:, 0, 0]),
        ]
        pose = np.concatenate([np.stack(angles, 1), vehicle.translation + origin], 1).astype(
            np.float32
        )  # [W, 6]
        return np.broadcast_to(pose, (*self.shape, 6)).copy()


def headings(columns: int) -> np.ndarray:
    """[columns] directions of a range image's columns in the vehicle frame, rad."""
    return ((columns - np.arange(columns) - 0.5) / columns * 2 - 1) * np.pi


def to_matrix(pose: Pose) -> np.ndarray:
    """[4, 4] of one pose."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = pose.rotation, pose.translation
    return matrix
