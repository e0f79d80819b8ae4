"""Single frames: points from a file, and annotations from an mmdet3d info file."""
from __future__ import annotations

import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np

SUFFIXES = ('.bin', '.npy', '.pcd', '.ply')


class Frame(NamedTuple):
    """points [P, 5] float32 x, y, z (m), intensity, dt (s, 0); boxes [K, 9] float32 bottom centre x, y, z, dx, dy, dz,
    yaw, vx, vy; names: K class names; num_points [K]: lidar points in each box."""

    points: np.ndarray
    boxes: np.ndarray
    names: list[str]
    num_points: np.ndarray


def read_points(path: str | Path, load_dim: int | None = None) -> np.ndarray:
    """Read one sweep.

    Args:
        path: .bin (float32 rows), .npy ([P, >= 3]), .pcd or .ply (with an `intensity` attribute where there is one).
        load_dim: columns of a .bin file; default 5 for nuScenes' `.pcd.bin`, else 4 (KITTI) .
    Returns:
        [P, 4] float32 x, y, z (m), intensity; further columns (a ring index, say) are left out.
    Raises:
        FileNotFoundError, ValueError: a missing, empty, truncated or unknown file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no point file {path}')
    if path.suffix not in SUFFIXES:
        raise ValueError(f'{path}: points are read from {", ".join(SUFFIXES)} files')
    if path.suffix == '.bin':
        load_dim = load_dim or (5 if path.name.endswith('.pcd.bin') else 4)
        size = path.stat().st_size
        if size % (4 * load_dim):
            raise ValueError(f'{path}: {size} bytes are no whole number of points of {load_dim} float32; the file is '
                             'truncated, or has another number of columns (load_dim)')
        points = np.fromfile(path, np.float32).reshape(-1, load_dim)
    elif path.suffix == '.npy':
        points = np.load(path)
        if points.ndim != 2 or points.shape[1] < 3:
            raise ValueError(f'{path}: holds an array {points.shape}, points are [P, >= 3]')
    else:
        points = _read_open3d(path)
    intensity = points[:, 3:4] if points.shape[1] > 3 else np.zeros((len(points), 1))
    return np.hstack([points[:, :3], intensity]).astype(np.float32)


def _read_open3d(path: Path) -> np.ndarray:
    import open3d  # imported here: it takes seconds and only these files need it

    cloud = open3d.t.io.read_point_cloud(str(path))
    if 'positions' not in cloud.point:
        raise ValueError(f'{path}: no points could be read; the file is empty or damaged')
    columns = [cloud.point['positions'].numpy()]
    if 'intensity' in cloud.point:
        columns.append(cloud.point['intensity'].numpy().reshape(-1, 1))
    return np.hstack(columns)


def read_frame(info: str | Path, index: int = 0) -> Frame:
    """Read one annotated frame of a nuScenes-style mmdet3d info file (version 2, as `create_data.py` writes it).

    The point file is looked for beside the info file and under its `samples/LIDAR_TOP`.

    Args:
        info: the .pkl file.
        index: which entry of its data_list.
    Raises:
        FileNotFoundError, ValueError: a missing or damaged file, another data set's box convention, no such frame.
    """
    info = Path(info)
    if not info.is_file():
        raise FileNotFoundError(f'there is no info file {info}')
    try:
        content = pickle.loads(info.read_bytes())
        meta, frames = content['metainfo'], content['data_list']
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f'{info}: no mmdet3d info file of version 2 with metainfo and data_list '
                         f'({type(error).__name__}: {error})') from error
    if meta.get('dataset') != 'nuscenes':
        raise ValueError(f'{info}: written for data set {meta.get("dataset")!r}; only nuscenes is read here, because '
                         'box conventions differ')
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
    known = [i for i in frame.get('instances', []) if i['bbox_label_3d'] in class_of and i['bbox_label_3d'] >= 0]
    boxes = np.array([[*i['bbox_3d'], *i['velocity']] for i in known], np.float32).reshape(-1, 9)
    boxes[:, 2] -= boxes[:, 5] / 2  # nuScenes infos hold the gravity centre
    boxes[:, 7:] = np.nan_to_num(boxes[:, 7:])
    return Frame(points, boxes, [class_of[i['bbox_label_3d']] for i in known],
                 np.array([i['num_lidar_pts'] for i in known], int))
