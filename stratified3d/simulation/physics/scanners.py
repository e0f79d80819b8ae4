"""Kinds of rotating LiDAR: beams, firing times, range, and how they were mounted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

SWEEP_SECONDS = 0.05  # from one sweep of a nuScenes dataset to the next


@dataclass(frozen=True)
class Noise:
    """Differences between a measured return and the geometric one.

    Attributes:
        range_sigma: m, 1 sigma (HDL-32E: 2 cm).
        dropped: share of returns lost for no reason.
        reach: m, distance at which a surface of intensity 10 at normal incidence is lost half of
            the time.
        mixed: share of the returns at a depth edge that land between the two surfaces.
    """

    range_sigma: float = 0.02
    dropped: float = 0.005
    reach: float = 70.0
    mixed: float = 0.25


SILENT = Noise(0.0, 0.0, math.inf, 0.0)


@dataclass(frozen=True)
class Scanner:
    """A kind of LiDAR that turns clockwise and fires all beams of a column at once.

    Attributes:
        elevations: of the beams, degrees; ring 0 comes first.
        columns: firings per turn.
        azimuths: of each beam beside its column, degrees; empty for none. Heads stacked on one axis
            are one scanner whose beams have other azimuths; that they stand some centimeters apart
            is left out.
        turn: s.
        max_range: m; at most 105, because simulated streets end not far beyond.
        noise: of its returns.
    """

    elevations: tuple[float, ...]
    columns: int
    azimuths: tuple[float, ...] = ()
    turn: float = SWEEP_SECONDS
    max_range: float = 105.0
    noise: Noise = field(default_factory=Noise)

    @property
    def beams(self) -> int:
        """How many rays a column has."""
        return len(self.elevations)

    @property
    def sweep_steps(self) -> int:
        """Sweeps of 20 Hz that pass in one turn."""
        return round(self.turn / SWEEP_SECONDS)

    def directions(self) -> np.ndarray:
        """[C, B, 3] unit vectors in the LIDAR_TOP frame (x right, y forward, z up).

        The first column looks to the left (-x), as in the files of nuScenes.
        """
        azimuth = np.pi - np.arange(self.columns)[:, None] * (2 * np.pi / self.columns)
        if self.azimuths:
            azimuth = azimuth + np.radians(self.azimuths)
        elevation = np.radians(self.elevations)
        level = np.cos(elevation)
        x = level * np.cos(azimuth)
        y = level * np.sin(azimuth)
        return np.stack(np.broadcast_arrays(x, y, np.sin(elevation)), -1)

    def delays(self) -> np.ndarray:
        """[C] s relative to the sweep's timestamp, which is the end of its turn."""
        return (np.arange(self.columns) - (self.columns - 1)) * (self.turn / self.columns)


def _even(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(np.linspace(low, high, count))


# VLP-32C, user manual: closest together near the horizon
_VLP_32C = (
    *(-25.0, -15.639, -11.31, -8.843, -7.254, -6.148, -5.333, -4.667, -4.0, -3.667, -3.333),
    *(-3.0, -2.667, -2.333, -2.0, -1.667, -1.333, -1.0, -0.667, -0.333, 0.0, 0.333, 0.667),
    *(1.0, 1.333, 1.667, 2.333, 3.333, 4.667, 7.0, 10.333, 15.0),
)
_TOP = tuple(np.degrees(0.042 - 0.352 * np.linspace(1.0, 0.0, 64) ** 1.6))
_FAR = Noise(reach=100.0)

# by the names of `stratified3d.sensors`; data sheets, and the data sets' papers
SCANNERS = {
    # HDL-32E
    'nuscenes': Scanner(_even(-30.67, 10.67, 32), 1084),
    # HDL-64E S2: a lower block at half a degree, an upper one at a third
    'kitti': Scanner(
        (*_even(-24.33, -8.83, 32), *_even(-8.33, 2.0, 32)), 2083, turn=0.1, noise=_FAR
    ),
    # the TOP laser, as `simulation.waymo` has it
    'waymo': Scanner(_TOP, 2650, turn=0.1, max_range=75.0, noise=_FAR),
    # two VLP-32C on one axis, the lower one upside down and half a turn behind
    'argoverse2': Scanner(
        (*_VLP_32C, *(-elevation for elevation in _VLP_32C[::-1])),
        1800,
        azimuths=(0.0,) * 32 + (180.0,) * 32,
        turn=0.1,
        noise=_FAR,
    ),
    'ouster_os1': Scanner(_even(-22.5, 22.5, 64), 1024, turn=0.1),
    'vlp16': Scanner(_even(-15.0, 15.0, 16), 1800, turn=0.1, max_range=100.0),
}
_SHARES = {  # of mixed scenes
    'nuscenes': 0.25,
    'kitti': 0.2,
    'waymo': 0.1,
    'argoverse2': 0.25,
    'ouster_os1': 0.12,
    'vlp16': 0.08,
}
MIXED = 'mixed'


@dataclass(frozen=True)
class Mounting:
    """A scanner on a car, and what its files say of brightness.

    Attributes:
        scanner: its kind.
        height: above the ground, m.
        forward: of the rear axle, m.
        heading: of the sensor's forward axis, rad counterclockwise.
        gain, gamma: an intensity v of 0 to 255 is written as 255 gain (v / 255)^gamma.
    """

    scanner: Scanner = SCANNERS['nuscenes']
    height: float = 1.84
    forward: float = 0.9437
    heading: float = 0.0
    gain: float = 1.0
    gamma: float = 1.0

    def written_intensity(self, intensity: np.ndarray) -> np.ndarray:
        """Intensities 0 to 255 as its files have them, whole numbers of that range."""
        if (self.gain, self.gamma) == (1.0, 1.0):
            return intensity
        curve = 255.0 * self.gain * (intensity / 255.0) ** self.gamma
        return np.minimum(np.floor(curve + 0.5), 255.0)


MOUNTINGS = {
    'nuscenes': Mounting(),
    'kitti': Mounting(SCANNERS['kitti'], 1.73, 0.81, gamma=0.5),
    'waymo': Mounting(SCANNERS['waymo'], 2.184, 1.43),
    'argoverse2': Mounting(SCANNERS['argoverse2'], 1.97, 1.35),
    'ouster_os1': Mounting(SCANNERS['ouster_os1']),
    'vlp16': Mounting(SCANNERS['vlp16']),
}


def check_sensor(name: str) -> None:
    """Raise ValueError unless a sensor of this name can be simulated."""
    if name not in MOUNTINGS and name != MIXED:
        raise ValueError(
            f"there is no simulated sensor '{name}': use one of {', '.join(MOUNTINGS)}, or "
            f"'{MIXED}', which draws another one for each scene"
        )


def choose_mounting(sensor: str, rng: np.random.Generator) -> Mounting:
    """The mounting of a sensor's name; for 'mixed' another one at each call.

    Mixed mountings differ in kind of scanner, height (1.4 to 2.6 m), heading, brightness, reach and
    lost returns.
    """
    check_sensor(sensor)
    if sensor != MIXED:
        return MOUNTINGS[sensor]
    base = MOUNTINGS[rng.choice(list(_SHARES), p=list(_SHARES.values()))]
    # every fourth sensor loses more returns than new ones do
    dropped = rng.uniform(0.02, 0.25) if rng.random() < 0.25 else 0.005
    noise = Noise(rng.uniform(0.01, 0.04), dropped, rng.uniform(45.0, 110.0), rng.uniform(0.1, 0.4))
    return replace(
        base,
        scanner=replace(base.scanner, noise=noise),
        height=rng.uniform(1.4, 2.6),
        heading=rng.normal(0.0, np.radians(5.0)),
        gain=float(np.exp(rng.normal(0.0, 0.4))),
        gamma=rng.uniform(0.5, 1.1),
    )
