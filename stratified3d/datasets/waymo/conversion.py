"""Waymo's perception v2 to points, info files and a ground-truth database that mmdet3d's scripts
train with."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Sequence
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
from stratified3d.datasets.waymo.processes import Rank
from stratified3d.datasets.waymo.records import CLASSES, SPLITS, Records, Segment
from stratified3d.datasets.waymo.segments import WaymoFrame, read_segment
from stratified3d.resumable import acquire_folder, atomic_write, name_file, worker_pool

FOLDER = 'waymo_gt_database'
_NAMES = {1: 'Car', 2: 'Pedestrian', 4: 'Cyclist'}  # of Waymo's types; signs are not detected
_COMPONENTS = ('lidar', 'lidar_pose', 'lidar_calibration', 'vehicle_pose', 'lidar_box')


@dataclass(frozen=True)
class ConversionSettings:
    """What a conversion makes of a frame.

    Attributes:
        keep_zones: keep the points in no-label zones, where nothing is annotated.
        max_sweeps: earlier frames listed with each.
        database_every: of every so many frames of training, objects go into the ground-truth
        database; 0: no database.
    """

    keep_zones: bool = False
    max_sweeps: int = 10
    database_every: int = 10

    def __post_init__(self):
        if self.max_sweeps < 0 or self.database_every < 0:
            raise ValueError(f'{self}: neither number is below 0')


class Outcome(NamedTuple):
    """What a process did, and what it left.

    Attributes:
        files: written, of all segments; empty where others write them.
        failed: {'split/segment': what is wrong with it}; it is not in the files.
        pending: segments that other processes still convert.
        abandoned: segments that are not converted, and that no process is at.
        gaps: {'split/segment': which of its frames lack which LiDARs' points}, of the files.
        earlier: segments in the files that earlier calls converted from another source.
    """

    files: list[Path]
    failed: dict[str, str]
    pending: int
    abandoned: list[str]
    gaps: dict[str, str]
    earlier: int


def find_segments(source: str | Path, splits: Sequence[str] | None = None) -> dict[str, list[str]]:
    """{split: names of its segments} of a dataset in the layout
    <split>/<component>/<segment>.parquet.

    Raises:
        FileNotFoundError, ValueError: nothing there, or Waymo's v1 (tfrecord).
    """
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f'there is no folder {source}')
    wanted = [split for split in SPLITS if (source / split).is_dir()] if splits is None else splits
    # an incomplete segment is found by what there is of it
    found = {
        split: sorted(
            {
                path.stem
                for part in _COMPONENTS
                for path in (source / split / part).glob('*.parquet')
            }
        )
        for split in wanted
    }
    found = {split: names for split, names in found.items() if names or splits is not None}
    if not found or not all(found.values()):
        if next(source.rglob('*.tfrecord'), None):
            raise ValueError(
                f'{source}: holds tfrecord files, that is perception v1, which only TensorFlow and the '
                'official package read; download perception v2, the same frames as parquet'
            )
        raise FileNotFoundError(
            f'{source}: no perception v2 there: <split>/lidar/<segment>.parquet with the split '
            f'{" or ".join(splits or SPLITS)}'
        )
    return found


def convert_waymo(
    source: str | Path,
    out: str | Path,
    splits: Sequence[str] | None = None,
    settings: ConversionSettings | None = None,
    workers: int = 1,
    rank: Rank | None = None,
) -> Outcome:
    """Convert all segments that are not converted yet, then write info files and database.

    <out>/<split>/<segment>_<timestamp>.bin: float32 [P, 6], see `waymo_segments.Frame`;
    <out>/waymo_infos_{train,val,test}.pkl: mmdet3d's version 2; <out>/waymo_gt_database/ and
    waymo_dbinfos_train.pkl: as in `ground_truth_database`, with the columns of a point file. They
    list all that is converted in `out`, also what earlier calls did from another source. A segment
    counts once its record in <out>/.conversion is there, which comes last; the process that finds
    all segments accounted for writes the rest. A damaged segment is reported and left out; it is
    tried again by the next call. A frame without a row of some LiDAR has the points of the others,
    one without any is left out; both are reported. Calls at the same time share the work: none
    touches what another is at.

    Args:
        source: holds <split>/<component>/<segment>.parquet.
        splits: of Waymo, training, validation, testing; None takes those that are there.
        settings: see ConversionSettings.
        workers: processes; the result does not depend on it.
        rank: this process's part, see `processes.find_rank`; the result does not depend on it.
    Returns:
        Outcome.
    Raises:
        FileNotFoundError, ValueError: no segments, `out` holds something else.
        OSError: a full disk, a folder that cannot be written, a killed worker.
    """
    source, out, rank, settings = (
        Path(source),
        Path(out),
        rank or Rank(),
        settings or ConversionSettings(),
    )
    if unknown := set(splits or ()) - SPLITS.keys():
        raise ValueError(f'splits are {", ".join(SPLITS)}, not {", ".join(unknown)}')
    if workers < 1:
        raise ValueError(f'{workers} workers: at least 1')
    segments = [
        Segment(split, name)
        for split, names in find_segments(source, splits).items()
        for name in names
    ]
    acquire_folder(out, asdict(settings), 'conversion.json')
    records, failed = Records(out), {}
    records.begin()
    with records.working():
        mine = rank.share(segments)
        for segment in mine:
            records.prepare(segment)
        todo = [segment for segment in mine if records.read(segment) is None]
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
    with tqdm(
        total=sum(sizes.values()), unit='frame', desc='converting', dynamic_ncols=True
    ) as bar:
        if workers == 1 or len(segments) < 2:
            for segment in segments:
                start = bar.n
                yield segment, convert(segment, bar.update)
                bar.update(
                    start + sizes[segment] - bar.n
                )  # also those that a damaged one does not have
            return
        with worker_pool(min(workers, len(segments)), limit_worker) as pool:
            running = {pool.submit(convert, segment): segment for segment in segments}
            for future in as_completed(running):
                yield running[future], future.result()
                bar.update(sizes[running[future]])


def _count_frames(source: Path, segment: Segment) -> int:
    try:
        return pq.read_metadata(
            source / segment.split / 'vehicle_pose' / f'{segment.name}.parquet'
        ).num_rows
    except (OSError, ValueError):  # reported when the segment is read
        return 1


def _try_segment(
    source: Path,
    out: Path,
    settings: ConversionSettings,
    segment: Segment,
    progress=lambda frames: None,
) -> str | None:
    """What is wrong with it; None also where another process converts it or just did."""
    with Records(out).claim(segment) as is_mine:
        if is_mine and Records(out).read(segment) is None:
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
    progress=lambda frames: None,
) -> None:
    """Write the point files of a segment, its objects of the database, then its record; progress(1)
    after each frame.

    Raises:
        FileNotFoundError, ValueError: see `read_segment`. OSError: a full disk.
    """
    records, (split, name) = Records(out), segment
    buffer = records.buffer(segment)
    shutil.rmtree(buffer, ignore_errors=True)
    with name_file(buffer):
        buffer.mkdir()
    has_database = split == 'training' and settings.database_every > 0
    if has_database:
        with name_file(out / FOLDER):
            (out / FOLDER / name).mkdir(parents=True, exist_ok=True)
    frames, objects, gaps = {}, {}, {}
    try:
        for frame in read_segment(source / split, name, buffer, split != 'testing'):
            progress(1)
            if frame.absent:
                gaps[frame.timestamp] = frame.absent
            if not len(frame.points):
                gaps.setdefault(frame.timestamp, [])
                continue
            points = frame.points if settings.keep_zones else frame.points[~frame.in_zone]
            atomic_write(out / split / f'{name}_{frame.timestamp}.bin', points.tobytes())
            frames[frame.timestamp] = _describe(frame, name)
            if has_database and frame.index % settings.database_every == 0:
                objects[frame.timestamp] = _cut(out, name, points, frames[frame.timestamp])
    finally:
        shutil.rmtree(buffer, ignore_errors=True)
    if not frames:
        raise ValueError(f'{source / split / "lidar" / name}.parquet: no frame has a point')
    stamps = sorted(frames)
    infos = [frames[stamp] for stamp in stamps]
    for i, info in enumerate(infos):
        _list_sweeps(info, infos[max(i - settings.max_sweeps, 0) : i][::-1])
    objects = {i: objects[stamp] for i, stamp in enumerate(stamps) if stamp in objects}
    records.write(segment, dict(frames=infos, objects=objects, gaps=gaps))


def _describe(frame: WaymoFrame, name: str) -> dict:
    """A frame's entry of the info file, but for its number and its sweeps."""
    instances = []
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
    """Add earlier frames, the nearest first; where there is none, the key is absent, as in
    mmdet3d."""
    here = np.array(info['ego2global'])
    sweeps = [
        dict(
            timestamp=sweep['timestamp'],
            ego2global=sweep['ego2global'],
            lidar_points=dict(
                lidar_path=sweep['lidar_points']['lidar_path'],
                lidar2sensor=(np.linalg.inv(sweep['ego2global']) @ here).tolist(),
            ),
        )
        for sweep in earlier
    ]
    if sweeps:
        info['lidar_sweeps'] = sweeps


def _cut(out: Path, name: str, points: np.ndarray, info: dict) -> list[dict]:
    boxes = torch.tensor(
        [row['bbox_3d'] for row in info['instances']], dtype=torch.float32
    ).reshape(-1, 7)
    names = [CLASSES[row['bbox_label_3d']] for row in info['instances']]
    return cut_objects(
        out, f'{FOLDER}/{name}/{info["timestamp"]}', torch.from_numpy(points), boxes, names
    )
