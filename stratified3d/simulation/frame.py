"""Simulate single annotated frames in memory, for tests and examples that need no dataset."""

from __future__ import annotations

import numpy as np

from stratified3d.simulation.layouts.catalog import LAYOUTS, build_scene
from stratified3d.simulation.nuscenes.schema import DETECTION_NAMES
from stratified3d.simulation.physics.lidar import Pose
from stratified3d.simulation.physics.primitives import Primitives
from stratified3d.simulation.physics.scanners import SWEEP_SECONDS
from stratified3d.simulation.scene import Boxes, Scene

_DURATION = 2.0  # s of the scene that a frame is taken from


def simulate_frame(
    seed: int = 0, layout: str | None = None, sweeps: int = 1, sensor: str = 'nuscenes'
) -> dict:
    """Simulate one annotated frame.

    Args:
        seed: the same seed gives the same frame, on every machine of one architecture.
        layout: a key of `LAYOUTS`; None lets the seed choose.
        sweeps: how many sweeps to stack (20 Hz, other sensors 10 Hz), the keyframe included, each
            brought into its frame by the ego pose.
        sensor: which LiDAR, see `catalog.build_scene`.
    Returns:
        points: [P, 5] float32, x, y, z (m, LIDAR_TOP frame: x right, y forward, z up), intensity
            0-255, dt (s before the keyframe); rays without a return are left out.
        boxes: [K, 9] float32, bottom-center x, y, z, dx, dy, dz, yaw, vx, vy in the same frame (m,
            rad, m/s), of the detection classes' objects with at least one point of the keyframe.
        names: K nuScenes detection names.
        num_points: [K] int64, the keyframe's points in each box.
    Raises:
        ValueError: no such layout or sensor, or sweeps < 1.
    """
    if sweeps < 1:
        raise ValueError(
            f'simulate_frame: sweeps is {sweeps}; it counts the keyframe, so it is at least 1'
        )
    names = list(LAYOUTS)
    scene = build_scene(layout or names[seed % len(names)], (seed, 1 << 40), _DURATION, sensor)
    time = _DURATION / 2
    lidar = _lidar_at(scene, time)
    points, primitives = _sweep(scene, seed, 0)
    boxes = scene.annotate(time, points, primitives)
    stacked = [_to_keyframe(points, lidar, lidar, 0)]
    step = scene.sensor.scanner.sweep_steps
    for i in range(step, sweeps * step, step):
        points, _ = _sweep(scene, seed, i)
        pose = _lidar_at(scene, time - i * SWEEP_SECONDS)
        stacked.append(_to_keyframe(points, pose, lidar, i))

    category = [scene.actors[i].shape.category for i in boxes.actor]
    is_detected = np.array([name in DETECTION_NAMES for name in category], bool)
    keep = is_detected & (boxes.num_points > 0)
    return {
        'points': np.concatenate(stacked),
        'boxes': _to_lidar_frame(boxes, lidar)[keep].astype(np.float32),
        'names': [DETECTION_NAMES[category[k]] for k in np.flatnonzero(keep)],
        'num_points': boxes.num_points[keep],
    }


def _sweep(scene: Scene, seed: int, i: int) -> tuple[np.ndarray, Primitives]:
    """The sweep i / 20 s before the keyframe, see `Scene.sweep`."""
    key = np.array([seed, (1 << 41) + i], np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    return scene.sweep(_DURATION / 2 - i * SWEEP_SECONDS, rng, scene.sensor.scanner.noise)


def _to_keyframe(points: np.ndarray, pose: Pose, lidar: Pose, i: int) -> np.ndarray:
    """[P, 5] the returns of a sweep i / 20 s old in the keyframe's frame, with dt for the ring.

    Args:
        points: [N, 5] in the sweep's own frame, `pose`.
    """
    points = points[np.linalg.norm(points[:, :3], axis=1) > 1.0]
    world = points[:, :3] @ pose.rotation.T + pose.translation
    points[:, :3] = (world - lidar.translation) @ lidar.rotation
    points[:, 4] = i * SWEEP_SECONDS
    return points


def _lidar_at(scene: Scene, time: float) -> Pose:
    """LIDAR_TOP to world at one time: rotation [3, 3], translation [3]."""
    pose = scene.lidar_pose(np.array([time]))
    return Pose(pose.rotation[0], pose.translation[0])


def _to_lidar_frame(boxes: Boxes, lidar: Pose) -> np.ndarray:
    """[K, 9] boxes in the LiDAR frame, as `simulate_frame` returns them."""
    count = len(boxes.center)
    center = (boxes.center - lidar.translation) @ lidar.rotation
    bottom = center - np.array([0.0, 0.0, 0.5]) * boxes.size[:, 2:]
    heading = np.stack([np.cos(boxes.yaw), np.sin(boxes.yaw), np.zeros(count)], 1)
    heading = heading @ lidar.rotation
    yaw = np.arctan2(heading[:, 1], heading[:, 0])
    velocity = np.concatenate([boxes.velocity, np.zeros((count, 1))], 1) @ lidar.rotation
    return np.concatenate([bottom, boxes.size, yaw[:, None], velocity[:, :2]], 1)
