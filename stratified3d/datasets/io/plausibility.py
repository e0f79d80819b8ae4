"""Whether numbers can be the coordinates of a LiDAR's points, in meters or another unit."""

from __future__ import annotations

import numpy as np

_SAMPLE = 20_000  # points that are looked at
_MANY = 1000  # points, from which on one place or one number is no chance
_LARGEST = 1e8  # a sweep in micrometers
_SMALLEST = 1e-25  # beside 0; rounding leaves numbers of 1e-17
_MAP = 1e5  # a sweep in millimeters, or map coordinates
_NO_METERS = 1000  # whole numbers beyond are millimeters, ticks, colors


def sample_rows(rows: np.ndarray, count: int) -> np.ndarray:
    """Take rows at random, the same on every call; every so many-th one would follow patterns.

    Args:
        rows: [P, ...].
        count: number of rows that are taken where there are more.
    """
    if len(rows) <= count:
        return rows
    return rows[np.sort(np.random.default_rng(0).integers(0, len(rows), count))]


def find_fault(coordinates: np.ndarray, may_be_missing: bool = False) -> str:
    """Say why numbers cannot be coordinates.

    The unit is not judged, nor are axes.

    Args:
        coordinates: [P, 3] x, y, z of any float type.
        may_be_missing: most rows may be NaN, as pixels without a return in an organized cloud.
    Returns:
        What is wrong and the remedy; empty if nothing is.
    """
    if not len(coordinates):
        return ''
    sample = sample_rows(coordinates, _SAMPLE)
    is_finite = np.isfinite(sample).all(1)
    share = is_finite.mean()
    if share == 0 or share < 0.5 and not may_be_missing:
        return f'{1 - share:.0%} of its points hold NaN or infinite coordinates: leave them out'

    sample = sample[is_finite]
    is_absurd = _are_absurd(sample)
    if is_absurd.mean() > 0.01:
        sizes = np.abs(sample)
        smallest = sizes[sizes > 0].min()
        return (
            f'{is_absurd.mean():.0%} of its points hold numbers that no coordinate has, '
            f'{smallest:.0e} to {sizes.max():.0e}'
        )

    sample = sample[~is_absurd]
    return _find_wrong_axis(sample) if len(sample) >= _MANY else ''


def _are_absurd(sample: np.ndarray) -> np.ndarray:
    """Whether points [P, 3] have a number [P] that no coordinate has."""
    sizes = np.abs(sample)
    return ((sizes > _LARGEST) | (sizes > 0) & (sizes < _SMALLEST)).any(1)


def _find_wrong_axis(sample: np.ndarray) -> str:
    """Coordinates [P, 3] that look like numbers but not like places around a sensor."""
    middle = np.median(sample, 0)
    is_middle = sample == middle
    at_one_place = is_middle.all(1).mean()
    if at_one_place > 0.5:
        return f'{at_one_place:.0%} of its points are at one place, {middle}: leave them out'
    for axis in (0, 1):
        if is_middle[:, axis].mean() > 0.9:
            return (
                f'{"xy"[axis]} is {middle[axis]:g} in nearly all points: that is no coordinate, '
                'x, y and z have to be the first columns'
            )

    horizontal = np.hypot(sample[:, 0], sample[:, 1])
    if (np.abs(sample[:, 2] - horizontal) < 0.05 * horizontal).mean() > 0.9:
        return 'z is the distance to the point, no height: write x, y, z, intensity'

    extent = np.ptp(np.percentile(sample, (1, 99), 0), 0).max()
    distance = np.abs(middle).max()
    if distance > _MAP and distance > 20 * extent:
        return (
            f'its points lie around {middle}, {extent:g} wide: these are map coordinates, which '
            'float32 rounds; subtract the position of the sensor'
        )
    return ''


def find_integer_fault(coordinates: list[np.ndarray]) -> str:
    """Say why whole numbers are not meters.

    Args:
        coordinates: columns x, y, z; other types than integers have no fault.
    Returns:
        What is wrong and the remedy; empty if nothing is.
    """
    is_integer = all(column.dtype.kind in 'iu' for column in coordinates)
    if not is_integer or not len(coordinates[0]):
        return ''
    smallest = min(int(column.min()) for column in coordinates)
    largest = max(int(column.max()) for column in coordinates)
    if smallest < 0 and max(-smallest, largest) <= _NO_METERS:
        return ''
    return (
        f'its coordinates are integers ({coordinates[0].dtype}) from {smallest} to {largest}, no '
        'meters: scale them and write float32, for example (0.001 * points).astype(np.float32)'
    )
