"""A simulated Waymo on disk: perception v2 parquet, segment by segment."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from stratified3d.resumable import (
    PARTIAL,
    acquire_folder,
    check_room,
    name_file,
    run_batches,
    sole_writer,
)
from stratified3d.simulation.frame import simulate_frame
from stratified3d.simulation.layouts.catalog import TRAIN_LAYOUTS, VAL_LAYOUTS, build_scene
from stratified3d.simulation.objects.people import BICYCLE, STROLLER
from stratified3d.simulation.physics.lidar import Noise
from stratified3d.simulation.scene import Scene
from stratified3d.simulation.waymo.lidar import TOP, TURN_SECONDS, WaymoLidar, to_matrix
from stratified3d.simulation.waymo.writer import COMPONENTS, SegmentWriter, write_segment

VEHICLE, PEDESTRIAN, CYCLIST = 1, 2, 4  # Waymo's types; traffic signs (3) stand here unlabeled
FRAME_BYTES = 8_000_000
_RECORD_NAME = 'simulation.json'
_ANNOTATED_RANGE = 75.0  # m
_ZONE_RADIUS = 10.0  # m
_HARD = 0.35  # share of a box that is seen, below which annotators call it LEVEL_2


@dataclass(frozen=True)
class WaymoSettings:
    """What a simulated Waymo contains; the same settings give the same tables.

    Attributes:
        train, val: numbers of segments. frames: per segment, 10 Hz. seed: of every random number.
    """

    train: int = 4
    val: int = 1
    frames: int = 10
    seed: int = 0
    format: str = 'waymo'
    simulator: int = 1  # raised whenever the same settings give other tables

    def check(self) -> None:
        """Raise ValueError for settings that no dataset can have."""
        if not (0 <= self.train <= 798 and 0 <= self.val <= 202 and self.train + self.val):
            raise ValueError(
                f'{self.train}+{self.val} segments cannot be: Waymo has 798 for training and 202 for validation, and '
                'a dataset at least one'
            )
        if not 1 <= self.frames <= 200:
            raise ValueError(
                f'{self.frames} frames per segment: 1 to 200 (a segment of Waymo lasts 20 s at 10 Hz)'
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f'seed {self.seed}: 0 to 2^63 - 1')

    def segments(self) -> list[tuple[str, int, str]]:
        """(split, number, layout) of each; training and validation share no layout."""
        train, val = list(TRAIN_LAYOUTS), list(VAL_LAYOUTS)
        return [('training', i, train[i % len(train)]) for i in range(self.train)] + [
            ('validation', i, val[i % len(val)]) for i in range(self.val)
        ]


def context_name(settings: WaymoSettings, split: str, number: int) -> str:
    """A name like Waymo's: digits, then where in a drive the segment begins and ends."""
    digest = hashlib.md5(
        f'{settings.seed}/{split}/{number}'.encode(), usedforsecurity=False
    ).digest()
    return f'{int.from_bytes(digest[:8], "big")}_{20 * number}_000_{20 * number + 20}_000'


def simulate_waymo(
    root: str | Path,
    settings: WaymoSettings,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Simulate a dataset in Waymo's perception v2 layout; go on where an earlier call with these
    settings stopped.

    <root>/<training or validation>/<component>/<segment>.parquet; a segment's files appear together
    and whole.

    Args:
        root: the dataset's folder, new, empty or begun with the same settings.
        workers: processes; None takes all cores. The result does not depend on it.
        progress: called with (frames done, frames in all) as segments are finished.
    Returns:
        Whether anything was left to do.
    Raises:
        ImportError: pyarrow is missing.
        ValueError: impossible settings, or the folder holds something else.
        OSError: the disk is full or the folder cannot be written; run the same call again when that
        is mended.
    """
    settings.check()
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError('Waymo is written as parquet: `pip install pyarrow`') from error
    root = Path(root).absolute()
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 1:
        raise ValueError(f'{workers} workers: at least 1')
    segments = settings.segments()
    acquire_folder(root, asdict(settings), _RECORD_NAME, indent=1)
    with sole_writer(root / _RECORD_NAME):
        with name_file(root):
            for stale in root.rglob(f'*{PARTIAL}'):
                stale.unlink(missing_ok=True)
        todo = [segment for segment in segments if not _is_simulated(root, settings, segment)]
        _simulate_segments(root, settings, todo, workers, progress or (lambda done, total: None))
    return bool(todo)


def _is_simulated(root: Path, settings: WaymoSettings, segment: tuple[str, int, str]) -> bool:
    """Whether the component that is written last is there."""
    split, number, _ = segment
    return (
        root / split / COMPONENTS[0] / f'{context_name(settings, split, number)}.parquet'
    ).is_file()


def _simulate_segments(
    root: Path,
    settings: WaymoSettings,
    segments: list[tuple[str, int, str]],
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    """Simulate the segments that are missing."""
    missing = len(segments) * settings.frames
    check_room(root, missing * FRAME_BYTES, 'segments or frames')
    total = (settings.train + settings.val) * settings.frames
    done = total - missing
    progress(done, total)
    workers = min(workers, max(len(segments), 1))
    simulate = functools.partial(_simulate_segment, root, settings)
    compile_kernels = functools.partial(simulate_frame, 0)
    for count in run_batches(simulate, segments, workers, before_fork=compile_kernels):
        done += count
        progress(done, total)


def _simulate_segment(
    root: Path, settings: WaymoSettings, split: str, number: int, layout: str
) -> int:
    """One unit of work; returns how many frames."""
    key = 2 * number + (split == 'validation')
    scene = build_scene(layout, (settings.seed, (1 << 42) + key), settings.frames * TURN_SECONDS)
    rng = np.random.Generator(
        np.random.Philox(key=np.array([settings.seed, (1 << 43) + key], np.uint64))
    )
    tilt = tuple(rng.normal(0.0, 0.007, 2))
    lidars = [WaymoLidar(laser, tilt if laser == TOP else (0.0, 0.0)) for laser in range(1, 6)]
    origin = rng.uniform(
        (-8000.0, -8000.0, 0.0), (8000.0, 8000.0, 200.0)
    )  # somewhere on a city's map
    angle, middle = rng.uniform(-np.pi, np.pi), settings.frames * TURN_SECONDS / 2
    away = 28.0 * np.array([np.cos(angle), np.sin(angle)])
    zone = np.append(scene.ego_pose(np.array([middle])).translation[0, :2] + away, _ZONE_RADIUS)
    context = context_name(settings, split, number)
    with write_segment(root, split, context) as writer:
        writer.add(
            'lidar_calibration',
            [
                (lidar.laser, lidar.extrinsic().ravel(), *lidar.limits, lidar.inclinations)
                for lidar in lidars
            ],
        )
        for k in range(settings.frames):
            keys = [
                np.array([settings.seed, (1 << 44) + (key << 20) + (k << 3) + i], np.uint64)
                for i in range(5)
            ]
            _simulate_frame(
                writer,
                scene,
                lidars,
                k,
                zone,
                origin,
                1_550_000_000_000_000 + key * 100_000_000,
                keys,
            )
    return settings.frames


def _simulate_frame(
    writer: SegmentWriter,
    scene: Scene,
    lidars: list[WaymoLidar],
    k: int,
    zone: np.ndarray,
    origin: np.ndarray,
    epoch: int,
    keys: list[np.ndarray],
) -> None:
    """All components' rows of frame k."""
    now, stamp = (k + 0.5) * TURN_SECONDS, epoch + k * round(TURN_SECONDS * 1e6)
    rows, clouds = [], []
    for lidar, key in zip(lidars, keys):
        rng = np.random.Generator(np.random.Philox(key=key))
        images = lidar.scan(scene, now, rng, Noise(), zone, origin)
        rows.append(
            (
                stamp,
                lidar.laser,
                images.first,
                images.first.shape,
                images.second,
                images.second.shape,
            )
        )
        clouds.append(images.points)
        if images.pose is not None:
            writer.add('lidar_pose', [(stamp, lidar.laser, images.pose, images.pose.shape)])
    writer.add('lidar', rows)
    vehicle = scene.ego_pose(np.array([now]))
    matrix = to_matrix(
        vehicle._replace(rotation=vehicle.rotation[0], translation=vehicle.translation[0] + origin)
    )
    writer.add('vehicle_pose', [(stamp, matrix.ravel())])
    writer.add('lidar_box', label_boxes(scene, now, stamp, clouds, zone, lidars[0]))


def label_boxes(
    scene: Scene,
    now: float,
    stamp: int,
    clouds: list[np.ndarray],
    zone: np.ndarray,
    top: WaymoLidar,
) -> list[tuple]:
    """Rows of `lidar_box`: what is in sight, outside the no-label zone, in the vehicle frame.

    Args:
        clouds: [N, 3] points of each laser in the scene, TOP first.
    """
    vehicle = scene.ego_pose(np.array([now]))
    rotation, translation = vehicle.rotation[0], vehicle.translation[0]
    eye = translation + rotation @ top.mount.translation
    primitives = scene.primitives_at(now)
    boxes = scene.annotate_world(now, eye, np.concatenate(clouds), primitives)
    top_points = scene.annotate_world(now, eye, clouds[0], primitives).num_points
    rows = []
    for i, index in enumerate(boxes.actor):
        kind = label_type(scene.actors[index].shape.category, scene.actors[index].state)
        center = (boxes.center[i] - translation) @ rotation
        is_hidden = np.hypot(*(boxes.center[i, :2] - zone[:2])) < zone[2]
        if kind is None or is_hidden or np.hypot(*center[:2]) > _ANNOTATED_RANGE:
            continue
        if not boxes.num_points[i] and boxes.visibility[i] < 0.3:
            continue
        ahead = np.array([np.cos(boxes.yaw[i]), np.sin(boxes.yaw[i]), 0.0]) @ rotation
        rows.append(
            (
                stamp,
                f'actor-{index}',
                *center,
                *boxes.size[i],
                float(np.arctan2(ahead[1], ahead[0])),
                kind,
                boxes.num_points[i],
                top_points[i],
                *boxes.velocity[i],
                0.0,
                2 if boxes.visibility[i] < _HARD else 0,
            )
        )
    return rows


def label_type(category: str, state: str) -> int | None:
    """Waymo's type of a nuScenes category; None for what it does not label, bicycles without a
    rider among it."""
    if category == BICYCLE:
        return CYCLIST if state == 'cycle.with_rider' else None
    if category.startswith('vehicle'):
        return VEHICLE
    return PEDESTRIAN if category.startswith('human') and category != STROLLER else None
