"""Info files for nuScenes-format datasets, in mmdet3d's version 2, for LiDAR detection."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from mmdet3d.datasets import NuScenesDataset
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from pyquaternion import Quaternion
from tqdm import tqdm

from stratified3d.datasets.io.info_files import read_info_file
from stratified3d.datasets.nuscenes.folders import check_files, read_scenes
from stratified3d.datasets.nuscenes.splits import OFFICIAL, Splits, name_some
from stratified3d.resumable import atomic_write

_TABLES = (
    'attribute',
    'calibrated_sensor',
    'category',
    'ego_pose',
    'instance',
    'log',
    'map',
    'sample',
    'sample_annotation',
    'sample_data',
    'scene',
    'sensor',
    'visibility',
)


def create_infos(
    root: str | Path, version: str, max_sweeps: int = 10, splits: Splits | None = None
) -> list[Path]:
    """Write nuscenes_infos_<split>.pkl for every split of a version; existing ones are kept.

    The content is that of mmdet3d's create_data.py (`info_version` 1.1) without its camera parts;
    where no sweep precedes a keyframe, `lidar_sweeps` is absent. Files are complete or absent, and
    none is written unless all point files that they name are there.

    Args:
        root: the dataset, which contains <version>/, samples/ and sweeps/.
        version: v1.0-mini, v1.0-trainval or v1.0-test; any with `splits`.
        max_sweeps: stored per keyframe, the nearest first.
        splits: names of scenes by split, where they are not the official ones; the info files name
            them as `scenes` in their metainfo.
    Returns:
        The info files.
    Raises:
        FileNotFoundError: no such dataset, or tables or point files of it are missing.
        ValueError: unknown version, a damaged table or info file, a split without a scene, or an
            info file of another version, number of sweeps or split.
    """
    root = Path(root)
    if splits is None and version not in OFFICIAL:
        raise ValueError(
            f'version is one of {", ".join(OFFICIAL)}, not {version!r}; others need --splits or '
            '--val-share'
        )
    chosen = OFFICIAL[version] if splits is None else splits
    files = {split: root / f'nuscenes_infos_{split}.pkl' for split in chosen}
    missing = []
    for split, path in files.items():
        if path.is_file():
            _check_same(path, version, max_sweeps, splits[split] if splits else None)
        else:
            missing.append(split)
    if missing:
        tables = _read_tables(root, version)
        for split in missing:
            _check_scenes(tables, split, chosen[split], root / version)
        check_files(
            root, _list_point_files(tables, [chosen[split] for split in missing], max_sweeps)
        )
        for split in missing:
            own = splits[split] if splits else None
            _write_split(tables, split, chosen[split], files[split], max_sweeps, own)
    return list(files.values())


def _check_same(path: Path, version: str, max_sweeps: int, scenes: list[str] | None) -> None:
    """Raise for an info file of another version, number of sweeps or split."""
    meta = read_info_file(path)['metainfo']
    found = meta.get('version'), meta.get('max_sweeps')
    if found != (version, max_sweeps):
        raise ValueError(
            f'{path}: written for {found[0]} with {found[1]} sweeps, not {version} with '
            f'{max_sweeps}: move or delete it'
        )
    if meta.get('scenes') != scenes:
        raise ValueError(
            f'{path}: written for other scenes than those of this split: move or delete it'
        )


def _check_scenes(tables: NuScenes, split: str, scenes: list[str], folder: Path) -> None:
    """Raise unless a split has a scene."""
    names = [scene['name'] for scene in tables.scene]
    if not set(names) & set(scenes):
        raise ValueError(
            f'{folder}: no scene of split {split}; none of its {len(names)} scenes '
            f'({name_some(names)}) has one of the names of that split. For scenes of your own name '
            'those of each split in a file, --splits FILE, or give a share for validation, '
            '--val-share 0.2'
        )


def _list_point_files(tables: NuScenes, splits: list[list[str]], max_sweeps: int) -> list[str]:
    """Paths of all point files that the info files of these splits will name."""
    names = {name for scenes in splits for name in scenes}
    paths = set()
    for scene in tables.scene:
        if scene['name'] not in names:
            continue
        for token in _list_samples(tables, scene):
            record = tables.get('sample_data', tables.get('sample', token)['data']['LIDAR_TOP'])
            paths.add(record['filename'])
            paths.update(sweep['filename'] for sweep in _list_sweeps(tables, record, max_sweeps))
    return sorted(paths)


def _read_tables(root: Path, version: str) -> NuScenes:
    """nuScenes' tables; an error names the table that is missing or damaged."""
    read_scenes(root, version)
    folder = root / version
    paths = [folder / f'{name}.json' for name in _TABLES]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f'{path}: this table is missing; unpack the archive of the {version} metadata again'
            )
    try:
        return NuScenes(version, str(root), verbose=False)
    except json.JSONDecodeError:
        for path in paths:
            _check_json(path, version)
        raise


def _check_json(path: Path, version: str) -> None:
    try:
        json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(
            f'{path}: damaged ({error}); unpack the archive of the {version} metadata again'
        ) from error


def _write_split(
    tables: NuScenes,
    split: str,
    names: list[str],
    path: Path,
    max_sweeps: int,
    own: list[str] | None,
) -> None:
    """Write the info file of one split; of one that is not official it names the scenes."""
    scenes = [scene for scene in tables.scene if scene['name'] in names]
    tokens = [token for scene in scenes for token in _list_samples(tables, scene)]
    frames: list[dict[str, Any]] = []
    for token in tqdm(tokens, path.name, unit='keyframe'):
        frames.append(_describe_frame(tables, token, len(frames), max_sweeps, split != 'test'))

    classes = NuScenesDataset.METAINFO['classes']
    meta = dict(
        categories={name: i for i, name in enumerate(classes)},
        dataset='nuscenes',
        version=tables.version,
        info_version='1.1',
        max_sweeps=max_sweeps,
    )
    if own is not None:
        meta['scenes'] = own
    atomic_write(path, pickle.dumps(dict(metainfo=meta, data_list=frames)))


def _list_samples(tables: NuScenes, scene: dict) -> list[str]:
    """Tokens of a scene's keyframes in order of time."""
    tokens = []
    token = scene['first_sample_token']
    while token:
        tokens.append(token)
        token = tables.get('sample', token)['next']
    return tokens


def _describe_frame(
    tables: NuScenes, token: str, index: int, max_sweeps: int, is_annotated: bool
) -> dict[str, Any]:
    """A keyframe's entry of the info file."""
    sample = tables.get('sample', token)
    record = tables.get('sample_data', sample['data']['LIDAR_TOP'])
    lidar2ego, ego2global = _read_poses(tables, record)
    frame = dict(
        sample_idx=index,
        token=token,
        timestamp=sample['timestamp'] / 1e6,
        ego2global=ego2global.tolist(),
        lidar_points=dict(
            num_pts_feats=5, lidar_path=Path(record['filename']).name, lidar2ego=lidar2ego.tolist()
        ),
    )
    sweeps = _describe_sweeps(tables, record, ego2global @ lidar2ego, max_sweeps)
    if sweeps:
        frame['lidar_sweeps'] = sweeps
    # the test split has no annotations, but mmdet3d's dataset needs the key
    frame['instances'] = (
        _describe_boxes(tables, sample, lidar2ego, ego2global) if is_annotated else []
    )
    return frame


def _describe_sweeps(
    tables: NuScenes, record: dict, lidar2global: np.ndarray, max_sweeps: int
) -> list[dict[str, Any]]:
    """Entries of the sweeps before a keyframe, the nearest first."""
    sweeps: list[dict[str, Any]] = []
    for sweep in _list_sweeps(tables, record, max_sweeps):
        lidar2ego, ego2global = _read_poses(tables, sweep)
        lidar2sensor = np.linalg.inv(ego2global @ lidar2ego) @ lidar2global
        sweeps.append(
            dict(
                timestamp=sweep['timestamp'] / 1e6,
                sample_data_token=sweep['token'],
                ego2global=ego2global.tolist(),
                lidar_points=dict(
                    lidar_path=sweep['filename'],
                    lidar2ego=lidar2ego.tolist(),
                    lidar2sensor=lidar2sensor.tolist(),
                ),
            )
        )
    return sweeps


def _list_sweeps(tables: NuScenes, record: dict, max_sweeps: int) -> list[dict]:
    """Records of the sweeps before a keyframe, the nearest first."""
    records: list[dict] = []
    while record['prev'] and len(records) < max_sweeps:
        record = tables.get('sample_data', record['prev'])
        records.append(record)
    return records


def _read_poses(tables: NuScenes, record: dict) -> tuple[np.ndarray, np.ndarray]:
    """[4, 4] lidar2ego and ego2global of a sample_data record."""
    sensor = tables.get('calibrated_sensor', record['calibrated_sensor_token'])
    vehicle = tables.get('ego_pose', record['ego_pose_token'])
    return _matrix(sensor), _matrix(vehicle)


def _matrix(pose: dict) -> np.ndarray:
    matrix = Quaternion(pose['rotation']).transformation_matrix
    matrix[:3, 3] = pose['translation']
    return matrix


def _describe_boxes(
    tables: NuScenes, sample: dict, lidar2ego: np.ndarray, ego2global: np.ndarray
) -> list[dict[str, Any]]:
    """Annotations in the LiDAR frame.

    bbox_3d is gravity center, length, width, height (m), yaw; an unknown velocity (m/s) is NaN.
    """
    _, boxes, _ = tables.get_sample_data(sample['data']['LIDAR_TOP'])
    to_lidar = np.linalg.inv(ego2global[:3, :3] @ lidar2ego[:3, :3])
    classes = NuScenesDataset.METAINFO['classes']
    instances = []
    for box in boxes:
        record = tables.get('sample_annotation', box.token)
        velocity = to_lidar @ np.array([*tables.box_velocity(box.token)[:2], 0.0])
        name = category_to_detection_name(record['category_name'])
        label = classes.index(name) if name else -1
        width, length, height = box.wlh
        yaw = box.orientation.yaw_pitch_roll[0]
        lidar_points = record['num_lidar_pts']
        radar_points = record['num_radar_pts']
        instances.append(
            dict(
                bbox_label=label,
                bbox_label_3d=label,
                bbox_3d=[*box.center.tolist(), length, width, height, yaw],
                bbox_3d_isvalid=lidar_points + radar_points > 0,
                velocity=velocity[:2].tolist(),
                num_lidar_pts=lidar_points,
                num_radar_pts=radar_points,
            )
        )
    return instances
