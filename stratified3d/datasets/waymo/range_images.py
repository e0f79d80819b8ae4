"""Waymo's range images to points, on numpy."""

from __future__ import annotations

import numpy as np


def beam_inclinations(values: np.ndarray | None, low: float, high: float, rows: int) -> np.ndarray:
    """[rows] inclinations of a range image's rows, rad, the highest beam first.

    Args:
        values: the calibration's, ascending; None where beams are spread evenly from low to high.
    Raises:
        ValueError: not one value a row.
    """
    if values is None:
        values = low + (np.arange(rows) + 0.5) / rows * (high - low)
    if len(values) != rows:
        raise ValueError(
            f'the calibration has {len(values)} inclinations, the range image {rows} rows'
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
    width = image.shape[1]
    ranges = image[..., 0].ravel()
    pixel = np.flatnonzero(ranges > 0)
    distance = ranges[pixel].astype(np.float64)
    pose = None if pose is None else pose.reshape(-1, 6)[pixel]
    if (
        np.isnan(ranges).any()
        or not np.isfinite(distance).all()
        or pose is not None
        and not np.isfinite(pose).all()
    ):
        raise ValueError('a range image holds ranges or poses that are not finite')
    row, column = np.divmod(pixel, width)
    yaw = np.arctan2(extrinsic[1, 0], extrinsic[0, 0])
    azimuth = ((width - np.arange(width) - 0.5) / width * 2 - 1) * np.pi - yaw
    level = distance * np.cos(inclinations)[row]
    points = np.stack(
        [
            level * np.cos(azimuth)[column],
            level * np.sin(azimuth)[column],
            distance * np.sin(inclinations)[row],
        ],
        1,
    )
    points = points @ extrinsic[:3, :3].T + extrinsic[:3, 3]
    if pose is not None:
        points = _compensate(points, pose, vehicle_pose)
    return points, pixel


def _compensate(points: np.ndarray, pose: np.ndarray, vehicle_pose: np.ndarray) -> np.ndarray:
    """[N, 3] from the vehicle at each pixel's time, pose [N, 6], to the vehicle at the frame's."""
    angles = pose[:, :3].T.astype(
        np.float32
    )  # as they are stored; their sines cost a fraction of float64's
    (sr, sp, sy), (cr, cp, cy) = (
        np.sin(angles).astype(np.float64),
        np.cos(angles).astype(np.float64),
    )
    x, y, z = points.T
    y, z = cr * y - sr * z, sr * y + cr * z  # Rz(yaw) Ry(pitch) Rx(roll)
    x, z = cp * x + sp * z, cp * z - sp * x
    x, y = cy * x - sy * y, sy * x + cy * y
    # from the vehicle's place first: world coordinates are large
    return (np.stack([x, y, z], 1) + (pose[:, 3:] - vehicle_pose[:3, 3])) @ vehicle_pose[:3, :3]
