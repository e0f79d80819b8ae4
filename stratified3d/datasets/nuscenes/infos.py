"""Info files for nuScenes-format datasets, in mmdet3d's version 2, for LiDAR detection."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
from mmdet3d.datasets import NuScenesDataset
from nuscenes import NuScenes
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils import splits
from pyquaternion import Quaternion
from tqdm import tqdm

from stratified3d.datasets.io.info_files import read_info_file
from stratified3d.resumable import atomic_write

_SPLITS = {
    'v1.0-mini': dict(train=splits.mini_train, val=splits.mini_val),
    'v1.0-trainval': dict(train=splits.train, val=splits.val),
    'v1.0-test': dict(test=splits.test),
}
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


def create_infos(root: str | Path, version: str, max_sweeps: int = 10) -> list[Path]:
    """Write nuscenes_infos_<split>.pkl for every split of a version; one that is there already is
    kept.

    The content is that of mmdet3d's create_data.py (`info_version` 1.1) without its camera parts;
    where no sweep precedes a keyframe, `lidar_sweeps` is absent. Files appear whole or not at all.

    Args:
        root: the dataset: holds <version>/, samples/ and sweeps/.
        version: v1.0-mini, v1.0-trainval or v1.0-test.
        max_sweeps: stored per keyframe, the nearest first.
    Returns:
        The info files.
    Raises:
        FileNotFoundError: no such dataset, or a table of it is missing.
        ValueError: unknown version, a damaged table or info file, a split without a scene, or an
        info file of another
            version or number of sweeps.
    """
    root = Path(root)
    if version not in _SPLITS:
        raise ValueError(f'version is one of {", ".join(_SPLITS)}, not {version!r}')
    files = {split: root / f'nuscenes_infos_{split}.pkl' for split in _SPLITS[version]}
    for path in files.values():
        if path.is_file():
            _check_same(path, version, max_sweeps)
    missing = {split: path for split, path in files.items() if not path.is_file()}
    tables = _read_tables(root, version) if missing else None
    for split, path in missing.items():
        scenes = [s for s in tables.scene if s['name'] in _SPLITS[version][split]]
        if not scenes:
            raise ValueError(f'{root / version}: no scene of split {split}')
        tokens = [token for scene in scenes for token in _sample_tokens(tables, scene)]
        frames = [
            _frame(tables, token, i, max_sweeps, split != 'test')
            for i, token in enumerate(tqdm(tokens, f'{path.name}', unit='keyframe'))
        ]
        classes = NuScenesDataset.METAINFO['classes']
        categories = {name: i for i, name in enumerate(classes)}
        meta = dict(
            categories=categories,
            dataset='nuscenes',
            version=version,
            info_version='1.1',
            max_sweeps=max_sweeps,
        )
        atomic_write(path, pickle.dumps(dict(metainfo=meta, data_list=frames)))
    return list(files.values())


def _read_tables(root: Path, version: str) -> NuScenes:
    if not (root / version).is_dir():
        raise FileNotFoundError(
            f'{root / version}: no nuScenes tables there; `python tools/simulate.py {root}` makes '
            'a simulated set, the real one is unpacked so that its v1.0-* folders lie in the root'
        )
    paths = [root / version / f'{name}.json' for name in _TABLES]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f'{path}: this table is missing; unpack the archive of the {version} metadata again'
            )
    try:
        return NuScenes(version, str(root), verbose=False)
    except json.JSONDecodeError:
        for path in paths:
            try:
                json.loads(path.read_bytes())
            except json.JSONDecodeError as error:
                raise ValueError(
                    f'{path}: damaged ({error}); unpack the archive of the {version} metadata again'
                ) from error
        raise


def _check_same(path: Path, version: str, max_sweeps: int) -> None:
    meta = read_info_file(path)['metainfo']
    found = meta.get('version'), meta.get('max_sweeps')
    if found != (version, max_sweeps):
        raise ValueError(
            f'{path}: written for {found[0]} with {found[1]} sweeps, not {version} with {max_sweeps}: '
            'move or delete it'
        )


def _sample_tokens(tables: NuScenes, scene: dict) -> list[str]:
    tokens, token = [], scene['first_sample_token']
    while token:
        tokens.append(token)
        token = tables.get('sample', token)['next']
    return tokens


def _frame(tables: NuScenes, token: str, index: int, max_sweeps: int, is_annotated: bool) -> dict:
    sample = tables.get('sample', token)
    record = tables.get('sample_data', sample['data']['LIDAR_TOP'])
    lidar2ego, ego2global = _poses(tables, record)
    frame = dict(
        sample_idx=index,
        token=token,
        timestamp=sample['timestamp'] / 1e6,
        ego2global=ego2global.tolist(),
        lidar_points=dict(
            num_pts_feats=5, lidar_path=Path(record['filename']).name, lidar2ego=lidar2ego.tolist()
        ),
    )
    sweeps, lidar2global = [], ego2global @ lidar2ego
    while record['prev'] and len(sweeps) < max_sweeps:
        record = tables.get('sample_data', record['prev'])
        sweep2ego, sweep_ego2global = _poses(tables, record)
        lidar2sensor = np.linalg.inv(sweep_ego2global @ sweep2ego) @ lidar2global
        sweeps.append(
            dict(
                timestamp=record['timestamp'] / 1e6,
                sample_data_token=record['token'],
                ego2global=sweep_ego2global.tolist(),
                lidar_points=dict(
                    lidar_path=record['filename'],
                    lidar2ego=sweep2ego.tolist(),
                    lidar2sensor=lidar2sensor.tolist(),
                ),
            )
        )
    if sweeps:
        frame['lidar_sweeps'] = sweeps
    # the test split has none; mmdet3d's dataset asks for the key all the same
    frame['instances'] = _instances(tables, sample, lidar2ego, ego2global) if is_annotated else []
    return frame


def _poses(tables: NuScenes, record: dict) -> tuple[np.ndarray, np.ndarray]:
    """4 x 4 lidar2ego and ego2global of a sample_data record."""
    return tuple(
        _matrix(tables.get(table, record[f'{table}_token']))
        for table in ('calibrated_sensor', 'ego_pose')
    )


def _matrix(pose: dict) -> np.ndarray:
    matrix = Quaternion(pose['rotation']).transformation_matrix
    matrix[:3, 3] = pose['translation']
    return matrix


def _instances(
    tables: NuScenes, sample: dict, lidar2ego: np.ndarray, ego2global: np.ndarray
) -> list[dict]:
    """Annotations in the LiDAR frame: gravity center, length, width, height, yaw, velocity (m/s,
    NaN if unknown)."""
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
        points, returns = record['num_lidar_pts'], record['num_radar_pts']
        instances.append(
            dict(
                bbox_label=label,
                bbox_label_3d=label,
                bbox_3d=[
                    *box.center.tolist(),
                    length,
                    width,
                    height,
                    box.orientation.yaw_pitch_roll[0],
                ],
                bbox_3d_isvalid=points + returns > 0,
                velocity=velocity[:2].tolist(),
                num_lidar_pts=points,
                num_radar_pts=returns,
            )
        )
    return instances
