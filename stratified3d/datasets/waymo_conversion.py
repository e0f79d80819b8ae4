"""Waymo's perception v2 to points, info files and a ground-truth database that mmdet3d's scripts train with."""
from __future__ import annotations

import functools
import os
import pickle
import shutil
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from stratified3d.datasets.disk import claim_folder, naming, write_whole
from stratified3d.datasets.object_points import cut_objects
from stratified3d.datasets.processes import Rank, worker_pool
from stratified3d.datasets.waymo_segments import Frame, read_segment

SPLITS = {'training': 'train', 'validation': 'val', 'testing': 'test'}  # Waymo's folder: name of the info file
CLASSES = ('Car', 'Pedestrian', 'Cyclist')  # mmdet3d's; asking its WaymoDataset would cost each worker seconds
FOLDER = 'waymo_gt_database'
_NAMES = {1: 'Car', 2: 'Pedestrian', 4: 'Cyclist'}  # of Waymo's types; signs are not detected
_RECORDS = '.conversion'  # what is done, per segment


@dataclass(frozen=True)
class Settings:
    """What a conversion makes of a frame.

    Attributes:
        keep_zones: keep the points in no-label zones, where nothing is annotated.
        max_sweeps: earlier frames listed with each.
        database_every: of every so many frames of training, objects go into the ground-truth database; 0: no database.
    """

    keep_zones: bool = False
    max_sweeps: int = 10
    database_every: int = 10

    def __post_init__(self):
        if self.max_sweeps < 0 or self.database_every < 0:
            raise ValueError(f'{self}: neither number is below 0')


class Outcome(NamedTuple):
    """files written, {'split/segment': what is wrong with it} of this process's, and how many segments others still
    have to convert before the files can be written."""

    files: list[Path]
    failed: dict[str, str]
    pending: int


def find_segments(source: str | Path, splits: Sequence[str] | None = None) -> dict[str, list[str]]:
    """{split: names of its segments} of a data set in the layout <split>/<component>/<segment>.parquet.

    Raises:
        FileNotFoundError, ValueError: nothing there, or Waymo's v1 (tfrecord).
    """
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f'there is no folder {source}')
    wanted = [split for split in SPLITS if (source / split).is_dir()] if splits is None else splits
    found = {split: sorted(path.stem for path in (source / split / 'lidar').glob('*.parquet')) for split in wanted}
    found = {split: names for split, names in found.items() if names or splits is not None}
    if not found or not all(found.values()):
        if next(source.rglob('*.tfrecord'), None):
            raise ValueError(f'{source}: holds tfrecord files, that is perception v1, which only TensorFlow and the '
                             "official package read; download perception v2, the same frames as parquet")
        raise FileNotFoundError(f'{source}: no perception v2 there: <split>/lidar/<segment>.parquet with the split '
                                f'{" or ".join(splits or SPLITS)}')
    return found


def convert_waymo(source: str | Path, out: str | Path, splits: Sequence[str] | None = None,
                  settings: Settings | None = None, workers: int = 1, rank: Rank | None = None) -> Outcome:
    """Convert all segments that are not converted yet, then write info files and database.

    <out>/<split>/<segment>_<timestamp>.bin: float32 [P, 6], see `waymo_segments.Frame`;
    <out>/waymo_infos_{train,val,test}.pkl: mmdet3d's version 2; <out>/waymo_gt_database/ and waymo_dbinfos_train.pkl:
    as in `ground_truth_database`, with the columns of a point file. A segment counts once its record in
    <out>/.conversion is there, which comes last; the process that finds all segments accounted for writes the rest.
    A damaged segment is reported and left out; it is tried again by the next call.

    Args:
        source: holds <split>/<component>/<segment>.parquet.
        splits: of Waymo, training, validation, testing; None takes those that are there.
        settings: see Settings.
        workers: processes; the result does not depend on it.
        rank: this process's part, see `processes.find_rank`; the result does not depend on it.
    Returns:
        Outcome.
    Raises:
        FileNotFoundError, ValueError: no segments, `out` holds something else.
        OSError: a full disk, a folder that cannot be written, a killed worker.
    """
    source, out, rank, settings = Path(source), Path(out), rank or Rank(), settings or Settings()
    if unknown := set(splits or ()) - SPLITS.keys():
        raise ValueError(f'splits are {", ".join(SPLITS)}, not {", ".join(unknown)}')
    if workers < 1:
        raise ValueError(f'{workers} workers: at least 1')
    segments = [(split, name) for split, names in find_segments(source, splits).items() for name in names]
    claim_folder(out, asdict(settings), _writer())
    mine = rank.share(segments)
    for split, name in mine:
        for folder in (out / _RECORDS / split, out / split):
            with naming(folder):
                folder.mkdir(parents=True, exist_ok=True)
        _failure(out, split, name).unlink(missing_ok=True)
    todo = [segment for segment in mine if _read_record(out, *segment) is None]
    rank.wait()
    failed = {}
    for (split, name), problem in _convert_all(source, out, settings, todo, workers):
        if problem:
            failed[f'{split}/{name}'] = problem
            write_whole(_failure(out, split, name), problem.encode())
    rank.wait()
    pending = sum(not (_record(out, *segment).is_file() or _failure(out, *segment).is_file()) for segment in segments)
    is_writer = rank.index == 0 or rank.launcher != 'pytorch'  # who else may do so at the same time writes the same
    files, written = [], None
    while is_writer and not pending and written != (written := _done(out, segments)):  # others may add to it meanwhile
        files = _write_files(out, segments, settings)
    rank.wait()
    return Outcome(files, failed, pending)


def _convert_all(source: Path, out: Path, settings: Settings, segments: list[tuple[str, str]], workers: int
                 ) -> Iterator[tuple[tuple[str, str], str | None]]:
    """(segment, what is wrong with it or None), as they are finished."""
    sizes = {segment: _count_frames(source, *segment) for segment in segments}
    convert = functools.partial(_try_segment, source, out, settings)
    with tqdm(total=sum(sizes.values()), unit='frame', desc='converting', dynamic_ncols=True) as bar:
        if workers == 1 or len(segments) < 2:
            for segment in segments:
                start = bar.n
                yield segment, convert(*segment, bar.update)
                bar.update(start + sizes[segment] - bar.n)  # also those that a damaged one does not have
            return
        with worker_pool(min(workers, len(segments))) as pool:
            running = {pool.submit(convert, *segment): segment for segment in segments}
            for future in as_completed(running):
                yield running[future], future.result()
                bar.update(sizes[running[future]])


def _count_frames(source: Path, split: str, name: str) -> int:
    try:
        return pq.read_metadata(source / split / 'vehicle_pose' / f'{name}.parquet').num_rows
    except (OSError, ValueError):  # reported when the segment is read
        return 1


def _try_segment(source: Path, out: Path, settings: Settings, split: str, name: str, progress=lambda frames: None
                 ) -> str | None:
    try:
        convert_segment(source, out, settings, split, name, progress)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return None


def convert_segment(source: Path, out: Path, settings: Settings, split: str, name: str, progress=lambda frames: None
                    ) -> None:
    """Write the point files of a segment, its objects of the database, then its record; progress(1) after each frame.

    Raises:
        FileNotFoundError, ValueError: see `read_segment`. OSError: a full disk.
    """
    spool = out / _RECORDS / split / f'{name}.spool'
    shutil.rmtree(spool, ignore_errors=True)
    with naming(spool):
        spool.mkdir()
    has_database = split == 'training' and settings.database_every > 0
    if has_database:
        with naming(out / FOLDER):
            (out / FOLDER / name).mkdir(parents=True, exist_ok=True)
    frames, objects = {}, {}
    try:
        for frame in read_segment(source / split, name, spool, split != 'testing'):
            points = frame.points if settings.keep_zones else frame.points[~frame.in_zone]
            write_whole(out / split / f'{name}_{frame.timestamp}.bin', points.tobytes())
            frames[frame.index] = _describe(frame, name)
            if has_database and frame.index % settings.database_every == 0:
                objects[frame.index] = _cut(out, name, points, frames[frame.index])
            progress(1)
    finally:
        shutil.rmtree(spool, ignore_errors=True)
    infos = [frames[i] for i in sorted(frames)]
    for i, info in enumerate(infos):
        _list_sweeps(info, infos[max(i - settings.max_sweeps, 0):i][::-1])
    write_whole(_record(out, split, name), pickle.dumps(dict(frames=infos, objects=objects)))


def _describe(frame: Frame, name: str) -> dict:
    """A frame's entry of the info file, but for its number and its sweeps."""
    instances = []
    for box in frame.boxes:
        if box.type not in _NAMES or box.num_points < 1:
            continue
        label = CLASSES.index(_NAMES[box.type])
        x, y, z, dx, dy, dz, heading = box.numbers
        instances.append(dict(
            bbox=[0.0] * 4, bbox_label=label, bbox_3d=[x, y, z - dz / 2, dx, dy, dz, heading], bbox_label_3d=label,
            num_lidar_pts=box.num_points, difficulty=box.difficulty, camera_id=0, group_id=len(instances) + 1,
            track_id=box.name))
    return dict(context_name=name, timestamp=frame.timestamp, ego2global=frame.pose.tolist(),
                lidar_points=dict(num_pts_feats=6, lidar_path=f'{name}_{frame.timestamp}.bin'), instances=instances)


def _list_sweeps(info: dict, earlier: list[dict]) -> None:
    """Add earlier frames, the nearest first; where there is none, the key is absent, as in mmdet3d."""
    here = np.array(info['ego2global'])
    sweeps = [dict(timestamp=sweep['timestamp'], ego2global=sweep['ego2global'], lidar_points=dict(
        lidar_path=sweep['lidar_points']['lidar_path'],
        lidar2sensor=(np.linalg.inv(sweep['ego2global']) @ here).tolist())) for sweep in earlier]
    if sweeps:
        info['lidar_sweeps'] = sweeps


def _cut(out: Path, name: str, points: np.ndarray, info: dict) -> list[dict]:
    boxes = torch.tensor([row['bbox_3d'] for row in info['instances']], dtype=torch.float32).reshape(-1, 7)
    names = [CLASSES[row['bbox_label_3d']] for row in info['instances']]
    return cut_objects(out, f'{FOLDER}/{name}/{info["timestamp"]}', torch.from_numpy(points), boxes, names)


def _write_files(out: Path, segments: list[tuple[str, str]], settings: Settings) -> list[Path]:
    """Info files and database of all segments that have a record."""
    files = []
    for number, split in enumerate(SPLITS):
        records = [_read_record(out, *segment) for segment in segments if segment[0] == split]
        found = [record for record in records if record]
        if not found:
            continue
        frames, groups = [], {name: [] for name in CLASSES}
        for i, record in enumerate(found):
            for j, info in enumerate(record['frames']):
                # numbers as mmdet3d gives them: split, segment, frame
                frames.append(dict(info, sample_idx=number * 1_000_000 + i * 1000 + j))
                for entry in record['objects'].get(j, []):
                    groups[entry['name']].append(dict(
                        entry, image_idx=frames[-1]['sample_idx'], difficulty=0,
                        box3d_lidar=np.array(entry['box3d_lidar'], np.float32)))
        meta = dict(dataset='waymo', version='waymo_v2', info_version='mmdet3d_v1.4', segments=len(found),
                    categories={name: label for label, name in enumerate(CLASSES)})
        content = {f'waymo_infos_{SPLITS[split]}.pkl': dict(metainfo=meta, data_list=frames)}
        if split == 'training' and settings.database_every:
            for group, entry in enumerate(entry for name in CLASSES for entry in groups[name]):
                entry['group_id'] = group
            content['waymo_dbinfos_train.pkl'] = groups
        for file, value in content.items():
            write_whole(out / file, pickle.dumps(value), _writer())
            files.append(out / file)
    return files


def _done(out: Path, segments: list[tuple[str, str]]) -> list[bool]:
    return [_record(out, *segment).is_file() for segment in segments]


def _record(out: Path, split: str, name: str) -> Path:
    return out / _RECORDS / split / f'{name}.pkl'


def _failure(out: Path, split: str, name: str) -> Path:
    return out / _RECORDS / split / f'{name}.failed'


def _read_record(out: Path, split: str, name: str) -> dict | None:
    """What is known of a segment; None where it, or a point file of it, is missing."""
    path = _record(out, split, name)
    if not path.is_file():
        return None
    try:
        record = pickle.loads(path.read_bytes())
    except (EOFError, pickle.UnpicklingError):  # the machine died before it was on disk
        path.unlink(missing_ok=True)
        return None
    if not all((out / split / frame['lidar_points']['lidar_path']).is_file() for frame in record['frames']):
        path.unlink(missing_ok=True)
        return None
    return record


def _writer() -> str:
    return f'.{socket.gethostname()}.{os.getpid()}'
