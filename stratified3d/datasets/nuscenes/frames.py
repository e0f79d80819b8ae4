"""Single annotated frames of an mmdet3d info file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from stratified3d.datasets.io.info_files import read_info_file
from stratified3d.datasets.io.point_files import read_points


class AnnotatedFrame(NamedTuple):
    """points [P, 5] float32 x, y, z (m), intensity, dt (s, 0); boxes [K, 9] float32 bottom center
    x, y, z, dx, dy, dz, yaw, vx, vy; names: K class names; num_points [K]: lidar points in each
    box."""

    points: np.ndarray
    boxes: np.ndarray
    names: list[str]
    num_points: np.ndarray


def read_frame(info: str | Path, index: int = 0) -> AnnotatedFrame:
    """Read one annotated frame of a nuScenes-style mmdet3d info file (version 2, as
    `create_data.py` writes it).

    The point file is looked for beside the info file and under its `samples/LIDAR_TOP`.

    Args:
        info: the .pkl file.
        index: which entry of its data_list.
    Raises:
        FileNotFoundError, ValueError: a missing or damaged file, another dataset's box convention,
        no such frame.
    """
    info = Path(info)
    content = read_info_file(info)
    meta, frames = content['metainfo'], content['data_list']
    if meta.get('dataset') != 'nuscenes':
        raise ValueError(
            f'{info}: written for dataset {meta.get("dataset")!r}; only nuscenes is read here, because '
            'box conventions differ'
        )
    if not 0 <= index < len(frames):
        raise ValueError(f'{info}: holds {len(frames)} frames, there is no frame {index}')
    frame = frames[index]
    name = Path(frame['lidar_points']['lidar_path']).name
    places = [info.parent / name, info.parent / 'samples' / 'LIDAR_TOP' / name]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(f'{info}: its points are neither at {places[0]} nor at {places[1]}')
    points = read_points(path, frame['lidar_points'].get('num_pts_feats', 5))
    points = np.hstack([points, np.zeros((len(points), 1), np.float32)])

    class_of = {index: name for name, index in meta['categories'].items()}
    known = [
        i
        for i in frame.get('instances', [])
        if i['bbox_label_3d'] in class_of and i['bbox_label_3d'] >= 0
    ]
    boxes = np.array([[*i['bbox_3d'], *i['velocity']] for i in known], np.float32).reshape(-1, 9)
    boxes[:, 2] -= boxes[:, 5] / 2  # nuScenes infos hold the gravity center
    boxes[:, 7:] = np.nan_to_num(boxes[:, 7:])
    return AnnotatedFrame(
        points,
        boxes,
        [class_of[i['bbox_label_3d']] for i in known],
        np.array([i['num_lidar_pts'] for i in known], int),
    )
