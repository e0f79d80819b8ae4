#!/usr/bin/env python
"""Train the tiny detector on one annotated frame until it finds that frame's objects: does the
set-up learn at all?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# configs may import projects.<name>, wherever the command was started
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from stratified3d.commands import begin_command

begin_command('overfit_frame.py')

import numpy as np
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from PIL import Image
from tqdm import trange

from stratified3d.apis import Detections, detect, init_detector
from stratified3d.datasets.nuscenes.frames import AnnotatedFrame, read_frame
from stratified3d.evaluation.center_distance import count_matches
from stratified3d.visualization.bev import draw_bev
from stratified3d.visualization.drawing import Drawing

if TYPE_CHECKING:
    from mmdet3d.models.detectors import Base3DDetector

CONFIG = (
    Path(__file__).parents[1]
    / 'configs/stratified/stratified-centerpoint_tiny_1xb2-cyclic-20e_nus-3d.py'
)
EXAMPLES = """examples:
  python tools/overfit_frame.py data/nuscenes/nuscenes_infos_val.pkl --index 3
  python tools/overfit_frame.py frame/info.pkl --iterations 100 --out work_dirs/quick_look
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('info', help='nuScenes-style mmdet3d info file (.pkl, version 2)')
    parser.add_argument('--index', type=int, default=0, help='frame of the info file')
    parser.add_argument('--config', default=CONFIG, help='default: the tiny nuScenes config')
    parser.add_argument('--iterations', type=int, default=400)
    parser.add_argument('--lr', type=float, default=2e-3, help='peak of the one-cycle schedule')
    parser.add_argument(
        '--min-points', type=int, default=5, help='boxes with fewer lidar points are left out'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/overfit_frame'))
    args = parser.parse_args()
    if args.iterations < 1:
        parser.error(f'--iterations is at least 1, not {args.iterations}')
    return args


def keep_learnable(
    frame: AnnotatedFrame, class_names: list[str], point_cloud_range: list[float], min_points: int
) -> AnnotatedFrame:
    """Keep the boxes of known classes whose center is in range and that contain enough points."""
    lower, upper = np.array(point_cloud_range[:2]), np.array(point_cloud_range[3:5])
    centers = frame.boxes[:, :2]
    kept = (frame.num_points >= min_points) & np.isin(frame.names, class_names)
    kept &= ((centers >= lower) & (centers < upper)).all(1)
    return AnnotatedFrame(
        frame.points,
        frame.boxes[kept],
        [name for name, keep in zip(frame.names, kept) if keep],
        frame.num_points[kept],
    )


def make_sample(model: Base3DDetector, frame: AnnotatedFrame, device: torch.device):
    """The annotations of a frame as mmdet3d wants them."""
    boxes = LiDARInstance3DBoxes(torch.from_numpy(frame.boxes), box_dim=9)
    labels = [model.class_names.index(name) for name in frame.names]
    gt_instances = InstanceData(
        bboxes_3d=boxes.to(device),
        labels_3d=torch.tensor(labels, dtype=torch.long, device=device),
    )
    return Det3DDataSample(
        metainfo=dict(box_type_3d=LiDARInstance3DBoxes), gt_instances_3d=gt_instances
    )


def train(model: Base3DDetector, frame: AnnotatedFrame, iterations: int, lr: float) -> None:
    """Train on one frame, with AdamW and a one-cycle schedule."""
    device = next(model.parameters()).device
    sample = make_sample(model, frame, device)
    points = [torch.from_numpy(frame.points).to(device)]
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=iterations + 1, pct_start=0.2
    )

    model.train()
    bar = trange(iterations, desc='training', mininterval=1)
    for _ in bar:
        losses = model.loss(dict(points=points), [sample])
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f'{loss.item():.3f}')
    model.eval()


def report(frame: AnnotatedFrame, found: Detections, info: Path, out: Path) -> None:
    """Print which objects were found; write detections.json and a picture."""
    matches = count_matches(frame.boxes, frame.names, found.boxes, found.scores, found.names)
    hits = sum(hit for hit, _ in matches.values())
    total = sum(count for _, count in matches.values())
    print(f'\n{"class":<22}{"found":>6}{"boxes":>7}')
    for name, (hit, count) in matches.items():
        print(f'{name:<22}{hit:>6}{count:>7}')
    print(f'{"all":<22}{hits:>6}{total:>7}   {hits / total:.1%} within 2 m')

    summary = dict(
        recall=hits / total,
        classes=matches,
        boxes=found.boxes.tolist(),
        scores=found.scores.tolist(),
        names=found.names,
    )
    (out / 'detections.json').write_text(json.dumps(summary))

    is_shown = found.scores >= 0.3
    drawing = Drawing(
        frame.points,
        found.boxes[is_shown],
        found.scores[is_shown],
        [name for name, shown in zip(found.names, is_shown) if shown],
        frame.boxes,
        f'{info.name}: {hits} of {total} found, predictions with score \u2265 0.3',
    )
    Image.fromarray(draw_bev(drawing)).save(out / 'bev.png')


def main() -> int:
    args = parse_args()
    torch.manual_seed(args.seed)
    try:
        frame = read_frame(args.info, args.index)
        model = init_detector(args.config)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'overfit_frame.py: {error}')

    limits = model.cfg.model.point_cloud_range
    frame = keep_learnable(frame, model.class_names, limits, args.min_points)
    if not len(frame.boxes):
        sys.exit(
            f'overfit_frame.py: {args.info}: frame {args.index} has no box in range with '
            f'{args.min_points} or more points'
        )

    args.out.mkdir(parents=True, exist_ok=True)
    train(model, frame, args.iterations, args.lr)
    meta = dict(dataset_meta=dict(classes=model.class_names))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), args.out / 'checkpoint.pth')

    report(frame, detect(model, frame.points), Path(args.info), args.out)
    print(f'checkpoint, detections and picture: {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
