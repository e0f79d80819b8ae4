"""Single frames in memory: what tests and examples need when no dataset is at hand."""

from __future__ import annotations

import numpy as np

from stratified3d.simulation.layouts.catalog import LAYOUTS, build_scene
from stratified3d.simulation.nuscenes.schema import DETECTION_NAMES
from stratified3d.simulation.physics.lidar import SWEEP_SECONDS, Noise

_DURATION = 2.0  # s of the scene that a frame is taken from


def simulate_frame(seed: int = 0, layout: str | None = None, sweeps: int = 1) -> dict:
    """Simulate one annotated frame.

    Args:
        seed: the same seed gives the same frame, on every machine of one architecture.
        layout: a key of `LAYOUTS`; None lets the seed choose.
        sweeps: how many sweeps to stack (20 Hz), the keyframe included, each brought into its frame
        by the ego pose.
    Returns:
        points: [P, 5] float32, x, y, z (m, LIDAR_TOP frame: x right, y forward, z up), intensity
        0-255, dt (s before
            the keyframe); rays without a return are left out.
        boxes: [K, 9] float32, bottom-center x, y, z, dx, dy, dz, yaw, vx, vy in the same frame (m,
        rad, m/s), of the
            detection classes' objects with at least one point of the keyframe.
        names: K nuScenes detection names. num_points: [K] int64, the keyframe's points in each box.
    Raises:
        ValueError: no such layout, or sweeps < 1.
    """
    if sweeps < 1:
        raise ValueError(
            f'simulate_frame: sweeps is {sweeps}; it counts the keyframe, so it is at least 1'
        )
    names = list(LAYOUTS)
    scene = build_scene(layout or names[seed % len(names)], (seed, 1 << 40), _DURATION)
    time, noise = _DURATION / 2, Noise()
    lidar = scene.lidar_pose(np.array([time]))
    rotation, translation = lidar.rotation[0], lidar.translation[0]
    stacked = []
    for i in range(sweeps):
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, (1 << 41) + i], np.uint64)))
        then = time - i * SWEEP_SECONDS
        points, primitives = scene.sweep(then, rng, noise)
        if i == 0:
            boxes = scene.annotate(time, points, primitives)
        points = points[np.linalg.norm(points[:, :3], axis=1) > 1.0]
        pose = scene.lidar_pose(np.array([then]))
        world = points[:, :3] @ pose.rotation[0].T + pose.translation[0]
        points[:, :3] = (world - translation) @ rotation
        points[:, 4] = i * SWEEP_SECONDS
        stacked.append(points)
    category = [scene.actors[i].shape.category for i in boxes.actor]
    keep = np.array([name in DETECTION_NAMES for name in category], bool) & (boxes.num_points > 0)
    center = (boxes.center - translation) @ rotation
    heading = np.stack([np.cos(boxes.yaw), np.sin(boxes.yaw), np.zeros(len(center))], 1) @ rotation
    velocity = np.concatenate([boxes.velocity, np.zeros((len(center), 1))], 1) @ rotation
    bottom = center - np.array([0.0, 0.0, 0.5]) * boxes.size[:, 2:]
    boxes9 = np.concatenate(
        [bottom, boxes.size, np.arctan2(heading[:, 1], heading[:, 0])[:, None], velocity[:, :2]], 1
    )
    return {
        'points': np.concatenate(stacked),
        'boxes': boxes9[keep].astype(np.float32),
        'names': [DETECTION_NAMES[name] for name, kept in zip(category, keep) if kept],
        'num_points': boxes.num_points[keep],
    }
