#!/usr/bin/env python
"""Draw detections of a config's dataset or of point files: from above, in perspective, as a video,
in a window."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

# configs may import projects.<name>, wherever the command was started
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stratified3d.commands import begin_command

begin_command('visualize.py')

import numpy as np
from mmdet3d.registry import DATASETS
from mmengine.config import Config, DictAction
from mmengine.registry import DefaultScope
from tqdm import tqdm

from stratified3d.apis import detect, init_detector, inspect_strata
from stratified3d.datasets.io.point_files import read_points
from stratified3d.sensor_options import add_sensor_options, read_sensor_options
from stratified3d.sensors import FrameChange, Sensor, model_sensor
from stratified3d.visualization.drawing import COLORINGS, Drawing
from stratified3d.visualization.perspective import Camera
from stratified3d.visualization.pictures import PictureFolder
from stratified3d.visualization.window import KEYS, Viewer

if TYPE_CHECKING:
    from mmdet3d.models.detectors import Base3DDetector

# index of a frame -> points [P, 5] and annotated boxes [K, 7 or 9], None where they are unknown
Load = Callable[[int], tuple[np.ndarray, np.ndarray | None]]

EXAMPLES = """examples:
  python tools/visualize.py CONFIG CHECKPOINT --dataset --out pictures            four frames
  python tools/visualize.py CONFIG CHECKPOINT --dataset --index 0-19 --video mp4  a scene as a video
  python tools/visualize.py CONFIG CHECKPOINT sweep.pcd.bin --color intensity     a file of points
  python tools/visualize.py CONFIG CHECKPOINT 000008.bin --sensor kitti           another sensor's
  python tools/visualize.py CONFIG CHECKPOINT --dataset --strata 1 --show         strata tokens
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument(
        'files',
        nargs='*',
        type=Path,
        metavar='FILE',
        help='point files: .bin, .npy, .npz, .pcd, .ply, .txt, .csv, .feather, .las, .laz',
    )
    parser.add_argument(
        '--load-dim',
        type=int,
        help='columns of .bin files (default: 4, 5 for .pcd.bin, or what the numbers show)',
    )
    parser.add_argument(
        '--dataset', action='store_true', help="frames of the config's test set, with ground truth"
    )
    parser.add_argument(
        '--index', nargs='+', type=_indices, metavar='I', help='which: numbers, or ranges like 0-9'
    )
    parser.add_argument(
        '--count', type=int, default=4, help='without --index: so many, evenly spread (default: 4)'
    )
    add_sensor_options(parser)
    add_drawing_options(parser)
    parser.add_argument('--device', help='default: the GPU where there is one')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='overrides of the config, key=value'
    )

    args = parser.parse_intermixed_args()
    if args.dataset == bool(args.files):
        parser.error('give either --dataset or point files')
    if args.rate <= 0:
        parser.error(f'--rate is above 0, not {args.rate}')
    if args.count < 1:
        parser.error(f'--count is at least 1, not {args.count}')
    if len(args.camera) > len(Camera._fields):
        parser.error(f'--camera is at most four numbers, not {len(args.camera)}')
    return args


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    """Options of what is drawn and how."""
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/pictures'), help='folder of the pictures'
    )
    parser.add_argument(
        '--score', type=float, default=0.3, help='predictions below are not drawn (default: 0.3)'
    )
    parser.add_argument(
        '--color', choices=COLORINGS, default='height', help='of the points (default: height)'
    )
    parser.add_argument(
        '--camera',
        nargs='+',
        type=float,
        default=[],
        metavar='N',
        help='of the perspective: azimuth and elevation (degrees), distance, meters ahead '
        '(default: 90 36 62 12; azimuth 0: along x)',
    )
    parser.add_argument(
        '--strata',
        type=int,
        nargs='?',
        const=0,
        metavar='STAGE',
        help='draw the strata tokens of the last block of a stage (default: stage 0)',
    )
    parser.add_argument(
        '--token', type=int, help='which token the strata map shows (default: the most read one)'
    )
    parser.add_argument(
        '--no-perspective', action='store_true', help='only from above: needs no Open3D'
    )
    parser.add_argument(
        '--video', nargs='?', const='mp4', choices=('mp4', 'gif'), help='join the pictures'
    )
    parser.add_argument(
        '--rate', type=float, default=2.0, help='pictures per second of the video (default: 2)'
    )
    parser.add_argument(
        '--show', action='store_true', help='open a window instead; its keys are printed'
    )


def _indices(text: str) -> list[int]:
    first, _, last = text.partition('-')
    return list(range(int(first), int(last or first) + 1))


def list_frames(args: argparse.Namespace, config: Config) -> tuple[list[str], Load]:
    """Names of the frames to draw, and a function that loads the one of an index."""
    if args.files:
        names = [path.name.split('.')[0] for path in args.files]
        return names, lambda i: (read_points(args.files[i], args.load_dim), None)

    with DefaultScope.overwrite_default_scope('mmdet3d'):
        dataset = DATASETS.build(config.test_dataloader.dataset)
    chosen = choose_frames(args, len(dataset))

    def load(i: int) -> tuple[np.ndarray, np.ndarray | None]:
        info = dataset.get_data_info(chosen[i])
        sample = dataset[chosen[i]]
        return sample['inputs']['points'].numpy(), known_boxes(info.get('eval_ann_info'))

    return [f'frame_{index:04d}' for index in chosen], load


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
        count = min(args.count, total)
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
    found = detect(model, points, sensor)
    is_shown = found.scores >= args.score
    strata = None
    if args.strata is not None:
        strata = inspect_strata(model, points, args.strata, sensor=sensor)
    return Drawing(
        points,
        found.boxes[is_shown],
        found.scores[is_shown],
        [name for name, shown in zip(found.names, is_shown) if shown],
        gt_boxes,
        f'{name}: {is_shown.sum()} predictions with score \u2265 {args.score}',
        strata,
    )


def visible_area(config: Config, sensor: Sensor | None) -> list[float]:
    """x_min, y_min, x_max, y_max of the model's range, in the frame of the points."""
    limits = np.array(config.model.point_cloud_range)
    model = model_sensor(config)
    limits = FrameChange(sensor or model, model).limits_to_file(limits)
    return [float(limits[i]) for i in (0, 1, 3, 4)]


def write_pictures(
    args: argparse.Namespace, area: list[float], names: list[str], draw: Callable[[int], Drawing]
) -> None:
    """Write pictures and videos, and print where they are."""
    camera = Camera(*args.camera)
    videos = []
    with PictureFolder(args.out, area, camera, args.color, not args.no_perspective) as folder:
        for i, name in enumerate(tqdm(names, 'drawing', unit='frame')):
            folder.write(name, draw(i), args.token)
        if args.video:
            videos = folder.write_videos(args.video, args.rate)

    for kind, paths in folder.written.items():
        print(f'{args.out / kind}: {len(paths)} pictures')
    for path in videos:
        print(path)


def main() -> int:
    args = parse_args()
    try:
        config = Config.fromfile(args.config)
        config.merge_from_dict(args.cfg_options or {})
        model = init_detector(config, args.checkpoint, args.device)
        names, load = list_frames(args, config)
        sensor = read_sensor_options(args, model_sensor(config))
        if sensor and args.dataset:
            raise ValueError("--sensor is for point files; a dataset is in the model's own frame")

        def draw(i: int) -> Drawing:
            return make_drawing(args, model, names[i], *load(i), sensor)

        if args.show:
            for key, meaning in KEYS.items():
                print(f'  {key}  {meaning}')
            Viewer(draw, len(names), Camera(*args.camera)).run()
        else:
            write_pictures(args, visible_area(config, sensor), names, draw)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f'visualize.py: {error}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
