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

from stratified3d.datasets.io.disk import naming, write_whole
from stratified3d.datasets.io.info_files import read_info_file
from stratified3d.datasets.sampling.object_points import cut_objects
from stratified3d.datasets.transforms.sweeps import LoadAlignedSweeps, LoadKeyframe
from stratified3d.datasets.waymo.processes import worker_pool

FOLDER = 'nuscenes_gt_database'


def create_database(root: str | Path, sweeps: int = 9, workers: int = 1) -> Path:
    """Write nuscenes_dbinfos_train.pkl and nuscenes_gt_database/*.bin beside
    nuscenes_infos_train.pkl.

    The format is that of mmdet3d's create_data.py. Where its database is cut from misaligned sweeps
    and files what no detection class covers (debris, bicycle racks, animals) under the last class,
    `barrier`, this one takes the points that LoadKeyframe and LoadAlignedSweeps give in training,
    and boxes of the ten classes only; a box without points has no entry, a class without boxes an
    empty list.

    A frame counts once its line is in the folder's progress.jsonl, which is after its point files;
    a run that ended early goes on behind the last whole line. A finished database is kept.

    Args:
        root: the dataset, with samples/, sweeps/ and its info file.
        sweeps: added to each keyframe, the nearest first; take what the config's LoadAlignedSweeps
        takes.
        workers: processes; the result does not depend on it.
    Returns:
        The .pkl: {class: [dict(name, path, image_idx, gt_idx, box3d_lidar [9], num_points_in_gt,
        difficulty, group_id)]}, box3d_lidar being bottom center x, y, z (m), dx, dy, dz, yaw, vx,
        vy (m/s); a .bin file holds float32 [P, 5] x, y, z relative to the bottom center, intensity,
        age (s).
    Raises:
        FileNotFoundError, ValueError: a missing or damaged info file or sweep, more sweeps than it
        lists, a database of
            other settings.
        OSError: a full disk, a folder that cannot be written.
    """
    root = Path(root)
    info, path, folder = (
        root / 'nuscenes_infos_train.pkl',
        root / 'nuscenes_dbinfos_train.pkl',
        root / FOLDER,
    )
    content = read_info_file(info)
    meta, frames = content['metainfo'], content['data_list']
    if not 0 <= sweeps <= meta.get('max_sweeps', 10):
        raise ValueError(
            f'{info} lists {meta.get("max_sweeps", 10)} sweeps per keyframe, the database asks for '
            f'{sweeps}'
        )
    if not frames:
        raise ValueError(f'{info}: holds no frame')
    if workers < 1:
        raise ValueError(f'{workers} workers: at least 1')
    settings = dict(
        version=meta.get('version'),
        sweeps=sweeps,
        keyframes=len(frames),
        first=frames[0]['token'],
        last=frames[-1]['token'],
    )
    _check_same(folder, path, settings)
    if path.is_file():
        return path
    progress = folder / 'progress.jsonl'
    lines = _whole_lines(progress)
    todo = _cut_frames(root, sweeps, workers, frames[len(lines) :])
    for line in tqdm(todo, path.name, total=len(frames), initial=len(lines), unit='keyframe'):
        with naming(progress), open(progress, 'a') as file:
            file.write(line + '\n')
        lines.append(line)
    database = {name: [] for name in NuScenesDataset.METAINFO['classes']}
    for group, entry in enumerate(itertools.chain(*map(json.loads, lines))):
        entry.update(
            box3d_lidar=np.array(entry['box3d_lidar'], np.float32), difficulty=0, group_id=group
        )
        database[entry['name']].append(entry)
    write_whole(path, pickle.dumps(database))
    progress.unlink()
    return path


def _check_same(folder: Path, path: Path, settings: dict) -> None:
    """Claim the folder for these settings, or see that it is theirs."""
    record = folder / 'settings.json'
    if not record.is_file():
        for other in (folder, path):
            if other.is_file() or other.is_dir() and any(other.iterdir()):
                raise ValueError(
                    f'{other}: not written by this command (there is no {record}): move or delete it'
                )
        with naming(folder):
            folder.mkdir(exist_ok=True)
        write_whole(record, json.dumps(settings).encode())
    try:
        found = json.loads(record.read_bytes())
    except ValueError as error:
        raise ValueError(f'{record}: damaged ({error}); delete {folder} and {path}') from error
    if found != settings:
        raise ValueError(
            f'{folder}: a database of {found}, not of {settings}: move or delete it and {path}'
        )


def _whole_lines(path: Path) -> list[str]:
    """Lines of earlier runs; what a killed one left of its last line is cut off."""
    if not path.is_file():
        return []
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b'\n') + 1]
    with open(path, 'r+b') as file:
        file.truncate(len(whole))
    return whole.decode().splitlines()


def _cut_frames(root: Path, sweeps: int, workers: int, frames: list[dict]) -> Iterator[str]:
    cut = functools.partial(_cut_frame, root, sweeps)
    if workers == 1 or len(frames) < 2:
        yield from map(cut, frames)
        return
    with worker_pool(min(workers, len(frames))) as pool:
        yield from pool.map(cut, frames)


def _cut_frame(root: Path, sweeps: int, frame: dict) -> str:
    """Write the point file of every box of a frame -> its entries as a line of JSON."""
    dataset = NuScenesDataset(  # for its reading of a frame's boxes and paths; it loads no file
        data_root=str(root),
        ann_file='',
        use_valid_flag=True,
        lazy_init=True,
        data_prefix=dict(pts='samples/LIDAR_TOP', img='', sweeps='sweeps/LIDAR_TOP'),
    )
    results = dataset.parse_data_info(copy.deepcopy(frame))
    for transform in (
        LoadKeyframe(coord_type='LIDAR', load_dim=5, use_dim=5),
        LoadAlignedSweeps(sweeps_num=sweeps, use_dim=[0, 1, 2, 3, 4], remove_close=True),
    ):
        results = transform.transform(results)
    truth = results['ann_info']
    names = [
        NuScenesDataset.METAINFO['classes'][label] if label >= 0 else None
        for label in truth['gt_labels_3d']
    ]
    entries = cut_objects(
        root,
        f'{FOLDER}/{frame["sample_idx"]}',
        results['points'].tensor,
        truth['gt_bboxes_3d'].tensor,
        names,
    )
    return json.dumps([dict(entry, image_idx=frame['sample_idx']) for entry in entries])
