#!/usr/bin/env python
"""Draw detections of a config's dataset or of point files: from above, in perspective, as a video,
in a window."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mmdet3d.registry import DATASETS
from mmengine.config import Config, DictAction
from mmengine.registry import DefaultScope
from tqdm import tqdm

# configs may import projects.<name>, wherever the command was started
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stratified3d.apis import detect, init_detector, inspect_strata
from stratified3d.datasets.io.point_files import read_points
from stratified3d.visualization.drawing import COLORINGS, Drawing, StrataWeights
from stratified3d.visualization.perspective import Camera
from stratified3d.visualization.pictures import PictureFolder
from stratified3d.visualization.window import KEYS, Viewer

EXAMPLES = """examples:
  python tools/visualize.py CONFIG CHECKPOINT --dataset --out pictures               four frames with their truth
  python tools/visualize.py CONFIG CHECKPOINT --dataset --index 0-19 --video mp4     a scene as a video
  python tools/visualize.py CONFIG CHECKPOINT sweep.pcd.bin --color intensity       a file of points
  python tools/visualize.py CONFIG CHECKPOINT --dataset --strata 1 --show            strata tokens, in a window
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument(
        'files', nargs='*', type=Path, metavar='FILE', help='.bin, .npy, .pcd or .ply point files'
    )
    parser.add_argument(
        '--dataset', action='store_true', help="frames of the config's test set, with their truth"
    )
    parser.add_argument(
        '--index', nargs='+', type=_indices, metavar='I', help='which: numbers, or ranges like 0-9'
    )
    parser.add_argument(
        '--count', type=int, default=4, help='without --index: so many, evenly spread (default: 4)'
    )
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
        help='of the perspective: azimuth '
        'and elevation (degrees), distance, meters ahead (default: 90 36 62 12; azimuth 0: along x)',
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
        '--rate', type=float, default=2.0, help='pictures a second of the video (default: 2)'
    )
    parser.add_argument(
        '--show', action='store_true', help='open a window instead; its keys are printed'
    )
    parser.add_argument('--device', help='default: the GPU where there is one')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='overrides of the config, key=value'
    )
    args = parser.parse_intermixed_args()
    if args.dataset == bool(args.files):
        parser.error('give either --dataset or point files')
    if args.rate <= 0 or args.count < 1 or len(args.camera) > len(Camera._fields):
        parser.error('--rate is above 0, --count at least 1, --camera at most four numbers')
    return args


def _indices(text: str) -> list[int]:
    first, _, last = text.partition('-')
    return list(range(int(first), int(last or first) + 1))


def frames(args: argparse.Namespace, config: Config) -> tuple[list[str], Callable[[int], tuple]]:
    """Names of the frames, and a function from a frame's place to its points and true boxes (None:
    unknown)."""
    if args.files:
        return [path.name.split('.')[0] for path in args.files], lambda i: (
            read_points(args.files[i]),
            None,
        )
    with DefaultScope.overwrite_default_scope('mmdet3d'):
        dataset = DATASETS.build(config.test_dataloader.dataset)
    count = min(args.count, len(dataset))
    chosen = (
        sum(args.index, [])
        if args.index
        else [(2 * k + 1) * len(dataset) // (2 * count) for k in range(count)]
    )
    if not chosen or max(chosen) >= len(dataset):
        raise ValueError(f'--index: the dataset has frames 0 to {len(dataset) - 1}, not {chosen}')

    def load(i: int) -> tuple:
        truth = dataset.get_data_info(chosen[i]).get('eval_ann_info')
        boxes = (
            None
            if truth is None
            else truth['gt_bboxes_3d'].tensor.numpy()[truth['gt_labels_3d'] >= 0]
        )
        return dataset[chosen[i]]['inputs']['points'].numpy(), boxes

    return [f'frame_{index:04d}' for index in chosen], load


def make_scene(
    args: argparse.Namespace, model, name: str, points: np.ndarray, truth: np.ndarray | None
) -> Drawing:
    found = detect(model, points)
    best = found.scores >= args.score
    strata = None
    if args.strata is not None:
        strata = StrataWeights(*inspect_strata(model, points, args.strata))
    return Drawing(
        points,
        found.boxes[best],
        found.scores[best],
        [n for n, b in zip(found.names, best) if b],
        truth,
        f'{name}: {best.sum()} predictions with score \u2265 {args.score}',
        strata,
    )


def main() -> int:
    args = parse_args()
    try:
        config = Config.fromfile(args.config)
        config.merge_from_dict(args.cfg_options or {})
        model = init_detector(config, args.checkpoint, args.device)
        names, load = frames(args, config)
        camera = Camera(*args.camera)
        if args.show:
            print('\n'.join(f'  {key}  {meaning}' for key, meaning in KEYS.items()))
            Viewer(lambda i: make_scene(args, model, names[i], *load(i)), len(names), camera).run()
            return 0
        area = [config.model.point_cloud_range[i] for i in (0, 1, 3, 4)]
        with PictureFolder(args.out, area, camera, args.color, not args.no_perspective) as folder:
            for i, name in enumerate(tqdm(names, 'drawing', unit='frame')):
                folder.write(name, make_scene(args, model, name, *load(i)), args.token)
            videos = folder.write_videos(args.video, args.rate) if args.video else []
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f'visualize.py: {error}')
    for kind, paths in folder.written.items():
        print(f'{args.out / kind}: {len(paths)} pictures')
    print(*videos, sep='\n', end='\n' if videos else '')
    return 0


if __name__ == '__main__':
    sys.exit(main())
