"""Waymo's perception v2 to points, info files and a ground-truth database that mmdet3d's scripts
train with."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from stratified3d.datasets.io.workers import limit_worker
from stratified3d.datasets.sampling.object_points import cut_objects
from stratified3d.datasets.waymo.ranks import Rank
from stratified3d.datasets.waymo.records import CLASSES, SPLITS, Records, Segment
from stratified3d.datasets.waymo.segments import WaymoFrame, read_segment
from stratified3d.resumable import acquire_folder, atomic_write, name_file, worker_pool

_DATABASE = 'waymo_gt_database'
_NAMES = {1: 'Car', 2: 'Pedestrian', 4: 'Cyclist'}  # of Waymo's types; signs are not detected
_COMPONENTS = ('lidar', 'lidar_pose', 'lidar_calibration', 'vehicle_pose', 'lidar_box')


@dataclass(frozen=True)
class ConversionSettings:
    """Settings of a conversion, which all its calls share.

    Attributes:
        keep_zones: keep the points in no-label zones, where nothing is annotated.
        max_sweeps: earlier frames listed with each.
        database_every: every so many training frames, objects go into the ground-truth database;
            0: no database.
    """

    keep_zones: bool = False
    max_sweeps: int = 10
    database_every: int = 10

    def __post_init__(self):
        if self.max_sweeps < 0 or self.database_every < 0:
            raise ValueError(f'{self}: max_sweeps and database_every must be at least 0')


class Outcome(NamedTuple):
    """What a process converted and what it left.

    Attributes:
        files: written, of all segments; empty where other processes write them.
        failed: {'split/segment': what is wrong with it}; it is not in the files.
        pending: number of segments that other processes still convert.
        abandoned: segments that are not converted and that no process is working on.
        gaps: {'split/segment': which of its frames lack which LiDARs' points}, of the files.
        earlier: number of segments in the files that earlier calls converted from another source.
    """

    files: list[Path]
    failed: dict[str, str]
    pending: int
    abandoned: list[str]
    gaps: dict[str, str]
    earlier: int


def find_segments(source: str | Path, splits: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Names of the segments of each split, in the layout <split>/<component>/<segment>.parquet.

    Args:
        source: folder of the dataset.
        splits: names of folders in it; None takes those of Waymo that are there.
    Returns:
        {split: sorted names}.
    Raises:
        FileNotFoundError, ValueError: nothing there, or Waymo's v1 (tfrecord).
    """
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f'there is no folder {source}')
    if splits is None:
        found = {split: _segments_of(source / split) for split in SPLITS}
        found = {split: names for split, names in found.items() if names}
    else:
        found = {split: _segments_of(source / split) for split in splits}

    if not found or not all(found.values()):
        if next(source.rglob('*.tfrecord'), None):
            raise ValueError(
                f'{source}: contains tfrecord files, that is perception v1, which only TensorFlow '
                'and the official package read; download perception v2, the same frames as parquet'
            )
        raise FileNotFoundError(
            f'{source}: no perception v2 there: <split>/lidar/<segment>.parquet with the split '
            f'{" or ".join(splits or SPLITS)}'
        )
    return found


def _segments_of(folder: Path) -> list[str]:
    """Names of a split's segments, also of those that lack some components."""
    files = [path for part in _COMPONENTS for path in (folder / part).glob('*.parquet')]
    return sorted({path.stem for path in files})


def convert_waymo(
    source: str | Path,
    out: str | Path,
    splits: Sequence[str] | None = None,
    settings: ConversionSettings | None = None,
    workers: int = 1,
    rank: Rank | None = None,
) -> Outcome:
    """Convert all segments that are not converted yet, then write info files and database.

    <out>/<split>/<segment>_<timestamp>.bin: float32 [P, 6], see `segments.WaymoFrame`;
    <out>/waymo_infos_{train,val,test}.pkl: mmdet3d's version 2; <out>/waymo_gt_database/ and
    waymo_dbinfos_train.pkl: the objects of training frames, with the columns of a point file. They
    list all that is converted in `out`, also what earlier calls did from another source.

    A segment is converted once its record in <out>/.conversion is written, which comes last. The
    process that finds all segments accounted for writes the other files. A damaged segment is
    reported and left out; the next call tries it again. A frame without a row of some LiDAR has the
    points of the others, one without any is left out; both are reported. Calls at the same time
    share the work: none touches a segment that another is working on.

    Args:
        source: folder that contains <split>/<component>/<segment>.parquet.
        out: folder to write to: new, empty, or begun with these settings.
        splits: of Waymo, training, validation, testing; None takes those that are there.
        settings: see ConversionSettings.
        workers: processes; the result does not depend on it.
        rank: this process's part, see `find_rank`; the result does not depend on it.
    Returns:
        Outcome.
    Raises:
        FileNotFoundError, ValueError: no segments, or `out` contains something else.
        OSError: a full disk, a folder that cannot be written, a killed worker.
    """
    source = Path(source)
    out = Path(out)
    rank = rank or Rank()
    settings = settings or ConversionSettings()
    if unknown := set(splits or ()) - SPLITS.keys():
        raise ValueError(f'splits are {", ".join(SPLITS)}, not {", ".join(unknown)}')
    if workers < 1:
        raise ValueError(f'workers must be at least 1, not {workers}')
    found = find_segments(source, splits)
    segments = [Segment(split, name) for split, names in found.items() for name in names]
    acquire_folder(out, asdict(settings), 'conversion.json')

    records = Records(out)
    failed = {}
    records.begin()
    with records.working():
        own = rank.share(segments)
        for segment in own:
            records.prepare(segment)
        todo = [segment for segment in own if records.read(segment) is None]
        rank.wait()
        for segment, problem in _convert_all(source, out, settings, todo, workers):
            if problem:
                failed[str(segment)] = problem
                records.fail(segment, problem)

    rank.wait()
    outcome = Outcome([], failed, 0, [], {}, 0)
    if rank.index == 0 or rank.launcher != 'pytorch':
        outcome = _finish(records, segments, settings, failed)
    rank.wait()
    return outcome


def _finish(
    records: Records, segments: list[Segment], settings: ConversionSettings, failed: dict[str, str]
) -> Outcome:
    """Write the files that list all segments, unless others still convert some."""
    pending, abandoned = records.wait(segments)
    if pending or abandoned:
        return Outcome([], failed, len(pending), list(map(str, abandoned)), {}, 0)
    files = records.write_files(segments, settings.database_every > 0)
    return Outcome(files.paths, failed | files.lost, 0, [], files.gaps, files.earlier)


def _convert_all(
    source: Path, out: Path, settings: ConversionSettings, segments: list[Segment], workers: int
) -> Iterator[tuple[Segment, str | None]]:
    """(segment, what is wrong with it or None), as they are finished."""
    sizes = {segment: _count_frames(source, segment) for segment in segments}
    convert = functools.partial(_try_segment, source, out, settings)
    bar = tqdm(total=sum(sizes.values()), unit='frame', desc='converting', dynamic_ncols=True)
    with bar:
        if workers == 1 or len(segments) < 2:
            for segment in segments:
                start = bar.n
                yield segment, convert(segment, bar.update)
                # also the frames that a damaged segment does not have
                bar.update(start + sizes[segment] - bar.n)
            return

        with worker_pool(min(workers, len(segments)), limit_worker) as pool:
            running = {pool.submit(convert, segment): segment for segment in segments}
            for future in as_completed(running):
                segment = running[future]
                yield segment, future.result()
                bar.update(sizes[segment])


def _count_frames(source: Path, segment: Segment) -> int:
    path = source / segment.split / 'vehicle_pose' / f'{segment.name}.parquet'
    try:
        return pq.read_metadata(path).num_rows
    except (OSError, ValueError):  # reported when the segment is read
        return 1


def _try_segment(
    source: Path,
    out: Path,
    settings: ConversionSettings,
    segment: Segment,
    progress: Callable[[int], object] = lambda frames: None,
) -> str | None:
    """What is wrong with it; None also where another process converts it or just did."""
    with Records(out).acquire(segment) as is_acquired:
        if is_acquired and Records(out).read(segment) is None:
            try:
                convert_segment(source, out, settings, segment, progress)
            except (FileNotFoundError, ValueError) as error:
                return str(error)
    return None


def convert_segment(
    source: Path,
    out: Path,
    settings: ConversionSettings,
    segment: Segment,
    progress: Callable[[int], object] = lambda frames: None,
) -> None:
    """Write the point files of a segment, its objects of the database, then its record.

    Args:
        progress: called with 1 after each frame.
    Raises:
        FileNotFoundError, ValueError: see `read_segment`.
        OSError: a full disk.
    """
    split, name = segment
    records = Records(out)
    has_database = split == 'training' and settings.database_every > 0
    if has_database:
        with name_file(out / _DATABASE):
            (out / _DATABASE / name).mkdir(parents=True, exist_ok=True)

    frames, objects, gaps = {}, {}, {}
    with _empty_folder(records.buffer(segment)) as buffer:
        for frame in read_segment(source / split, name, buffer, split != 'testing'):
            progress(1)
            stamp = frame.timestamp
            if frame.absent:
                gaps[stamp] = frame.absent
            if not len(frame.points):
                gaps.setdefault(stamp, [])
                continue
            points = frame.points if settings.keep_zones else frame.points[~frame.in_zone]
            atomic_write(out / split / f'{name}_{stamp}.bin', points.tobytes())
            frames[stamp] = _describe(frame, name)
            if has_database and frame.index % settings.database_every == 0:
                objects[stamp] = _cut_objects(out, name, points, frames[stamp])
    if not frames:
        raise ValueError(f'{source / split / "lidar" / name}.parquet: no frame has a point')

    stamps = sorted(frames)
    infos = [frames[stamp] for stamp in stamps]
    for i, info in enumerate(infos):
        earlier = infos[max(i - settings.max_sweeps, 0) : i]
        _list_sweeps(info, earlier[::-1])
    by_index = {i: objects[stamp] for i, stamp in enumerate(stamps) if stamp in objects}
    records.write(segment, dict(frames=infos, objects=by_index, gaps=gaps))


@contextlib.contextmanager
def _empty_folder(path: Path) -> Iterator[Path]:
    """A new folder, which is deleted at the end with all that is in it."""
    shutil.rmtree(path, ignore_errors=True)
    with name_file(path):
        path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _describe(frame: WaymoFrame, name: str) -> dict:
    """A frame's entry of the info file, without its number and its sweeps."""
    instances: list[dict] = []
    for box in frame.boxes:
        if box.type not in _NAMES or box.num_points < 1:
            continue
        label = CLASSES.index(_NAMES[box.type])
        x, y, z, dx, dy, dz, heading = box.numbers
        instances.append(
            dict(
                bbox=[0.0] * 4,
                bbox_label=label,
                bbox_3d=[x, y, z - dz / 2, dx, dy, dz, heading],
                bbox_label_3d=label,
                num_lidar_pts=box.num_points,
                difficulty=box.difficulty,
                camera_id=0,
                group_id=len(instances) + 1,
                track_id=box.name,
            )
        )
    return dict(
        context_name=name,
        timestamp=frame.timestamp,
        ego2global=frame.pose.tolist(),
        lidar_points=dict(num_pts_feats=6, lidar_path=f'{name}_{frame.timestamp}.bin'),
        instances=instances,
    )


def _list_sweeps(info: dict, earlier: list[dict]) -> None:
    """Add earlier frames, the nearest first; without any the key is absent, as in mmdet3d."""
    ego2global = np.array(info['ego2global'])
    sweeps = []
    for sweep in earlier:
        to_sweep = np.linalg.inv(sweep['ego2global']) @ ego2global
        points = dict(
            lidar_path=sweep['lidar_points']['lidar_path'], lidar2sensor=to_sweep.tolist()
        )
        sweeps.append(
            dict(timestamp=sweep['timestamp'], ego2global=sweep['ego2global'], lidar_points=points)
        )
    if sweeps:
        info['lidar_sweeps'] = sweeps


def _cut_objects(out: Path, name: str, points: np.ndarray, info: dict) -> list[dict]:
    """Write the points of a frame's boxes; entries of the database."""
    instances = info['instances']
    boxes = torch.tensor([row['bbox_3d'] for row in instances], dtype=torch.float32).reshape(-1, 7)
    names = [CLASSES[row['bbox_label_3d']] for row in instances]
    folder = f'{_DATABASE}/{name}/{info["timestamp"]}'
    return cut_objects(out, folder, torch.from_numpy(points), boxes, names)
