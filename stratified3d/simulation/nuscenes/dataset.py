"""A whole dataset on disk: settings, work units, workers, resumption."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

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
from stratified3d.simulation.physics.lidar import N_COLUMNS, N_RINGS, SWEEP_SECONDS, Noise
from stratified3d.simulation.scene import Scene

SWEEPS_PER_KEYFRAME = 10  # 20 Hz sweeps, 2 Hz keyframes
SWEEP_BYTES = N_COLUMNS * N_RINGS * 5 * 4
_RECORDS = '.simulation'
_RECORD_NAME = 'simulation.json'
_MAP = 'maps/blank.png'


@dataclass(frozen=True)
class NuScenesSettings:
    """What a dataset contains; the same settings give the same bytes.

    Attributes:
        version: 'v1.0-mini' or 'v1.0-trainval'.
        train, val: numbers of scenes. keyframes: per scene, 2 Hz.
        sweeps: stored per keyframe interval, the keyframe included; 10 is all of 20 Hz.
        seed: of every random number.
    """

    version: str = 'v1.0-mini'
    train: int = 8
    val: int = 2
    keyframes: int = 20
    sweeps: int = SWEEPS_PER_KEYFRAME
    seed: int = 0
    simulator: int = 1  # raised whenever the same settings give other bytes

    def check(self) -> None:
        """Raise ValueError for settings that no dataset can have."""
        if self.version not in SPLITS:
            raise ValueError(f"version '{self.version}' is none of {', '.join(SPLITS)}")
        most = [len(names) for names in SPLITS[self.version]]
        if not (0 <= self.train <= most[0] and 0 <= self.val <= most[1] and self.train + self.val):
            raise ValueError(
                f'{self.version} has at most {most[0]} training and {most[1]} validation scenes, and a dataset '
                f'at least one: {self.train}+{self.val} cannot be; a larger set needs --version v1.0-trainval'
            )
        if not 2 <= self.keyframes <= 41:
            raise ValueError(
                f'{self.keyframes} keyframes per scene: 2 to 41 (a scene of nuScenes lasts 20 s)'
            )
        if not 1 <= self.sweeps <= SWEEPS_PER_KEYFRAME:
            raise ValueError(
                f'{self.sweeps} sweeps per keyframe: 1 to {SWEEPS_PER_KEYFRAME} (20 Hz against 2 Hz)'
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f'seed {self.seed}: 0 to 2^63 - 1')

    def scenes(self) -> list[tuple[int, str]]:
        """Scene numbers with their layouts; training and validation share no layout."""
        train, val = SPLITS[self.version]
        chosen = [
            (number, list(TRAIN_LAYOUTS)[i % len(TRAIN_LAYOUTS)])
            for i, number in enumerate(train[: self.train])
        ]
        return chosen + [
            (number, list(VAL_LAYOUTS)[i % len(VAL_LAYOUTS)])
            for i, number in enumerate(val[: self.val])
        ]

    def bytes(self) -> int:
        """About how much it takes on disk."""
        return (
            (self.train + self.val)
            * (1 + (self.keyframes - 1) * self.sweeps)
            * SWEEP_BYTES
            * 103
            // 100
        )


@functools.lru_cache(maxsize=2)
def _scene(layout: str, seed: int, number: int, duration: float) -> Scene:
    return build_scene(layout, (seed, number), duration)


def _record_path(root: Path, number: int, k: int) -> Path:
    return root / _RECORDS / scene_name(number) / f'{k:04d}.json'


def _simulate_keyframe(
    root: Path, settings: NuScenesSettings, number: int, layout: str, k: int
) -> None:
    """One unit of work: the sweeps up to keyframe k, then its record, which says that they are
    whole."""
    period = SWEEPS_PER_KEYFRAME
    scene = _scene(layout, settings.seed, number, (settings.keyframes - 1) * period * SWEEP_SECONDS)
    name = scene_name(number)
    origin = np.array(
        [400.0 + 37.0 * (number % 29), 600.0 + 41.0 * (number % 31), 0.0]
    )  # somewhere on a city's map
    epoch = 1_500_000_000_000_000 + number * 1_000_000_000
    record = {'sweeps': [], 'boxes': []}
    for index in range(max((k - 1) * period + 1, 0), k * period + 1):
        is_key = index == k * period
        if not is_key and k * period - index >= settings.sweeps:
            continue
        now = index * SWEEP_SECONDS
        key = np.array([settings.seed, (number << 32) + index], np.uint64)
        points, primitives = scene.sweep(
            now, np.random.Generator(np.random.Philox(key=key)), Noise()
        )
        stamp = epoch + index * round(SWEEP_SECONDS * 1e6)
        folder = 'samples' if is_key else 'sweeps'
        filename = f'{folder}/LIDAR_TOP/sim-{name}__LIDAR_TOP__{stamp}.pcd.bin'
        atomic_write(root / filename, points.tobytes())
        ego = scene.ego_pose(np.array([now]))
        record['sweeps'].append(
            {
                'timestamp': stamp,
                'filename': filename,
                'rotation': quaternion(ego.rotation[0]),
                'translation': [float(v) for v in ego.translation[0] + origin],
            }
        )
        if is_key:
            boxes = scene.annotate(now, points, primitives)
            for i, index_ in enumerate(boxes.actor):
                actor = scene.actors[index_]
                speed = float(np.hypot(*boxes.velocity[i]))
                record['boxes'].append(
                    {
                        'actor': int(index_),
                        'category': actor.shape.category,
                        'attribute': actor.attribute(speed),
                        'center': [float(v) for v in boxes.center[i] + origin],
                        'size': [float(v) for v in boxes.size[i]],
                        'yaw': float(boxes.yaw[i]),
                        'num_points': int(boxes.num_points[i]),
                        'visibility': float(boxes.visibility[i]),
                    }
                )
    mount = scene.sensor.mount
    record['mount'] = [[float(v) for v in mount.translation], quaternion(mount.rotation)]
    record['location'] = 'boston-seaport' if scene.traffic_side > 0 else 'singapore-onenorth'
    atomic_write(_record_path(root, number, k), json.dumps(record).encode())


def _simulate_batch(
    root: Path, settings: NuScenesSettings, number: int, layout: str, keyframes: list[int]
) -> int:
    """Several keyframes of one scene; returns how many."""
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
    """All tables at once: their folder appears when they are whole."""
    partial = root / f'{settings.version}{PARTIAL}'
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tables = Tables(partial, settings.seed)
    for number, layout in settings.scenes():
        records = [
            json.loads(_record_path(root, number, k).read_text()) for k in range(settings.keyframes)
        ]
        tables.add_scene(
            number, f'Simulated: {layout}', records[0]['location'], records[0]['mount'], records
        )
    tables.close(_MAP)
    os.replace(partial, root / settings.version)


def simulate_dataset(
    root: str | Path,
    settings: NuScenesSettings,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Simulate a dataset in nuScenes format; go on where an earlier call with the same settings
    stopped.

    Files appear whole or not at all, the tables last, so a folder with tables is complete.

    Args:
        root: the dataset's folder, new, empty or begun with the same settings.
        workers: processes; None takes all cores. The result does not depend on it.
        progress: called with (keyframes done, keyframes in all) as work goes on.
    Returns:
        Whether anything was left to do.
    Raises:
        ValueError: impossible settings, or the folder holds something else.
        OSError: the disk is full or the folder cannot be written; run the same call again when that
        is mended.
    """
    settings.check()
    root = Path(root).absolute()
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 1:
        raise ValueError(f'{workers} workers: at least 1')
    if 'samples' in str(root):
        raise ValueError(
            f"'{root}': mmdet3d takes a path with 'samples' in it for a keyframe's; name another folder"
        )
    acquire_folder(root, asdict(settings), _RECORD_NAME, indent=1)
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
    scenes, total = settings.scenes(), len(settings.scenes()) * settings.keyframes
    # a worker builds the world of each batch; with many scenes it takes a scene as a whole
    size = settings.keyframes if len(scenes) >= 4 * workers else 3
    batches = []
    for number, layout in scenes:
        todo = [k for k in range(settings.keyframes) if not _record_path(root, number, k).exists()]
        batches += [(number, layout, todo[i : i + size]) for i in range(0, len(todo), size)]
    missing = sum(len(batch[2]) for batch in batches)
    check_room(root, missing / total * settings.bytes(), 'scenes, keyframes or sweeps')
    done = total - missing
    progress(done, total)
    simulate = functools.partial(_simulate_batch, root, settings)
    compile_kernels = functools.partial(simulate_frame, 0)
    for count in run_batches(simulate, batches, workers, before_fork=compile_kernels):
        done += count
        progress(done, total)
