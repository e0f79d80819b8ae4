"""Signs that a frame is not what a model takes it for: other units, another frame, no intensity."""

from __future__ import annotations

import numpy as np

from stratified3d.ground import Ground, find_ground
from stratified3d.sensors import AXES, Sensor, full_scale

_FEWEST = 200  # points of which a statistic says something
_BRIGHT = 0.1  # share of points above full scale that is more than retroreflectors
_WIDEST = 2000.0  # m from one end of a cloud to the other
_HEIGHT_OFF = 0.5  # m
_NARROW = 0.8  # mean direction of points that lie in less than a third of the circle
_ROUND = 0.3  # and of those that lie all around
_OWN_CAR = 2.5  # m; closer points are mostly of the car itself
_LANE = 1.2  # m to both sides
_FARTHEST_FREE = 60.0  # m
_OBSTACLE = (0.4, 2.5)  # m above the ground
_CORRIDOR = 2.7  # how much longer the free way is to both sides than ahead and behind


def check_frame(points: np.ndarray, sensor: Sensor, limits: np.ndarray) -> list[str]:
    """Compare a frame with what it should be.

    Args:
        points: [P, >= 4] x, y, z (m), intensity, of the file.
        sensor: what the file is taken for; a height of None is not compared.
        limits: [6] the model's range, x_min .. z_max, in the file's frame.
    Returns:
        One sentence for each kind of mistake, with what to do about it; none for a frame that is
        right or without finite points.
    """
    points = points[np.isfinite(points[:, :4]).all(1)].astype(np.float64)
    if not len(points):
        return []
    messages = [_check_intensity(points[:, 3], sensor.intensity_max)]
    place = _check_place(points[:, :3], limits)
    messages += [place] if place else _check_scene(points, sensor)
    return [message for message in messages if message]


def _check_scene(points: np.ndarray, sensor: Sensor) -> list[str]:
    """What the ground and the way of the street say; empty where they are right."""
    ground, reason = find_ground(points)
    if ground is None:
        return [f'no ground was found: {reason}{_explain_axes(points)}']
    height = round(-ground.height, 2) + 0.0  # no -0.0
    return [
        _check_height(height, sensor.height),
        _check_forward(points, ground, sensor.forward),
    ]


def _check_intensity(intensity: np.ndarray, expected: float | None) -> str:
    """Whether intensities [P] are missing or on another scale."""
    if len(intensity) < _FEWEST or expected is None:
        return ''
    largest = intensity.max()
    if largest <= 0:
        return (
            'the points have no intensity (all 0), which the model learned from: pass a file with '
            'intensities, or train without them'
        )
    is_dim = largest <= expected / 255
    if not is_dim and (intensity > expected).mean() < _BRIGHT:
        return ''
    return (
        f'intensities reach {largest:g}, where {expected:g} is full scale: say what it is in this '
        f'file, as in Sensor(intensity_max={full_scale(intensity):g}) or --intensity-max, or take '
        "sensor='auto'"
    )


def _check_place(positions: np.ndarray, limits: np.ndarray) -> str:
    """Whether positions [P, 3] are in other units, or all of them outside of the range."""
    low, high = np.percentile(positions, (1, 99), axis=0)
    extent = f'the points lie in {_describe(np.concatenate([low, high]))}'
    area = f'the range of the model is {_describe(limits)}'
    if (high - low).max() > _WIDEST:
        return (
            f'{extent}; {area}, in meters: divide the coordinates by 1000 if they are millimeters, '
            'by 100 if they are centimeters'
        )
    is_inside = (positions >= limits[:3]) & (positions < limits[3:])
    if not is_inside.all(1).any():
        return (
            f'{extent}, all outside of the range; {area}: move the sensor to the origin, and give '
            'its height, as in Sensor(height=1.8) or --sensor-height'
        )
    return ''


def _describe(limits: np.ndarray) -> str:
    low, high = limits[:3], limits[3:]
    return ', '.join(f'{axis} {a:.0f} to {b:.0f}' for axis, a, b in zip('xyz', low, high))


def _check_height(found: float, expected: float | None) -> str:
    """Whether the origin is as high above the ground (m) as it should be."""
    if expected is None or abs(found - expected) < _HEIGHT_OFF:
        return ''
    return (
        f'the origin of the frame is {found:.2f} m above the ground, not {expected:.2f} m: say so '
        f"with Sensor(height={found:.2f}) or --sensor-height, or take sensor='auto'"
    )


def _explain_axes(points: np.ndarray) -> str:
    """How to turn a frame without a ground, if that shows one."""
    x, y, z = points[:, :3].T
    if find_ground(np.stack([x, -y, -z], 1))[0]:
        return '; the frame is upside down (z points down): negate y and z'
    if find_ground(np.stack([z, -x, -y], 1))[0]:
        return '; the axes are those of a camera (y points down): take z, -x, -y for x, y, z'
    return '; x and y should be level and z up, in meters'


def _check_forward(points: np.ndarray, ground: Ground, forward: str) -> str:
    """Whether the points lie towards another axis, or the street runs across the forward axis."""
    direction = _mean_direction(points[:, :2])
    concentration = np.hypot(*direction)
    if concentration > _NARROW:
        seen = np.concatenate([direction, -direction])
        axis = AXES[int(seen.argmax())]
        return '' if axis == forward else f'the points lie towards {axis}{_expect(forward, axis)}'
    return _check_street(points, ground, forward) if concentration < _ROUND else ''


def _mean_direction(offsets: np.ndarray) -> np.ndarray:
    """The mean [2] of the directions of offsets [P, 2], without those of the car's own roof."""
    distance = np.linalg.norm(offsets, axis=1)
    is_away = distance > 1.0
    directions = offsets[is_away] / distance[is_away, None]
    return directions.mean(0) if len(directions) else np.zeros(2)


def _check_street(points: np.ndarray, ground: Ground, forward: str) -> str:
    """Whether the way is much longer to the sides than ahead and behind."""
    along, across = ('x', 'y') if forward in ('x', '-x') else ('y', 'x')
    free = _free_ways(points, ground)
    if free[across] < _CORRIDOR * free[along]:
        return ''
    ways = f'{free[across]:.0f} m along {across}, {free[along]:.0f} m along {along}'
    return f'the way is free for {ways}{_expect(forward, across)}'


def _expect(forward: str, axis: str) -> str:
    return (
        f', but {forward} is taken for forward: if that is wrong, say so with '
        f'Sensor(forward={axis!r}) or --forward'
    )


def _free_ways(points: np.ndarray, ground: Ground) -> dict[str, float]:
    """How far a lane along each axis is free in both directions together, m."""
    lowest, highest = _OBSTACLE
    above = ground.above(points)
    obstacles = points[(above > lowest) & (above < highest), :2]
    obstacles = obstacles[np.hypot(*obstacles.T) > _OWN_CAR]

    free = {}
    for k, axis in enumerate('xy'):
        ahead = obstacles[np.abs(obstacles[:, 1 - k]) < _LANE, k]
        free[axis] = _first_obstacle(ahead) + _first_obstacle(-ahead)
    return free


def _first_obstacle(places: np.ndarray) -> float:
    """The fifth of the places [N] (m) above 0, so that noise is none; or the farthest that counts
    as free."""
    places = np.sort(places[places > 0])
    return min(float(places[4]), _FARTHEST_FREE) if len(places) > 4 else _FARTHEST_FREE
