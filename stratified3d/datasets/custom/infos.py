"""A LiDAR-only dataset of one's own, brought to points and info files that mmdet3d's scripts train
and test with."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmdet3d.structures.ops.box_np_ops import points_in_rbbox
from tqdm import tqdm

from stratified3d.datasets.custom.box_files import NamedBox
from stratified3d.datasets.io.point_files import SUFFIXES, read_points
from stratified3d.resumable import acquire_folder, atomic_write


class Conversion(NamedTuple):
    """What came out of a split: the info file, its frames, boxes by class, those of them that hold
    no point, mean size [3] by class, and the box that holds all but the outermost hundredth of
    points: [6] x_min .. z_max."""

    path: Path
    frames: int
    boxes: dict[str, int]
    empty: int
    sizes: dict[str, np.ndarray]
    extent: np.ndarray


def list_frames(folder: str | Path) -> dict[str, Path]:
    """Point files of a folder by frame, the file's name up to its first dot.

    Raises:
        FileNotFoundError: no such folder, or no point file in it. ValueError: two files of one
        frame.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'there is no folder {folder}')
    frames: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in SUFFIXES:
            name = path.name.split('.')[0]
            if name in frames:
                raise ValueError(f'{frames[name]} and {path.name} are both of frame {name}')
            frames[name] = path
    if not frames:
        raise FileNotFoundError(f'{folder} holds no {", ".join(SUFFIXES)} file')
    return frames


def create_custom_infos(
    frames: dict[str, Path],
    boxes: dict[str, list[NamedBox]] | None,
    out: str | Path,
    split: str,
    *,
    chosen: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    intensity_max: float = 255.0,
    load_dim: int | None = None,
) -> Conversion:
    """Write points and the info file of one split.

    points/<frame>.bin hold x, y, z, intensity (0 to 255) and dt (0), float32; those that are there
    already are kept. infos_<split>.pkl is an mmdet3d info file of version 2 for the dataset class
    `LidarFrames`.

    Args:
        frames: {frame: point file} of the whole set.
        boxes: {frame: boxes} of the whole set; a frame that is absent has no box; None: there are
        no annotations.
        out: the new dataset's root.
        split: name of the info file: train, val, ...
        chosen: the split's frames; None takes all.
        classes: boxes of others are left out; None keeps all.
        intensity_max: full scale of the intensity.
        load_dim: columns of .bin files, see `read_points`.
    Returns:
        Conversion.
    Raises:
        FileNotFoundError, ValueError: unreadable points, boxes of no frame, classes without a box,
        intensities beyond
            full scale, an `out` that was made with other settings.
    """
    out = Path(out)
    chosen = sorted(frames if chosen is None else set(chosen))
    if not chosen:
        raise ValueError(f'no frame is chosen for the split {split}')
    for title, names in (('have boxes', boxes or ()), ('are chosen', chosen)):
        if unknown := set(names) - frames.keys():
            raise ValueError(
                f'{len(unknown)} frames {title} but have no points: {", ".join(sorted(unknown)[:5])}'
            )
    found = {box.name for row in (boxes or {}).values() for box in row}
    if boxes is not None and (missing := sorted(set(classes or ()) - found)):
        raise ValueError(
            f'no box is named {", ".join(missing)}; there are {", ".join(sorted(found))}'
        )
    classes = sorted(found) if classes is None else list(classes)
    settings = dict(intensity_max=intensity_max, load_dim=load_dim)
    acquire_folder(out, settings, 'conversion.json')
    (out / 'points').mkdir(exist_ok=True)
    infos, extents = [], []
    for i, frame in enumerate(tqdm(chosen, f'infos_{split}.pkl', unit='frame')):
        points = _convert_points(
            frames[frame], out / 'points' / f'{frame}.bin', intensity_max, load_dim
        )
        kept = [box for box in (boxes or {}).get(frame, []) if box.name in classes]
        infos.append(
            dict(
                sample_idx=i,
                token=frame,
                timestamp=0.0,
                instances=_instances(points, kept, classes),
                lidar_points=dict(num_pts_feats=5, lidar_path=f'{frame}.bin'),
            )
        )
        if len(points):
            extents.append(np.percentile(points[:, :3], (0.5, 99.5), 0).flatten())
    path = out / f'infos_{split}.pkl'
    meta = dict(
        dataset='custom',
        info_version='1.1',
        categories={name: i for i, name in enumerate(classes)},
        is_annotated=boxes is not None,
    )
    atomic_write(path, pickle.dumps(dict(metainfo=meta, data_list=infos)))
    rows = [instance for info in infos for instance in info['instances']]
    by_class = {name: [row for row in rows if row['name'] == name] for name in classes}
    extents = np.array(extents).reshape(-1, 6)
    return Conversion(
        path,
        len(infos),
        {name: len(mine) for name, mine in by_class.items()},
        sum(row['num_lidar_pts'] == 0 for row in rows),
        {
            name: np.mean([row['bbox_3d'][3:6] for row in mine], 0)
            for name, mine in by_class.items()
            if mine
        },
        np.concatenate([extents[:, :3].min(0), extents[:, 3:].max(0)])
        if len(extents)
        else np.zeros(6),
    )


def _convert_points(
    source: Path, target: Path, intensity_max: float, load_dim: int | None
) -> np.ndarray:
    if target.is_file() and target.stat().st_mtime_ns >= source.stat().st_mtime_ns:
        return np.fromfile(target, np.float32).reshape(-1, 5)
    points = read_points(source, load_dim)
    points = points[np.isfinite(points).all(1)]
    largest, smallest = (float(f(points[:, 3])) if len(points) else 0.0 for f in (np.max, np.min))
    if largest > intensity_max * 1.001 or smallest < 0:
        raise ValueError(
            f'{source}: intensities run from {smallest:g} to {largest:g}, not 0 to {intensity_max:g}: '
            'give their full scale as --intensity-max, and the columns of .bin files as --load-dim'
        )
    points = np.hstack(
        [points[:, :3], points[:, 3:] * (255 / intensity_max), np.zeros((len(points), 1))]
    )
    points = points.astype(np.float32)
    atomic_write(target, points.tobytes())
    return points


def _instances(points: np.ndarray, boxes: list[NamedBox], classes: Sequence[str]) -> list[dict]:
    if not boxes:
        return []
    numbers = np.array([box.numbers for box in boxes])
    counts = points_in_rbbox(points[:, :3].astype(np.float64), numbers[:, :7]).sum(0)
    return [
        dict(
            name=box.name,
            bbox_label=classes.index(box.name),
            bbox_label_3d=classes.index(box.name),
            bbox_3d=list(box.numbers[:7]),
            velocity=list(box.numbers[7:]),
            num_lidar_pts=int(count),
            bbox_3d_isvalid=bool(count),
        )
        for box, count in zip(boxes, counts)
    ]
