#!/usr/bin/env python
"""Draw frames of a config's validation set from above, with truth and predictions."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmdet3d.registry import DATASETS
from mmengine.config import Config, DictAction
from mmengine.registry import DefaultScope
from tqdm import tqdm

from stratified3d.apis import detect, init_detector
from stratified3d.visualization.bev import draw_bev

EXAMPLES = """examples:
  python tools/draw_dataset.py projects/quickstart/configs/quickstart.py work_dirs/quickstart/epoch_5.pth --count 4
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/pictures'), help='folder of the pictures')
    parser.add_argument('--count', type=int, default=4, help='frames, evenly spread over the set')
    parser.add_argument('--score', type=float, default=0.3, help='predictions below are not drawn')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides of the config, key=value')
    args = parser.parse_args()
    try:
        config = Config.fromfile(args.config)
        config.merge_from_dict(args.cfg_options or {})
        model = init_detector(config, args.checkpoint)
        with DefaultScope.overwrite_default_scope('mmdet3d'):
            dataset = DATASETS.build(config.val_dataloader.dataset)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'draw_dataset.py: {error}')
    args.out.mkdir(parents=True, exist_ok=True)
    count = min(args.count, len(dataset))
    for i in tqdm([(2 * k + 1) * len(dataset) // (2 * count) for k in range(count)], 'drawing', unit='frame'):
        truth = dataset.get_data_info(i)['eval_ann_info']
        boxes = truth['gt_bboxes_3d'].tensor.numpy()[truth['gt_labels_3d'] >= 0]
        points = dataset[i]['inputs']['points']
        found = detect(model, points)
        best = found.scores >= args.score
        draw_bev(args.out / f'frame_{i:04d}.png', points.numpy(), truth=boxes,
                 boxes=found.boxes[best], scores=found.scores[best],
                 names=[n for n, shown in zip(found.names, best) if shown],
                 title=f'frame {i}: {len(boxes)} boxes, {best.sum()} predictions with score >= {args.score}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
