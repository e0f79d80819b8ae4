"""Waymo's five LiDARs, a 64-beam TOP and four short-range ones, and their range images.

Row 0 of a range image is the highest beam; column j looks, in the vehicle frame, towards the
heading ((W - j - 0.5) / W * 2 - 1) pi, so the middle one looks ahead and the image runs clockwise
from the rear.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from stratified3d.simulation.physics.lidar import MountedLidar, Pose, fire, receive, tip
from stratified3d.simulation.physics.scanners import Noise
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
_SECOND_GAP = 1.0  # m between two echoes that are told apart
_SECOND_SHARE = 0.35  # how often there is a second one
_DIVERGENCE = 3e-3  # rad, of the beam: what lies slanted in it stretches the echo


class RangeImages(NamedTuple):
    """One laser's frame.

    Attributes:
        first, second: returns 1 and 2, each [H, W, 4] float32 range (m, -1 where there is none),
            intensity, elongation, whether in the no-label zone (1 or -1).
        pose: [H, W, 6] float32 roll, pitch, yaw, x, y, z of each pixel; TOP's only, else None.
        points: [N, 3] of all returns in the scene, m, row by row and return by return.
    """

    first: np.ndarray
    second: np.ndarray
    pose: np.ndarray | None
    points: np.ndarray


class WaymoLidar(MountedLidar):
    """One laser with its calibration.

    Attributes:
        laser: its name, 1 to 5.
        shape: rows and columns of its range image.
        columns: those of its image that it fills.
        inclinations: rad, ascending; None where `limits` are enough.
        limits: (min, max) of the inclination: rows are spread evenly between them.
    """

    def __init__(self, laser: int, tilt: tuple[float, float]):
        self.laser = laser
        self.inclinations: np.ndarray | None = None
        if laser == TOP:
            yaw, place = _TOP_YAW, _TOP_PLACE
            heading, rows, delays = self._lay_out_top()
        else:
            yaw, place = _SHORT_PLACES[laser]
            heading, rows, delays = self._lay_out_short(yaw)
        cos, sin = math.cos(yaw), math.sin(yaw)
        about_z = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        mount = Pose(tip(*tilt) @ about_z, np.array(place))
        azimuth = heading - math.atan2(mount.rotation[1, 0], mount.rotation[0, 0])
        super().__init__(
            mount, _unit_vectors(azimuth, rows[::-1]), delays, 640 + laser, self.max_range
        )

    def _lay_out_top(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Set TOP's image; returns headings [C] rad, inclinations [B] rad and delays [C] s."""
        self.shape, self.max_range = (_TOP_ROWS, _TOP_COLUMNS), _TOP_RANGE
        # beams lie closest together near the horizon
        rows = 0.042 - 0.352 * np.linspace(1.0, 0.0, _TOP_ROWS) ** 1.6
        self.inclinations = rows
        self.limits = (float(rows[0]), float(rows[-1]))
        self.columns = np.arange(_TOP_COLUMNS)
        from_middle = self.columns - (_TOP_COLUMNS - 1) / 2
        return headings(_TOP_COLUMNS), rows, from_middle * (TURN_SECONDS / _TOP_COLUMNS)

    def _lay_out_short(self, yaw: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Set a short-range laser's image; returns as `_lay_out_top`."""
        self.shape, self.max_range = (_SHORT_ROWS, _SHORT_COLUMNS), _SHORT_RANGE
        low, high = self.limits = (-math.pi / 2, math.pi / 6)
        rows = low + (np.arange(_SHORT_ROWS) + 0.5) / _SHORT_ROWS * (high - low)
        every = headings(_SHORT_COLUMNS)
        aside = np.abs((every - yaw + math.pi) % (2 * math.pi) - math.pi)
        self.columns = np.flatnonzero(aside < _SHORT_HALF_FIELD)
        return every[self.columns], rows, np.zeros(len(self.columns))

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
        cast = fire(self, poses, primitives, scene.ground.coefficients)
        first, intensity, world = receive(self, poses, primitives, scene.surface, cast, noise, rng)
        first[~np.isfinite(cast[0])] = 0.0  # the own car's roof is left out
        second = _second_echoes(first, cast[0], rng)
        elongation = _elongation(first, cast[2])

        images = []
        seen = []
        rays = np.swapaxes(world, 1, 2)  # [C, B, 3]
        for measured, bright in ((first, intensity / 64.0), (second, intensity / 128.0)):
            spots = poses.translation[:, None] + rays * measured[..., None]
            hidden = np.where(_is_in_zone(spots, zone), 1.0, -1.0)
            channels = np.stack([measured, bright, elongation, hidden], -1)
            images.append(self._fill_image(channels))
            seen.append(np.swapaxes(spots, 0, 1)[(measured > 0).T])
        pose = self._pixel_poses(vehicle, origin) if self.laser == TOP else None
        return RangeImages(images[0], images[1], pose, np.concatenate(seen))

    def _fill_image(self, channels: np.ndarray) -> np.ndarray:
        """[H, W, 4] range image of the fired columns [C, B, 4]; -1 where there is no return."""
        image = np.full((*self.shape, 4), -1.0, np.float32)
        columns = channels.astype(np.float32)
        columns[channels[..., 0] <= 0] = -1.0
        image[:, self.columns] = np.swapaxes(columns, 0, 1)
        return image

    def _pixel_poses(self, vehicle: Pose, origin: np.ndarray) -> np.ndarray:
        """[H, W, 6] float32 roll, pitch, yaw, x, y, z of the vehicle [W] on the map."""
        r = vehicle.rotation
        angles = [
            np.arctan2(r[:, 2, 1], r[:, 2, 2]),
            -np.arcsin(r[:, 2, 0]),
            np.arctan2(r[:, 1, 0], r[:, 0, 0]),
        ]
        position = vehicle.translation + origin
        pose = np.concatenate([np.stack(angles, 1), position], 1).astype(np.float32)  # [W, 6]
        return np.broadcast_to(pose, (*self.shape, 6)).copy()


def _unit_vectors(azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    """[C, B, 3] directions of azimuths [C] and elevations [B], rad."""
    azimuth = azimuth[:, None]
    elevation = elevation[None]
    x = np.cos(azimuth) * np.cos(elevation)
    y = np.sin(azimuth) * np.cos(elevation)
    return np.stack(np.broadcast_arrays(x, y, np.sin(elevation)), -1)


def _elongation(first: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """[C, B] stretch of the echo of a surface that the beam meets at |cos(incidence)|."""
    slant = np.sqrt(np.maximum(1 - cosine**2, 0.0)) / np.maximum(cosine, 0.05)
    return np.minimum(np.where(first > 0, first * _DIVERGENCE * slant, 0.0), 1.5)


def _second_echoes(first: np.ndarray, distance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[C, B] range of the second return, 0 where there is none.

    A pulse that meets an edge reaches what lies behind it, where the next column looks.
    """
    behind = np.roll(distance, -1, 0)
    is_edge = (first > 0) & np.isfinite(behind) & (behind > first + _SECOND_GAP)
    second = np.where(is_edge, behind, 0.0)
    return second * (rng.random(second.shape) < _SECOND_SHARE)


def _is_in_zone(spots: np.ndarray, zone: np.ndarray) -> np.ndarray:
    """Whether positions [..., 3] lie in a no-label zone [3], x, y and radius."""
    return np.hypot(spots[..., 0] - zone[0], spots[..., 1] - zone[1]) < zone[2]


def headings(columns: int) -> np.ndarray:
    """[columns] directions of a range image's columns in the vehicle frame, rad."""
    return ((columns - np.arange(columns) - 0.5) / columns * 2 - 1) * np.pi


def to_matrix(pose: Pose) -> np.ndarray:
    """[4, 4] of one pose."""
    matrix = np.eye(4)
    matrix[:3, :3] = pose.rotation
    matrix[:3, 3] = pose.translation
    return matrix
