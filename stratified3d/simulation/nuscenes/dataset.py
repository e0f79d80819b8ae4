"""Simulate a whole dataset in nuScenes format on disk, with worker processes, resumable."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stratified3d.resumable import (
    PARTIAL,
    acquire_folder,
    atomic_write,
    check_room,
    name_file,
    run_batches,
    sole_writer,
)
from stratified3d.simulation.frame import simulate_frame
from stratified3d.simulation.layouts.catalog import TRAIN_LAYOUTS, VAL_LAYOUTS, build_scene
from stratified3d.simulation.nuscenes.splits import SPLITS, scene_name
from stratified3d.simulation.nuscenes.writer import Tables, blank_png, quaternion
from stratified3d.simulation.physics.scanners import (
    MOUNTINGS,
    SCANNERS,
    SWEEP_SECONDS,
    check_sensor,
)
from stratified3d.simulation.scene import Boxes, Scene

SWEEPS_PER_KEYFRAME = 10  # 20 Hz sweeps, 2 Hz keyframes
_POINT_BYTES = 5 * 4
_RECORDS = '.simulation'
_RECORD_NAME = 'simulation.json'
_MAP = 'maps/blank.png'


@dataclass(frozen=True)
class NuScenesSettings:
    """Contents of a dataset; the same settings give the same bytes.

    Attributes:
        version: 'v1.0-mini' or 'v1.0-trainval'.
        train, val: numbers of scenes.
        keyframes: per scene, 2 Hz.
        sweeps: stored per keyframe interval, the keyframe included; 10 is all of 20 Hz.
        seed: of every random number.
        sensor: which LiDAR, see `catalog.build_scene`; one of 10 Hz stores every second sweep.
    """

    version: str = 'v1.0-mini'
    train: int = 8
    val: int = 2
    keyframes: int = 20
    sweeps: int = SWEEPS_PER_KEYFRAME
    seed: int = 0
    simulator: int = 1  # raised whenever the same settings give other bytes
    sensor: str = 'nuscenes'

    def check(self) -> None:
        """Raise ValueError for settings that no dataset can have."""
        if self.version not in SPLITS:
            raise ValueError(f"version '{self.version}' is none of {', '.join(SPLITS)}")
        max_train, max_val = (len(numbers) for numbers in SPLITS[self.version])
        is_possible = 0 <= self.train <= max_train and 0 <= self.val <= max_val
        if not is_possible or self.train + self.val == 0:
            raise ValueError(
                f'{self.train}+{self.val} scenes are impossible: {self.version} has at most '
                f'{max_train} training and {max_val} validation scenes, and a dataset needs at '
                'least one; --version v1.0-trainval has more scenes'
            )
        if not 2 <= self.keyframes <= 41:
            raise ValueError(
                f'{self.keyframes} keyframes per scene are impossible: use 2 to 41 '
                '(a scene of nuScenes lasts 20 s)'
            )
        if not 1 <= self.sweeps <= SWEEPS_PER_KEYFRAME:
            raise ValueError(
                f'{self.sweeps} sweeps per keyframe are impossible: use 1 to '
                f'{SWEEPS_PER_KEYFRAME} (sweeps come at 20 Hz, keyframes at 2 Hz)'
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f'seed {self.seed} is impossible: use 0 to 2^63 - 1')
        check_sensor(self.sensor)

    def scenes(self) -> list[tuple[int, str]]:
        """Scene numbers with their layouts; training and validation share no layout."""
        train, val = SPLITS[self.version]
        scenes = []
        for numbers, layouts in (
            (train[: self.train], list(TRAIN_LAYOUTS)),
            (val[: self.val], list(VAL_LAYOUTS)),
        ):
            scenes += [(number, layouts[i % len(layouts)]) for i, number in enumerate(numbers)]
        return scenes

    def bytes(self) -> int:
        """About how much space it takes on disk."""
        scanners = (
            [MOUNTINGS[self.sensor].scanner] if self.sensor in MOUNTINGS else SCANNERS.values()
        )
        scenes = self.train + self.val
        total = 0
        for scanner in scanners:
            sweeps = min(self.sweeps, SWEEPS_PER_KEYFRAME // scanner.sweep_steps)
            sweeps = scenes * (1 + (self.keyframes - 1) * sweeps)
            total += sweeps * scanner.columns * scanner.beams * _POINT_BYTES
        return total // len(scanners) * 103 // 100

    def record(self) -> dict[str, Any]:
        """What the dataset's folder says of them; the default sensor goes without saying."""
        settings = asdict(self)
        if self.sensor == 'nuscenes':
            del settings['sensor']
        return settings


@functools.lru_cache(maxsize=2)
def _scene(layout: str, seed: int, number: int, duration: float, sensor: str) -> Scene:
    return build_scene(layout, (seed, number), duration, sensor)


def _record_path(root: Path, number: int, k: int) -> Path:
    return root / _RECORDS / scene_name(number) / f'{k:04d}.json'


def _simulate_keyframe(
    root: Path, settings: NuScenesSettings, number: int, layout: str, k: int
) -> None:
    """Write the sweeps up to keyframe k, then its record, which says that they are whole."""
    period = SWEEPS_PER_KEYFRAME
    duration = (settings.keyframes - 1) * period * SWEEP_SECONDS
    scene = _scene(layout, settings.seed, number, duration, settings.sensor)
    scanner = scene.sensor.scanner
    # somewhere on a city's map
    origin = np.array([400.0 + 37.0 * (number % 29), 600.0 + 41.0 * (number % 31), 0.0])
    sweeps = []
    last = k * period
    for index in range(max(last - period + 1, 0), last + 1):
        is_key = index == last
        turns, part = divmod(last - index, scanner.sweep_steps)
        if part or (not is_key and turns >= settings.sweeps):
            continue
        now = index * SWEEP_SECONDS
        key = np.array([settings.seed, (number << 32) + index], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        points, primitives = scene.sweep(now, rng, scanner.noise)
        sweep = _describe_sweep(scene, number, index, is_key, origin)
        atomic_write(root / sweep['filename'], points.tobytes())
        sweeps.append(sweep)

    boxes = scene.annotate(now, points, primitives)
    mount = scene.sensor.mount
    record = {
        'sweeps': sweeps,
        'boxes': _describe_boxes(scene, boxes, origin),
        'mount': [_to_floats(mount.translation), quaternion(mount.rotation)],
        'location': 'boston-seaport' if scene.traffic_side > 0 else 'singapore-onenorth',
    }
    atomic_write(_record_path(root, number, k), json.dumps(record).encode())


def _to_floats(values: np.ndarray) -> list[float]:
    return [float(value) for value in values]


def _describe_sweep(
    scene: Scene, number: int, index: int, is_key: bool, origin: np.ndarray
) -> dict[str, Any]:
    """The entry of a sweep in a keyframe's record, see `Tables.add_scene`."""
    epoch = 1_500_000_000_000_000 + number * 1_000_000_000
    stamp = epoch + index * round(SWEEP_SECONDS * 1e6)
    folder = 'samples' if is_key else 'sweeps'
    name = f'sim-{scene_name(number)}__LIDAR_TOP__{stamp}.pcd.bin'
    ego = scene.ego_pose(np.array([index * SWEEP_SECONDS]))
    return {
        'timestamp': stamp,
        'filename': f'{folder}/LIDAR_TOP/{name}',
        'rotation': quaternion(ego.rotation[0]),
        'translation': _to_floats(ego.translation[0] + origin),
    }


def _describe_boxes(scene: Scene, boxes: Boxes, origin: np.ndarray) -> list[dict[str, Any]]:
    """The entries of boxes in a keyframe's record, see `Tables.add_scene`."""
    entries = []
    for i, index in enumerate(boxes.actor):
        actor = scene.actors[index]
        speed = float(np.hypot(*boxes.velocity[i]))
        entries.append(
            {
                'actor': int(index),
                'category': actor.shape.category,
                'attribute': actor.attribute(speed),
                'center': _to_floats(boxes.center[i] + origin),
                'size': _to_floats(boxes.size[i]),
                'yaw': float(boxes.yaw[i]),
                'num_points': int(boxes.num_points[i]),
                'visibility': float(boxes.visibility[i]),
            }
        )
    return entries


def _simulate_batch(
    root: Path, settings: NuScenesSettings, number: int, layout: str, keyframes: list[int]
) -> int:
    """Simulate several keyframes of one scene; returns how many."""
    for k in keyframes:
        _simulate_keyframe(root, settings, number, layout, k)
    return len(keyframes)


def _prepare_folder(root: Path, settings: NuScenesSettings) -> None:
    """Make the folders of the dataset, and delete what a killed run left half written."""
    for folder in ('samples/LIDAR_TOP', 'sweeps/LIDAR_TOP', 'maps', _RECORDS):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, _ in settings.scenes():
        (root / _RECORDS / scene_name(number)).mkdir(exist_ok=True)
    atomic_write(root / _MAP, blank_png())
    for folder in ('samples/LIDAR_TOP', 'sweeps/LIDAR_TOP', _RECORDS):
        for stale in (root / folder).rglob(f'*{PARTIAL}'):
            stale.unlink(missing_ok=True)


def _write_tables(root: Path, settings: NuScenesSettings) -> None:
    """Write all tables; their folder appears when they are whole."""
    partial = root / f'{settings.version}{PARTIAL}'
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tables = Tables(partial, settings.seed)
    for number, layout in settings.scenes():
        records = [
            json.loads(_record_path(root, number, k).read_text()) for k in range(settings.keyframes)
        ]
        location, mount = records[0]['location'], records[0]['mount']
        tables.add_scene(number, f'Simulated: {layout}', location, mount, records)
    tables.close(_MAP)
    os.replace(partial, root / settings.version)


def simulate_dataset(
    root: str | Path,
    settings: NuScenesSettings,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Simulate a dataset in nuScenes format, or resume an earlier call with the same settings.

    Files appear whole or not at all, the tables last, so a folder with tables is complete.

    Args:
        root: the dataset's folder, new, empty or begun with the same settings.
        workers: processes; None takes all cores. The result does not depend on it.
        progress: called with (keyframes done, keyframes in all) after each batch.
    Returns:
        Whether anything was left to do.
    Raises:
        ValueError: impossible settings, or the folder contains something else.
        OSError: the disk is full or the folder cannot be written; fix this and repeat the call to
            resume.
    """
    settings.check()
    root = Path(root).absolute()
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 1:
        raise ValueError(f'{workers} workers: at least 1')
    if 'samples' in str(root):
        raise ValueError(
            f"'{root}' contains 'samples', which mmdet3d reads as a keyframe's path; "
            'use another folder'
        )
    acquire_folder(root, settings.record(), _RECORD_NAME, indent=1)
    with sole_writer(root / _RECORD_NAME):
        with name_file(root):
            _prepare_folder(root, settings)
        is_complete = (root / settings.version).is_dir()
        if not is_complete:
            _simulate_missing(root, settings, workers, progress or (lambda done, total: None))
            with name_file(root / settings.version):
                _write_tables(root, settings)
        shutil.rmtree(root / _RECORDS, ignore_errors=True)
    return not is_complete


def _simulate_missing(
    root: Path, settings: NuScenesSettings, workers: int, progress: Callable[[int, int], None]
) -> None:
    """Simulate all keyframes that have no record yet."""
    scenes = settings.scenes()
    total = len(scenes) * settings.keyframes
    # a worker builds the world of each batch; with many scenes it takes a scene as a whole
    size = settings.keyframes if len(scenes) >= 4 * workers else 3
    batches = []
    for number, layout in scenes:
        todo = [k for k in range(settings.keyframes) if not _record_path(root, number, k).exists()]
        for i in range(0, len(todo), size):
            batches.append((number, layout, todo[i : i + size]))
    missing = sum(len(batch[2]) for batch in batches)
    check_room(root, missing / total * settings.bytes(), 'scenes, keyframes or sweeps')
    done = total - missing
    progress(done, total)
    simulate = functools.partial(_simulate_batch, root, settings)
    compile_kernels = functools.partial(simulate_frame, 0)
    for count in run_batches(simulate, batches, workers, before_fork=compile_kernels):
        done += count
        progress(done, total)
