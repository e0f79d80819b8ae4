"""Simulate a whole dataset in Waymo's perception v2 layout on disk, segment by segment."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

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
from stratified3d.simulation.physics.lidar import Pose
from stratified3d.simulation.physics.scanners import Noise
from stratified3d.simulation.scene import Boxes, Scene
from stratified3d.simulation.waymo.lidar import (
    FRONT,
    REAR,
    SIDE_LEFT,
    SIDE_RIGHT,
    TOP,
    TURN_SECONDS,
    WaymoLidar,
    to_matrix,
)
from stratified3d.simulation.waymo.writer import COMPONENTS, SegmentWriter, write_segment

VEHICLE, PEDESTRIAN, CYCLIST = 1, 2, 4  # Waymo's types; traffic signs (3) stand here unlabeled
MAX_TRAIN, MAX_VAL = 798, 202  # segments of Waymo
FRAME_BYTES = 8_000_000
_RECORD_NAME = 'simulation.json'
_ANNOTATED_RANGE = 75.0  # m
_ZONE_RADIUS = 10.0  # m
_HARD = 0.35  # share of a box that is seen, below which annotators call it LEVEL_2


@dataclass(frozen=True)
class WaymoSettings:
    """Contents of a simulated Waymo; the same settings give the same tables.

    Attributes:
        train, val: numbers of segments.
        frames: per segment, 10 Hz.
        seed: of every random number.
    """

    train: int = 4
    val: int = 1
    frames: int = 10
    seed: int = 0
    format: str = 'waymo'
    simulator: int = 1  # raised whenever the same settings give other tables

    def check(self) -> None:
        """Raise ValueError for settings that no dataset can have."""
        is_possible = 0 <= self.train <= MAX_TRAIN and 0 <= self.val <= MAX_VAL
        if not is_possible or self.train + self.val == 0:
            raise ValueError(
                f'{self.train}+{self.val} segments are impossible: Waymo has {MAX_TRAIN} for '
                f'training and {MAX_VAL} for validation, and a dataset needs at least one'
            )
        if not 1 <= self.frames <= 200:
            raise ValueError(
                f'{self.frames} frames per segment are impossible: use 1 to 200 '
                '(a segment of Waymo lasts 20 s at 10 Hz)'
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f'seed {self.seed} is impossible: use 0 to 2^63 - 1')

    def segments(self) -> list[tuple[str, int, str]]:
        """(split, number, layout) of each; training and validation share no layout."""
        segments = []
        for split, count, layouts in (
            ('training', self.train, list(TRAIN_LAYOUTS)),
            ('validation', self.val, list(VAL_LAYOUTS)),
        ):
            segments += [(split, i, layouts[i % len(layouts)]) for i in range(count)]
        return segments


def context_name(settings: WaymoSettings, split: str, number: int) -> str:
    """A name like Waymo's: digits, then where in a drive the segment begins and ends."""
    key = f'{settings.seed}/{split}/{number}'.encode()
    digest = hashlib.md5(key, usedforsecurity=False).digest()
    return f'{int.from_bytes(digest[:8], "big")}_{20 * number}_000_{20 * number + 20}_000'


def simulate_waymo(
    root: str | Path,
    settings: WaymoSettings,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Simulate a dataset in Waymo's layout, or resume an earlier call with the same settings.

    Writes <root>/<training or validation>/<component>/<segment>.parquet; a segment's files appear
    together and whole.

    Args:
        root: the dataset's folder, new, empty or begun with the same settings.
        workers: processes; None takes all cores. The result does not depend on it.
        progress: called with (frames done, frames in all) as segments are finished.
    Returns:
        Whether anything was left to do.
    Raises:
        ImportError: pyarrow is missing.
        ValueError: impossible settings, or the folder contains something else.
        OSError: the disk is full or the folder cannot be written; fix this and repeat the call to
            resume.
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
    name = f'{context_name(settings, split, number)}.parquet'
    return (root / split / COMPONENTS[0] / name).is_file()


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


class _Segment(NamedTuple):
    """A scene as one segment records it.

    Attributes:
        lidars: the five, TOP first.
        zone: [3] no-label zone, x, y and radius in the scene, m.
        origin: [3] m, of the scene on the map.
        epoch: timestamp of frame 0, us.
        seed, key: of the random numbers: the dataset's and the segment's.
    """

    scene: Scene
    lidars: list[WaymoLidar]
    zone: np.ndarray
    origin: np.ndarray
    epoch: int
    seed: int
    key: int


def _simulate_segment(
    root: Path, settings: WaymoSettings, split: str, number: int, layout: str
) -> int:
    """Simulate one segment, the unit of work; returns how many frames it has."""
    key = 2 * number + (split == 'validation')
    segment = _begin_segment(settings, layout, key)
    with write_segment(root, split, context_name(settings, split, number)) as writer:
        calibration = [
            (lidar.laser, lidar.extrinsic().ravel(), *lidar.limits, lidar.inclinations)
            for lidar in segment.lidars
        ]
        writer.add('lidar_calibration', calibration)
        for k in range(settings.frames):
            _simulate_frame(writer, segment, k)
    return settings.frames


def _begin_segment(settings: WaymoSettings, layout: str, key: int) -> _Segment:
    """Build a segment's scene and draw its sensors' tilt, its place and its no-label zone."""
    duration = settings.frames * TURN_SECONDS
    scene = build_scene(layout, (settings.seed, (1 << 42) + key), duration)
    rng = _philox(settings.seed, (1 << 43) + key)
    roll, pitch = rng.normal(0.0, 0.007, 2)
    lidars = [WaymoLidar(TOP, (roll, pitch))]
    lidars += [WaymoLidar(laser, (0.0, 0.0)) for laser in (FRONT, SIDE_LEFT, SIDE_RIGHT, REAR)]
    # somewhere on a city's map
    origin = rng.uniform((-8000.0, -8000.0, 0.0), (8000.0, 8000.0, 200.0))

    angle = rng.uniform(-np.pi, np.pi)
    away = 28.0 * np.array([np.cos(angle), np.sin(angle)])
    half_way = scene.ego_pose(np.array([duration / 2])).translation[0, :2]
    zone = np.append(half_way + away, _ZONE_RADIUS)
    epoch = 1_550_000_000_000_000 + key * 100_000_000
    return _Segment(scene, lidars, zone, origin, epoch, settings.seed, key)


def _philox(seed: int, key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, key], np.uint64)))


def _simulate_frame(writer: SegmentWriter, segment: _Segment, k: int) -> None:
    """Write all components' rows of frame k."""
    scene = segment.scene
    now = (k + 0.5) * TURN_SECONDS
    stamp = segment.epoch + k * round(TURN_SECONDS * 1e6)
    rows = []
    points = []
    frame_key = (1 << 44) + (segment.key << 20) + (k << 3)
    for i, lidar in enumerate(segment.lidars):
        rng = _philox(segment.seed, frame_key + i)
        images = lidar.scan(scene, now, rng, Noise(), segment.zone, segment.origin)
        first, second, pose = images.first, images.second, images.pose
        rows.append(
            (
                stamp,
                lidar.laser,
                first,
                first.shape,
                second,
                second.shape,
            )
        )
        points.append(images.points)
        if pose is not None:
            writer.add('lidar_pose', [(stamp, lidar.laser, pose, pose.shape)])
    writer.add('lidar', rows)

    vehicle = _vehicle_pose(scene, now)
    on_map = vehicle._replace(translation=vehicle.translation + segment.origin)
    writer.add('vehicle_pose', [(stamp, to_matrix(on_map).ravel())])
    writer.add('lidar_box', _label_boxes(segment, now, stamp, points))


def _vehicle_pose(scene: Scene, time: float) -> Pose:
    """Vehicle to scene at one time: rotation [3, 3], translation [3]."""
    pose = scene.ego_pose(np.array([time]))
    return Pose(pose.rotation[0], pose.translation[0])


def _label_boxes(
    segment: _Segment, now: float, stamp: int, points: list[np.ndarray]
) -> list[tuple]:
    """Rows of `lidar_box`: what is in sight, outside the no-label zone, in the vehicle frame.

    Args:
        points: [N, 3] of each laser in the scene, TOP first.
    """
    scene = segment.scene
    rotation, translation = _vehicle_pose(scene, now)
    eye = translation + rotation @ segment.lidars[0].mount.translation
    primitives = scene.primitives_at(now)
    boxes = scene.annotate_world(now, eye, np.concatenate(points), primitives)
    top_points = scene.annotate_world(now, eye, points[0], primitives).num_points
    rows = []
    for i, index in enumerate(boxes.actor):
        actor = scene.actors[index]
        kind = label_type(actor.shape.category, actor.state)
        center = (boxes.center[i] - translation) @ rotation
        if kind is None or not _is_labeled(boxes, i, center, segment.zone):
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


def _is_labeled(boxes: Boxes, i: int, center: np.ndarray, zone: np.ndarray) -> bool:
    """Whether annotators label box i, whose center [3] is given in the vehicle frame."""
    if not boxes.num_points[i] and boxes.visibility[i] < 0.3:
        return False
    if np.hypot(*center[:2]) > _ANNOTATED_RANGE:
        return False
    return np.hypot(*(boxes.center[i, :2] - zone[:2])) >= zone[2]


def label_type(category: str | None, state: str) -> int | None:
    """Waymo's type of a nuScenes category; None for what Waymo does not label.

    It labels bicycles only with a rider.
    """
    if category is None:
        return None
    if category == BICYCLE:
        return CYCLIST if state == 'cycle.with_rider' else None
    if category.startswith('vehicle'):
        return VEHICLE
    if category.startswith('human') and category != STROLLER:
        return PEDESTRIAN
    return None
