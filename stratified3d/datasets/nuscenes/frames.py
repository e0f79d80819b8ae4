"""Single annotated frames of an mmdet3d info file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from stratified3d.datasets.io.info_files import read_info_file
from stratified3d.datasets.io.point_files import read_points


class AnnotatedFrame(NamedTuple):
    """Points and boxes of a keyframe.

    Attributes:
        points: [P, 5] float32 x, y, z (m), intensity, dt (s, 0).
        boxes: [K, 9] float32 bottom center x, y, z (m), dx, dy, dz, yaw, vx, vy (m/s).
        names: class of each box.
        num_points: [K] lidar points in each box.
    """

    points: np.ndarray
    boxes: np.ndarray
    names: list[str]
    num_points: np.ndarray


def read_frame(info: str | Path, index: int = 0) -> AnnotatedFrame:
    """Read one annotated frame of a nuScenes info file (mmdet3d's version 2).

    The point file is looked for beside the info file and under its `samples/LIDAR_TOP`.

    Args:
        info: the .pkl file, as `create_data.py` writes it.
        index: which entry of its data_list.
    Raises:
        FileNotFoundError, ValueError: a missing or damaged file, another dataset's box convention,
            no such frame.
    """
    info = Path(info)
    content = read_info_file(info)
    meta = content['metainfo']
    frames = content['data_list']
    if meta.get('dataset') != 'nuscenes':
        raise ValueError(
            f'{info}: written for dataset {meta.get("dataset")!r}; only nuscenes is read here, '
            'because box conventions differ'
        )
    if not 0 <= index < len(frames):
        raise ValueError(f'{info}: contains {len(frames)} frames, there is no frame {index}')
    frame = frames[index]

    lidar = frame['lidar_points']
    path = _find_points(info, Path(lidar['lidar_path']).name)
    points = read_points(path, lidar.get('num_pts_feats', 5))
    age = np.zeros((len(points), 1), np.float32)

    class_of = {label: name for name, label in meta['categories'].items() if label >= 0}
    known = [row for row in frame.get('instances', []) if row['bbox_label_3d'] in class_of]
    return AnnotatedFrame(
        np.hstack([points, age]),
        _stack_boxes(known),
        [class_of[row['bbox_label_3d']] for row in known],
        np.array([row['num_lidar_pts'] for row in known], int),
    )


def _find_points(info: Path, name: str) -> Path:
    """The point file of this name beside the info file or in samples/LIDAR_TOP."""
    beside = info.parent / name
    below = info.parent / 'samples' / 'LIDAR_TOP' / name
    for path in (beside, below):
        if path.is_file():
            return path
    raise FileNotFoundError(f'{info}: its points are neither at {beside} nor at {below}')


def _stack_boxes(rows: list[dict]) -> np.ndarray:
    """[K, 9] boxes of instances."""
    numbers = [[*row['bbox_3d'], *row['velocity']] for row in rows]
    boxes = np.array(numbers, np.float32).reshape(-1, 9)
    boxes[:, 2] -= boxes[:, 5] / 2  # nuScenes infos contain the gravity center
    boxes[:, 7:] = np.nan_to_num(boxes[:, 7:])
    return boxes
