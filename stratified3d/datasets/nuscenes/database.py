"""The ground-truth database that ObjectSample draws from: the points of every training box, cut
from aligned sweeps."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmdet3d.datasets import NuScenesDataset
from tqdm import tqdm

from stratified3d.datasets.io.info_files import read_info_file
from stratified3d.datasets.io.workers import limit_worker
from stratified3d.datasets.sampling.object_points import cut_objects
from stratified3d.datasets.transforms.sweeps import LoadAlignedSweeps, LoadKeyframe
from stratified3d.resumable import (
    LineRecord,
    acquire_folder,
    atomic_write,
    sole_writer,
    worker_pool,
)

FOLDER = 'nuscenes_gt_database'
_RECORD_NAME = 'settings.json'


def create_database(root: str | Path, sweeps: int = 9, workers: int = 1) -> Path:
    """Write nuscenes_dbinfos_train.pkl and nuscenes_gt_database/*.bin.

    The format is that of mmdet3d's create_data.py. Its database is cut from misaligned sweeps, and
    what no detection class covers (debris, bicycle racks, animals) is filed under the last class,
    `barrier`. This one takes the points that LoadKeyframe and LoadAlignedSweeps give in training,
    and boxes of the ten classes only. A box without points has no entry, a class without boxes an
    empty list.

    A frame counts once its line is in the folder's progress.jsonl, which is after its point files;
    a run that ended early resumes after the last complete line. A finished database is kept.

    Args:
        root: the dataset, with samples/, sweeps/ and nuscenes_infos_train.pkl.
        sweeps: added to each keyframe, the nearest first; as many as the config's
            LoadAlignedSweeps takes.
        workers: processes; the result does not depend on it.
    Returns:
        The .pkl: {class: [dict(name, path, image_idx, gt_idx, box3d_lidar [9], num_points_in_gt,
        difficulty, group_id)]}, box3d_lidar being bottom center x, y, z (m), dx, dy, dz, yaw, vx,
        vy (m/s); a .bin file contains float32 [P, 5] x, y, z relative to the bottom center,
        intensity, age (s).
    Raises:
        FileNotFoundError, ValueError: a missing or damaged info file or sweep, more sweeps than it
            lists, a database of other settings.
        OSError: a full disk, a folder that cannot be written, another process that writes it.
    """
    root = Path(root)
    if workers < 1:
        raise ValueError(f'{workers} workers: at least 1')
    meta, frames = _read_frames(root / 'nuscenes_infos_train.pkl', sweeps)
    path = root / 'nuscenes_dbinfos_train.pkl'
    folder = root / FOLDER
    _check_own(path, folder / _RECORD_NAME)
    settings = dict(
        version=meta.get('version'),
        sweeps=sweeps,
        keyframes=len(frames),
        first=frames[0]['token'],
        last=frames[-1]['token'],
    )
    acquire_folder(folder, settings, _RECORD_NAME)

    with sole_writer(folder / _RECORD_NAME):
        if not path.is_file():
            progress = LineRecord(folder / 'progress.jsonl')
            _cut_missing(root, sweeps, workers, frames, progress)
            atomic_write(path, pickle.dumps(_merge_entries(progress.lines)))
            progress.path.unlink()
    return path


def _read_frames(info: Path, sweeps: int) -> tuple[dict, list[dict]]:
    """Metainfo and frames of the info file, which has to list enough sweeps."""
    content = read_info_file(info)
    meta = content['metainfo']
    frames = content['data_list']
    listed = meta.get('max_sweeps', 10)
    if not 0 <= sweeps <= listed:
        raise ValueError(
            f'{info} lists {listed} sweeps per keyframe, the database asks for {sweeps}'
        )
    if not frames:
        raise ValueError(f'{info}: contains no frames')
    return meta, frames


def _check_own(path: Path, record: Path) -> None:
    """Raise for a database that another command wrote."""
    if path.is_file() and not record.is_file():
        raise ValueError(
            f'{path}: not written by this command (there is no {record}): move or delete it'
        )


def _cut_missing(
    root: Path, sweeps: int, workers: int, frames: list[dict], progress: LineRecord
) -> None:
    """Cut the frames that have no line yet."""
    done = len(progress.lines)
    bar = tqdm(
        _cut_frames(root, sweeps, workers, frames[done:]),
        'nuscenes_dbinfos_train.pkl',
        total=len(frames),
        initial=done,
        unit='keyframe',
    )
    for line in bar:
        progress.append(line)


def _merge_entries(lines: list[str]) -> dict[str, list[dict]]:
    """Entries of all frames by class, numbered in the order of the frames."""
    database: dict[str, list[dict]] = {name: [] for name in NuScenesDataset.METAINFO['classes']}
    entries = itertools.chain(*map(json.loads, lines))
    for group, entry in enumerate(entries):
        box = np.array(entry['box3d_lidar'], np.float32)
        entry.update(box3d_lidar=box, difficulty=0, group_id=group)
        database[entry['name']].append(entry)
    return database


def _cut_frames(root: Path, sweeps: int, workers: int, frames: list[dict]) -> Iterator[str]:
    cut = functools.partial(_cut_frame, root, sweeps)
    if workers == 1 or len(frames) < 2:
        yield from map(cut, frames)
        return
    with worker_pool(min(workers, len(frames)), limit_worker) as pool:
        yield from pool.map(cut, frames)


def _cut_frame(root: Path, sweeps: int, frame: dict) -> str:
    """Write the point file of every box of a frame; returns its entries as a line of JSON."""
    dataset = NuScenesDataset(  # for its reading of a frame's boxes and paths; it loads no file
        data_root=str(root),
        ann_file='',
        use_valid_flag=True,
        lazy_init=True,
        data_prefix=dict(pts='samples/LIDAR_TOP', img='', sweeps='sweeps/LIDAR_TOP'),
    )
    results = dataset.parse_data_info(copy.deepcopy(frame))
    load_keyframe = LoadKeyframe(coord_type='LIDAR', load_dim=5, use_dim=5)
    load_sweeps = LoadAlignedSweeps(sweeps_num=sweeps, use_dim=[0, 1, 2, 3, 4], remove_close=True)
    results = load_sweeps.transform(load_keyframe.transform(results))

    annotations = results['ann_info']
    classes = NuScenesDataset.METAINFO['classes']
    names = [classes[label] if label >= 0 else None for label in annotations['gt_labels_3d']]
    entries = cut_objects(
        root,
        f'{FOLDER}/{frame["sample_idx"]}',
        results['points'].tensor,
        annotations['gt_bboxes_3d'].tensor,
        names,
    )
    return json.dumps([dict(entry, image_idx=frame['sample_idx']) for entry in entries])
