"""Frames of LiDAR sensors, and the way from a file's frame to the one that a model learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stratified3d.ground import find_ground

AXES = ('x', 'y', '-x', '-y')  # each is a quarter turn counterclockwise from the one before
_FULL_SCALES = (1.0, 255.0, 65535.0)
_FARTHEST = 100.0  # m above the ground


@dataclass(frozen=True)
class Sensor:
    """The frame of a LiDAR file: z is up, lengths are in meters.

    Args:
        forward: the axis along which the car drives: 'x', 'y', '-x' or '-y'.
        height: of the frame's origin above the ground, m; None: found in each frame.
        intensity_max: full scale of the intensity; None: the smallest of 1, 255 and 65535 that a
            frame stays below.
        beams: how many lasers, for information.
        drop_own: leave out detections that contain the frame's origin, seen from above: they are
            the vehicle that carries the sensor. False for a sensor above others, as on a gantry.
    Raises:
        ValueError: an unknown axis, a height that is not one in meters, a full scale of 0 or less.
    """

    forward: str = 'x'
    height: float | None = None
    intensity_max: float | None = None
    beams: int | None = None
    drop_own: bool = True

    def __post_init__(self):
        if self.forward not in AXES:
            raise ValueError(f'forward is one of {", ".join(AXES)}, not {self.forward!r}')
        if self.height is not None and not abs(self.height) <= _FARTHEST:
            raise ValueError(
                f'height is in meters above the ground, at most {_FARTHEST:g}, not {self.height:g}'
            )
        if self.intensity_max is not None and not self.intensity_max > 0:
            raise ValueError(f'intensity_max is above 0, not {self.intensity_max:g}')


SENSORS = {
    'nuscenes': Sensor('y', 1.84, 255.0, 32),
    'kitti': Sensor('x', 1.73, 1.0, 64),
    # the vehicle's frame; the few intensities above 1 are retroreflectors
    'waymo': Sensor('x', 0.0, 1.0, 64),
    # the ego frame: its origin is the center of the rear axle
    'argoverse2': Sensor('x', 0.33, 255.0, 64),
    'ouster_os1': Sensor('x', None, 255.0, 64),
    'vlp16': Sensor('x', None, 255.0, 16),
    'auto': Sensor('x'),
}
# whose frame a model learned, unless its config says otherwise by `sensor`
MODEL_SENSOR = 'nuscenes'


def named_sensor(sensor: Sensor | str | Mapping[str, Any]) -> Sensor:
    """The sensor of a name in SENSORS, or of a config's dict of arguments.

    Raises:
        ValueError: no such sensor, or no sensor at all.
    """
    if isinstance(sensor, Sensor):
        return sensor
    if isinstance(sensor, Mapping):
        return Sensor(**sensor)
    if sensor not in SENSORS:
        raise ValueError(
            f'there is no sensor {sensor!r}: take one of {", ".join(SENSORS)}, or describe it with '
            'Sensor(forward=, height=, intensity_max=)'
        )
    return SENSORS[sensor]


def model_sensor(config: Mapping[str, Any]) -> Sensor:
    """The frame that the model of a config learned: its `sensor`, by default nuScenes'."""
    return named_sensor(config.get('sensor', MODEL_SENSOR))


@dataclass(frozen=True)
class FrameChange:
    """From the frame of a file to the one of a model, and back.

    Points are turned about z in quarters, and lifted until the ground is where the model learned
    it. Heights that both sensors leave open are the same.

    Args:
        sensor: of the file.
        model: of the data that the model learned from.
    """

    sensor: Sensor
    model: Sensor

    @property
    def quarter_turns(self) -> int:
        """Counterclockwise, 0 to 3."""
        return (AXES.index(self.model.forward) - AXES.index(self.sensor.forward)) % 4

    @property
    def lift(self) -> float:
        """What is added to z, m."""
        return (self.sensor.height or 0.0) - (self.model.height or 0.0)

    def points_to_model(self, points: np.ndarray) -> np.ndarray:
        """Points [P, >= 4] in the model's frame; intensities stay within its full scale."""
        points = points.copy()
        points[:, :3] = _move(points[:, :3], self.quarter_turns, self.lift)
        if self.sensor.intensity_max and self.model.intensity_max:
            points[:, 3] *= self.model.intensity_max / self.sensor.intensity_max
            points[:, 3] = np.minimum(points[:, 3], self.model.intensity_max)
        return points

    def positions_to_file(self, positions: np.ndarray) -> np.ndarray:
        """Positions [N, 3] (m) of the model's frame in the file's frame."""
        return _move(positions, -self.quarter_turns, -self.lift)

    def pose_to_model(self, pose: np.ndarray) -> np.ndarray:
        """The pose [4, 4] of the model's frame, from that of the file's frame."""
        corners = self.positions_to_file(np.vstack([np.zeros(3), np.eye(3)]))
        to_file = np.eye(4)
        to_file[:3, 3] = corners[0]
        to_file[:3, :3] = (corners[1:] - corners[0]).T
        return pose @ to_file

    def boxes_to_model(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [K, 7 or 9] of the file's frame in the model's frame."""
        return _move_boxes(boxes, self.quarter_turns, self.lift)

    def boxes_to_file(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [K, 7 or 9] of the model's frame in the file's frame."""
        return _move_boxes(boxes, -self.quarter_turns, -self.lift)

    def limits_to_file(self, limits: np.ndarray) -> np.ndarray:
        """The model's range [6], x_min .. z_max (m), in the file's frame."""
        corners = self.positions_to_file(np.reshape(limits, (2, 3)))
        return np.concatenate([corners.min(0), corners.max(0)])


def full_scale(intensity: np.ndarray) -> float:
    """The smallest usual full scale that no intensity [P] exceeds: 1, 255 or 65535."""
    intensity = intensity[np.isfinite(intensity)]
    largest = float(intensity.max()) if len(intensity) else 0.0
    return next((scale for scale in _FULL_SCALES if largest <= scale), _FULL_SCALES[-1])


def frame_change(
    points: np.ndarray, sensor: Sensor | str | Mapping[str, Any], model: Sensor
) -> FrameChange:
    """The change from a sensor's frame to a model's.

    What the sensor leaves open is found in the points; where there is no ground, the height stays
    what it is.

    Args:
        points: [P, >= 4] x, y, z (m), intensity, of the file.
        sensor: of the file.
        model: of the data that the model learned from.
    Raises:
        ValueError: no such sensor, or a model whose height is unknown.
    """
    sensor = named_sensor(sensor)
    if model.height is None:
        raise ValueError(
            "the model's config does not say how high its origin is above the ground: set its "
            'sensor=dict(forward=, height=, intensity_max=)'
        )
    if sensor.height is None:
        ground, _ = find_ground(points)
        sensor = replace(sensor, height=-ground.height if ground else model.height)
    if sensor.intensity_max is None:
        sensor = replace(sensor, intensity_max=full_scale(points[:, 3]))
    return FrameChange(sensor, model)


def _turn(vectors: np.ndarray, quarter_turns: int) -> np.ndarray:
    """Vectors [N, 2] turned counterclockwise, exactly."""
    x, y = vectors.T
    turned = ((x, y), (-y, x), (-x, -y), (y, -x))
    return np.stack(turned[quarter_turns % 4], 1)


def _move(positions: np.ndarray, quarter_turns: int, lift: float) -> np.ndarray:
    """Positions [N, 3] turned about z, then lifted."""
    turned = _turn(positions[:, :2], quarter_turns)
    return np.concatenate([turned, positions[:, 2:] + lift], 1)


def _move_boxes(boxes: np.ndarray, quarter_turns: int, lift: float) -> np.ndarray:
    """Boxes [K, 7 or 9] turned about z, then lifted; yaw stays within half a turn of 0."""
    boxes = boxes.copy()
    boxes[:, :3] = _move(boxes[:, :3], quarter_turns, lift)
    if quarter_turns % 4:
        yaw = boxes[:, 6] + quarter_turns * np.pi / 2
        boxes[:, 6] = (yaw + np.pi) % (2 * np.pi) - np.pi
    if boxes.shape[1] > 7:
        boxes[:, 7:9] = _turn(boxes[:, 7:9], quarter_turns)
    return boxes
