"""What `stratified3d visualize` and `detect --draw` draw: frames of a dataset or of point files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mmdet3d.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tqdm import tqdm

from stratified3d.apis import Detections, detect, init_detector, inspect_strata
from stratified3d.datasets.io.point_files import frame_name, read_points
from stratified3d.resumable import describe_error
from stratified3d.sensor_options import read_sensor_options
from stratified3d.sensors import AXES, FrameChange, Sensor, model_sensor
from stratified3d.visualization.drawing import Drawing
from stratified3d.visualization.perspective import Camera
from stratified3d.visualization.pictures import PictureFolder
from stratified3d.visualization.window import KEYS, Viewer

if TYPE_CHECKING:
    from mmdet3d.models.detectors import Base3DDetector

_COUNT = 4  # frames of a dataset
# index of a frame -> points [P, 5] and annotated boxes [K, 7 or 9], None where they are unknown
Load = Callable[[int], tuple[np.ndarray, np.ndarray | None]]


def list_frames(args: argparse.Namespace, config: Config) -> tuple[list[str], Load]:
    """Names of the frames to draw, and a function that loads the one of an index."""
    if args.files:
        return name_pictures(args.files), lambda i: (
            read_points(args.files[i], args.load_dim),
            None,
        )

    with DefaultScope.overwrite_default_scope('mmdet3d'):
        dataset = DATASETS.build(config.test_dataloader.dataset)
    chosen = choose_frames(args, len(dataset))

    def load(i: int) -> tuple[np.ndarray, np.ndarray | None]:
        info = dataset.get_data_info(chosen[i])
        sample = dataset[chosen[i]]
        return sample['inputs']['points'].numpy(), known_boxes(info.get('eval_ann_info'))

    return [f'frame_{index:04d}' for index in chosen], load


def name_pictures(paths: Sequence[Path]) -> list[str]:
    """Names of the frames in point files, numbered where one comes again."""
    names: dict[str, None] = {}
    for path in paths:
        name = frame_name(path)
        number = 1
        while name in names:
            number += 1
            name = f'{frame_name(path)}-{number}'
        names[name] = None
    return list(names)


def known_boxes(annotations: dict | None) -> np.ndarray | None:
    """Annotated boxes of the config's classes."""
    if annotations is None:
        return None
    is_known = annotations['gt_labels_3d'] >= 0
    return annotations['gt_bboxes_3d'].tensor.numpy()[is_known]


def choose_frames(args: argparse.Namespace, total: int) -> list[int]:
    """Indices of --index, or --count of them, evenly spread.

    Raises:
        ValueError: there is no such frame.
    """
    if args.index:
        chosen = [index for indices in args.index for index in indices]
    else:
        count = min(args.count or _COUNT, total)
        chosen = [(2 * k + 1) * total // (2 * count) for k in range(count)]

    if not chosen or max(chosen) >= total:
        raise ValueError(f'--index: the dataset has frames 0 to {total - 1}, not {chosen}')
    return chosen


def make_drawing(
    args: argparse.Namespace,
    model: Base3DDetector,
    name: str,
    points: np.ndarray,
    gt_boxes: np.ndarray | None,
    sensor: Sensor | None,
) -> Drawing:
    """Detect the objects of a frame, in the frame of its points."""
    found = keep_above(detect(model, points, sensor), args.score)
    strata = None
    if args.strata is not None:
        strata = inspect_strata(model, points, args.strata, sensor=sensor)
    title = f'{name}: {len(found.scores)} predictions with score \u2265 {args.score}'
    return Drawing(points, *found, gt_boxes, title, strata)


def keep_above(found: Detections, score: float) -> Detections:
    """Detections of a score or above."""
    is_kept = found.scores >= score
    names = [name for name, kept in zip(found.names, is_kept) if kept]
    return Detections(found.boxes[is_kept], found.scores[is_kept], names)


def visible_area(config: Config, sensor: Sensor | None) -> list[float]:
    """x_min, y_min, x_max, y_max of the model's range, in the frame of the points."""
    limits = np.array(config.model.point_cloud_range)
    model = model_sensor(config)
    limits = FrameChange(sensor or model, model).limits_to_file(limits)
    return [float(limits[i]) for i in (0, 1, 3, 4)]


def camera_behind(config: Config, sensor: Sensor | None) -> Camera:
    """A camera that looks where the frame of the points has its front."""
    return Camera(azimuth=90.0 * AXES.index((sensor or model_sensor(config)).forward))


def write_pictures(
    args: argparse.Namespace,
    area: list[float],
    camera: Camera,
    names: list[str],
    draw: Callable[[int], Drawing],
) -> None:
    """Write pictures and videos, and print where they are.

    Raises:
        ValueError: some of several frames could not be drawn; they were named on standard error.
    """
    videos, num_failed = [], 0
    with PictureFolder(args.out, area, camera, args.color, not args.no_perspective) as folder:
        for i, name in enumerate(tqdm(names, 'drawing', unit='frame')):
            try:
                folder.write(name, draw(i), args.token)
            except (OSError, ValueError, RuntimeError) as error:
                if len(names) == 1:
                    raise
                num_failed += 1
                tqdm.write(f'{name}: {describe_error(error)}', file=sys.stderr)
        if args.video:
            videos = folder.write_videos(args.video, args.rate)

    for kind, paths in folder.written.items():
        print(f'{args.out / kind}: {len(paths)} pictures')
    for path in videos:
        print(path)
    if num_failed:
        raise ValueError(f'{num_failed} of {len(names)} frames could not be drawn, see above')


def open_pictures(args: argparse.Namespace, config: Config, sensor: Sensor | None) -> PictureFolder:
    """The folder for pictures of what `stratified3d detect` finds."""
    area = visible_area(config, sensor)
    camera = camera_behind(config, sensor)
    return PictureFolder(args.out, area, camera, 'height', not args.no_perspective)


def visualize(args: argparse.Namespace) -> None:
    """Draw what the options of `stratified3d visualize` ask for.

    Raises:
        OSError, ValueError, RuntimeError: a file or a setting that cannot be.
    """
    config = Config.fromfile(args.config)
    config.merge_from_dict(args.cfg_options or {})
    model = init_detector(config, args.checkpoint, args.device)
    names, load = list_frames(args, config)
    own = model_sensor(config)
    sensor = read_sensor_options(args, own)
    if sensor and args.dataset and sensor != replace(own, drop_own=sensor.drop_own):
        raise ValueError("--sensor is for point files; a dataset is in the model's own frame")

    def draw(i: int) -> Drawing:
        return make_drawing(args, model, names[i], *load(i), sensor)

    camera = Camera(*args.camera) if args.camera else camera_behind(config, sensor)
    if args.show:
        for key, meaning in KEYS.items():
            print(f'  {key}  {meaning}')
        Viewer(draw, len(names), camera).run()
    else:
        write_pictures(args, visible_area(config, sensor), camera, names, draw)
