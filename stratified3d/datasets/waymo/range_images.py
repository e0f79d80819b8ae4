"""Waymo's range images to points, on numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RangeImage = tuple[np.ndarray, list[int]] | None  # values and shape; None where there is no return


class LaserCalibration(NamedTuple):
    """Calibration of a LiDAR: extrinsic [4, 4] sensor to vehicle; inclinations of its beams (rad),
    ascending, or None where they are spread evenly between the lowest and the highest."""

    extrinsic: np.ndarray
    inclinations: Sequence[float] | None
    min_inclination: float
    max_inclination: float


def beam_inclinations(
    values: Sequence[float] | np.ndarray | None, low: float, high: float, rows: int
) -> np.ndarray:
    """[rows] inclinations of a range image's rows, rad, the highest beam first.

    Args:
        values: the calibration's, ascending; None where beams are spread evenly from low to high.
    Raises:
        ValueError: not one value per row.
    """
    if values is None:
        values = low + (np.arange(rows) + 0.5) / rows * (high - low)
    if len(values) != rows:
        raise ValueError(
            f'the calibration has {len(values)} inclinations, but the range image has {rows} rows'
        )
    return np.asarray(values, np.float64)[::-1]


def image_points(
    image: np.ndarray,
    inclinations: np.ndarray,
    extrinsic: np.ndarray,
    pose: np.ndarray | None = None,
    vehicle_pose: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Points of one return of one LiDAR in the vehicle frame.

    Column j of W looks towards azimuth ((W - j - 0.5) / W * 2 - 1) pi less the extrinsic's yaw.
    Where every pixel has a pose of its own, a point goes to the world by that of its pixel, taken
    when the beam was fired, and back by the frame's (Waymo Open Dataset, perception v2).

    Args:
        image: [H, W, C], channel 0 the range in m; pixels without a return have none above 0.
        inclinations: [H] rad, see `beam_inclinations`.
        extrinsic: [4, 4] sensor to vehicle.
        pose: [H, W, 6] roll, pitch, yaw (rad), x, y, z (m) of the vehicle in the world; None for a
            sensor without.
        vehicle_pose: [4, 4] vehicle to world at the frame's timestamp; needed with `pose`.
    Returns:
        points [N, 3] float64 m, pixel [N] = row * W + column of each.
    Raises:
        ValueError: ranges or poses that are not finite.
    """
    ranges = image[..., 0].ravel()
    pixel = np.flatnonzero(ranges > 0)
    distance = ranges[pixel].astype(np.float64)  # [N]
    is_finite = not np.isnan(ranges).any() and np.isfinite(distance).all()
    if pose is not None:
        pose = pose.reshape(-1, 6)[pixel]  # [N, 6]
        is_finite = is_finite and np.isfinite(pose).all()
    if not is_finite:
        raise ValueError('a range image contains ranges or poses that are not finite')

    points = _sensor_points(distance, pixel, inclinations, extrinsic, image.shape[1])
    points = points @ extrinsic[:3, :3].T + extrinsic[:3, 3]
    if pose is not None:
        if vehicle_pose is None:
            raise ValueError("pixel poses need the vehicle's pose at the frame's timestamp")
        points = _compensate(points, pose, vehicle_pose)
    return points, pixel


def _sensor_points(
    distance: np.ndarray,
    pixel: np.ndarray,
    inclinations: np.ndarray,
    extrinsic: np.ndarray,
    width: int,
) -> np.ndarray:
    """[N, 3] points in the sensor frame from the distances [N] (m) that pixels [N] measured."""
    row, column = np.divmod(pixel, width)
    yaw = np.arctan2(extrinsic[1, 0], extrinsic[0, 0])
    azimuth = ((width - np.arange(width) - 0.5) / width * 2 - 1) * np.pi - yaw  # [W]
    level = distance * np.cos(inclinations)[row]

    x = level * np.cos(azimuth)[column]
    y = level * np.sin(azimuth)[column]
    z = distance * np.sin(inclinations)[row]
    return np.stack([x, y, z], 1)


def _compensate(points: np.ndarray, pose: np.ndarray, vehicle_pose: np.ndarray) -> np.ndarray:
    """[N, 3] from the vehicle at each pixel's time, pose [N, 6], to the vehicle at the frame's."""
    # float32, as they are stored: their sines cost a fraction of float64's
    angles = pose[:, :3].T.astype(np.float32)
    sin_roll, sin_pitch, sin_yaw = np.sin(angles).astype(np.float64)
    cos_roll, cos_pitch, cos_yaw = np.cos(angles).astype(np.float64)

    # Rz(yaw) Ry(pitch) Rx(roll)
    x, y, z = points.T
    y, z = cos_roll * y - sin_roll * z, sin_roll * y + cos_roll * z
    x, z = cos_pitch * x + sin_pitch * z, cos_pitch * z - sin_pitch * x
    x, y = cos_yaw * x - sin_yaw * y, sin_yaw * x + cos_yaw * y

    # relative to the vehicle's position: world coordinates are large
    offset = pose[:, 3:] - vehicle_pose[:3, 3]
    return (np.stack([x, y, z], 1) + offset) @ vehicle_pose[:3, :3]


def shape_image(image: tuple[np.ndarray, list[int]], channels: int) -> np.ndarray:
    """[rows, columns, channels] of a range image as it is stored.

    Raises:
        ValueError: the values do not fit the shape, or there are other channels.
    """
    values, shape = image
    if len(shape) != 3 or shape[2] != channels or np.prod(shape) != len(values):
        raise ValueError(
            f'a range image of shape {list(shape)} has {len(values)} values; expected '
            f'[rows, columns, {channels}]'
        )
    return values.reshape(shape)


def decode_return(
    image: RangeImage,
    number: int,
    calibration: LaserCalibration,
    pose: np.ndarray | None,
    vehicle_pose: np.ndarray,
) -> np.ndarray:
    """Points of one return of one LiDAR, with their measurements.

    Args:
        image: channels range (m), intensity, elongation, whether in a no-label zone (1).
        number: 0 for the first return, 1 for the second.
        calibration: the LiDAR's.
        pose: [H, W, 6] pixel poses of TOP, see `image_points`; None for the other LiDARs.
        vehicle_pose: [4, 4] vehicle to world at the frame's timestamp.
    Returns:
        [P, 7] float32: x, y, z (m, vehicle frame), intensity, elongation, pixel (second returns
        count on; -1 without poses), whether the point lies in a no-label zone (1).
    Raises:
        ValueError: another shape than the calibration's or the poses'; numbers that are not finite.
    """
    if image is None:
        return np.zeros((0, 7), np.float32)
    values = shape_image(image, 4)
    rows, columns = values.shape[:2]
    inclinations = beam_inclinations(
        calibration.inclinations, calibration.min_inclination, calibration.max_inclination, rows
    )
    if pose is not None and pose.shape[:2] != (rows, columns):
        raise ValueError(
            f'a range image of {rows} x {columns} pixels has {pose.shape[0]} x {pose.shape[1]} '
            'poses in lidar_pose'
        )

    xyz, pixel = image_points(values, inclinations, calibration.extrinsic, pose, vehicle_pose)
    points = np.empty((len(xyz), 7), np.float32)
    points[:, :3] = xyz
    points[:, [3, 4, 6]] = values.reshape(-1, 4)[pixel, 1:]
    points[:, 5] = -1 if pose is None else number * rows * columns + pixel
    if np.isnan(points).any():
        raise ValueError(
            'a range image contains an intensity, elongation or zone that is not a number'
        )
    return points
