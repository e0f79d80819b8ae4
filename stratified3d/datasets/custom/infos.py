"""Points and info files of a LiDAR-only dataset of one's own, for mmdet3d's scripts."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmdet3d.structures.ops.box_np_ops import points_in_rbbox
from tqdm import tqdm

from stratified3d.datasets.custom.box_files import NamedBox
from stratified3d.datasets.io.point_files import SUFFIXES, frame_name, read_points
from stratified3d.ground import find_ground
from stratified3d.resumable import acquire_folder, atomic_write
from stratified3d.sensors import MODEL_SENSOR, SENSORS, FrameChange, Sensor, full_scale

_MODEL = SENSORS[MODEL_SENSOR]
_MOST_BRIGHT = 0.1  # share of points beyond full scale, which end at it
_LONG = 1.2  # m; of what is shorter, either side may be the longer one
_TRIED = 10  # frames in which an unknown sensor is looked at


class Conversion(NamedTuple):
    """Result of converting a split, with numbers that show mistakes of units and axes.

    Attributes:
        path: the info file.
        frames: number of frames.
        boxes: number of boxes by class.
        empty: number of boxes without a point.
        sizes: mean size [3] by class; absent for a class without boxes.
        extent: [6] x_min .. z_max of the box that contains all but the outermost hundredth of the
            points of every frame.
        sideways: classes all of whose boxes are wider (dy) than long (dx), people and the like
            left out.
    """

    path: Path
    frames: int
    boxes: dict[str, int]
    empty: int
    sizes: dict[str, np.ndarray]
    extent: np.ndarray
    sideways: list[str]


def list_frames(folder: str | Path) -> dict[str, Path]:
    """Point files of a folder by frame, see `frame_name`.

    Texts (.txt, .csv) beside point files of other kinds are left out: they are labels or notes.

    Raises:
        FileNotFoundError: no such folder, or no point file in it.
        ValueError: two files of one frame.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'there is no folder {folder}')
    frames: dict[str, Path] = {}
    for path in _point_files(folder):
        name = frame_name(path)
        if name in frames:
            raise ValueError(
                f'{frames[name]} and {path.name} are both of frame {name}: rename one of them, or '
                'move it to another folder'
            )
        frames[name] = path
    if not frames:
        raise FileNotFoundError(f'{folder} contains no {", ".join(SUFFIXES)} file')
    return frames


def _point_files(folder: Path) -> list[Path]:
    """Point files of a folder; texts only where there is nothing else."""
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    others = [path for path in paths if path.suffix.lower() not in ('.txt', '.csv')]
    return others or paths


def create_custom_infos(
    frames: dict[str, Path],
    boxes: dict[str, list[NamedBox]] | None,
    out: str | Path,
    split: str,
    *,
    chosen: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    sensor: Sensor = _MODEL,
    load_dim: int | None = None,
) -> Conversion:
    """Write points and the info file of one split.

    points/<frame>.bin contain x, y, z, intensity (0 to 255) and dt (0), float32; existing ones are
    kept. infos_<split>.pkl is an mmdet3d info file of version 2 for the dataset class
    `LidarFrames`. Points and boxes are in the frame of nuScenes' sensor.

    Args:
        frames: {frame: point file} of the whole dataset.
        boxes: {frame: boxes} of the whole dataset; a frame that is absent has no box. None: there
            are no annotations.
        out: root of the new dataset.
        split: name of the info file: train, val, ...
        chosen: frames of the split; None takes all.
        classes: boxes of other classes are left out; None keeps all.
        sensor: of the files and the boxes; with nuScenes', they stay in their own frame.
        load_dim: columns of .bin files, see `read_points`.
    Returns:
        Conversion.
    Raises:
        FileNotFoundError, ValueError: unreadable points, boxes of an unknown frame, classes without
            a box, a sensor of unknown height or full scale, intensities beyond it, an `out` that
            was made with other settings.
    """
    out = Path(out)
    chosen = _choose_frames(frames, boxes, split, chosen)
    classes = _choose_classes(boxes, classes)
    _check_known_sensor(frames, sensor, load_dim)
    change = FrameChange(sensor, _MODEL)
    settings: dict[str, Any] = dict(intensity_max=sensor.intensity_max, load_dim=load_dim)
    if change.quarter_turns or change.lift:
        settings.update(forward=sensor.forward, height=sensor.height)
    acquire_folder(out, settings, 'conversion.json')
    (out / 'points').mkdir(exist_ok=True)

    infos: list[dict[str, Any]] = []
    extents = []
    for frame in tqdm(chosen, f'infos_{split}.pkl', unit='frame'):
        target = out / 'points' / f'{frame}.bin'
        points = _convert_points(frames[frame], target, change, load_dim)
        annotated = boxes.get(frame, []) if boxes is not None else []
        kept = [_convert_box(box, change) for box in annotated if box.name in classes]
        infos.append(_describe_frame(len(infos), frame, points, kept, classes))
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
    return _summarize(path, infos, classes, extents)


def _choose_frames(
    frames: dict[str, Path],
    boxes: dict[str, list[NamedBox]] | None,
    split: str,
    chosen: Sequence[str] | None,
) -> list[str]:
    """Frames of the split in order, all of which have points."""
    names = sorted(frames if chosen is None else set(chosen))
    if not names:
        raise ValueError(f'no frame is chosen for the split {split}')
    _check_known('have boxes', boxes or (), frames)
    _check_known('are chosen', names, frames)
    return names


def _check_known(title: str, names: Sequence[str] | dict[str, Any], frames: dict) -> None:
    unknown = sorted(set(names) - frames.keys())
    if unknown:
        raise ValueError(
            f'{len(unknown)} frames {title} but have no points: {", ".join(unknown[:5])}'
        )


def _choose_classes(
    boxes: dict[str, list[NamedBox]] | None, classes: Sequence[str] | None
) -> list[str]:
    """Classes of the dataset, each of which has a box where there are annotations."""
    found = {box.name for row in (boxes or {}).values() for box in row}
    if classes is None:
        return sorted(found)
    missing = sorted(set(classes) - found)
    if boxes is not None and missing:
        raise ValueError(
            f'no box is named {", ".join(missing)}; there are {", ".join(sorted(found))}'
        )
    return list(classes)


def _check_known_sensor(frames: dict[str, Path], sensor: Sensor, load_dim: int | None) -> None:
    """Raise ValueError for a sensor that leaves something open, with what some frames say.

    All frames of a dataset need the same, whichever frames a split chooses.
    """
    if sensor.height is not None and sensor.intensity_max is not None:
        return
    step = max(len(frames) // _TRIED, 1)
    names = sorted(frames)[::step]
    clouds = [read_points(frames[name], load_dim) for name in names]
    raise ValueError(
        'a dataset needs one height and one full scale for all of its frames; by '
        f'{len(names)} of them, give {_suggest_options(clouds, sensor)}'
    )


def _suggest_options(clouds: list[np.ndarray], sensor: Sensor) -> str:
    """Options for what a sensor leaves open, with values that fit the clouds [P, 4]."""
    options = []
    if sensor.height is None:
        grounds = [ground for ground, _ in map(find_ground, clouds) if ground]
        heights = [-ground.height for ground in grounds]
        value = f'{np.median(heights):.2f}' if heights else 'M'
        options.append(f'--sensor-height {value}')
    if sensor.intensity_max is None:
        scales = [full_scale(cloud[:, 3]) for cloud in clouds]
        options.append(f'--intensity-max {max(scales):g}')
    return ' '.join(options)


def _convert_points(
    source: Path, target: Path, change: FrameChange, load_dim: int | None
) -> np.ndarray:
    """Points [P, 5] of a frame; written to the target unless that is newer than the source."""
    if target.is_file() and target.stat().st_mtime_ns >= source.stat().st_mtime_ns:
        return np.fromfile(target, np.float32).reshape(-1, 5)
    points = read_points(source, load_dim)
    points = points[np.isfinite(points).all(1)]
    _check_intensity(source, points[:, 3], change.sensor.intensity_max)

    points = change.points_to_model(points)
    age = np.zeros((len(points), 1))
    points = np.hstack([points, age]).astype(np.float32)
    atomic_write(target, points.tobytes())
    return points


def _convert_box(box: NamedBox, change: FrameChange) -> NamedBox:
    (numbers,) = change.boxes_to_model(np.array([box.numbers])).tolist()
    return NamedBox(box.name, tuple(numbers))


def _check_intensity(source: Path, intensity: np.ndarray, intensity_max: float | None) -> None:
    """Raise ValueError for intensities beyond the full scale, unless they are as few as
    retroreflectors."""
    if not len(intensity) or intensity_max is None:
        return
    largest = float(intensity.max())
    smallest = float(intensity.min())
    is_bright = (intensity > intensity_max * 1.001).mean() > _MOST_BRIGHT
    if is_bright or smallest < 0:
        raise ValueError(
            f'{source}: intensities run from {smallest:g} to {largest:g}, not 0 to '
            f'{intensity_max:g}: give their full scale as --intensity-max, and the columns of .bin '
            'files as --load-dim'
        )


def _describe_frame(
    index: int, frame: str, points: np.ndarray, boxes: list[NamedBox], classes: Sequence[str]
) -> dict[str, Any]:
    """A frame's entry of the info file."""
    return dict(
        sample_idx=index,
        token=frame,
        timestamp=0.0,
        instances=_describe_boxes(points, boxes, classes),
        lidar_points=dict(num_pts_feats=5, lidar_path=f'{frame}.bin'),
    )


def _describe_boxes(
    points: np.ndarray, boxes: list[NamedBox], classes: Sequence[str]
) -> list[dict[str, Any]]:
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


def _summarize(
    path: Path, infos: list[dict[str, Any]], classes: Sequence[str], extents: list[np.ndarray]
) -> Conversion:
    """Numbers of the split that was written."""
    boxes_of_class: dict[str, list[list[float]]] = {name: [] for name in classes}
    empty = 0
    for info in infos:
        for instance in info['instances']:
            boxes_of_class[instance['name']].append(instance['bbox_3d'])
            empty += instance['num_lidar_pts'] == 0

    counts = {}
    sizes = {}
    sideways = []
    for name, boxes in boxes_of_class.items():
        counts[name] = len(boxes)
        if boxes:
            sizes[name] = np.mean([box[3:6] for box in boxes], 0)
            is_long = sizes[name][:2].max() > _LONG
            if is_long and all(box[3] < box[4] for box in boxes):
                sideways.append(name)

    extent = np.zeros(6)
    if extents:
        bounds = np.array(extents)  # [frames, 6]
        extent[:3] = bounds[:, :3].min(0)
        extent[3:] = bounds[:, 3:].max(0)
    return Conversion(path, len(infos), counts, empty, sizes, extent, sideways)
