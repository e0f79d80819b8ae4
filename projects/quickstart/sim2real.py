#!/usr/bin/env python
"""How far does a detector that learned in simulation carry over? F1 on annotated frames it has
nothing to do with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from stratified3d.apis import detect, init_detector
from stratified3d.datasets.io.info_files import read_info_file
from stratified3d.datasets.nuscenes.frames import read_frame
from stratified3d.evaluation.center_distance import match_centers

FOLDER = Path(__file__).parent
EXAMPLES = """examples:
  python projects/quickstart/sim2real.py data/nuscenes/nuscenes_infos_val.pkl

The score that a detection needs is the one with the best F1 on --val, then fixed. A box is found by a detection of
its class within 2 m; boxes with fewer points than --min-points count neither way, nor do detections of them. Each frame
is a single sweep.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('info', type=Path, help='info file of the frames in question')
    parser.add_argument(
        '--val',
        type=Path,
        default=FOLDER.parents[1] / 'data/simulated/nuscenes_infos_val.pkl',
        help="info file of simulated frames that choose the score (default: the quickstart's)",
    )
    parser.add_argument('--config', default=FOLDER / 'configs/quickstart.py')
    parser.add_argument('--checkpoint', default=FOLDER / 'quickstart.safetensors')
    parser.add_argument('--min-points', type=int, default=5)
    return parser.parse_args()


def outcomes(
    model: torch.nn.Module, info: Path, min_points: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """For each frame: scores [J] of the detections that count, whether each is a hit [J], and how
    many boxes count."""
    low, high = np.array(model.cfg.model.point_cloud_range).reshape(2, 3)[:, :2]
    for index in tqdm(range(len(read_info_file(info)['data_list'])), desc=info.name, unit='frame'):
        frame = read_frame(info, index)
        within = ((frame.boxes[:, :2] >= low) & (frame.boxes[:, :2] < high)).all(1)
        names, counts = np.array(frame.names), within & (frame.num_points >= min_points)
        counts &= np.isin(names, model.class_names)
        found = detect(model, frame.points)
        kept, hits = [], []
        for name in model.class_names:
            mine, theirs = (
                np.flatnonzero(names == name),
                np.flatnonzero(np.array(found.names) == name),
            )
            matched = match_centers(frame.boxes[mine], found.boxes[theirs])
            hit = matched >= 0
            # detections of boxes that do not count are neither right nor wrong
            fair = (
                ~hit | counts[mine[np.where(hit, matched, 0)]]
                if len(mine)
                else np.ones(len(theirs), bool)
            )
            kept.append(found.scores[theirs[fair]])
            hits.append(hit[fair])
        yield np.concatenate(kept), np.concatenate(hits), int(counts.sum())


def f1_over_scores(
    frames: list[tuple[np.ndarray, np.ndarray, int]],
) -> tuple[np.ndarray, np.ndarray]:
    """Scores, falling, and the F1 of all detections that reach each of them."""
    scores, hits = (np.concatenate([frame[i] for frame in frames]) for i in range(2))
    order = np.argsort(-scores, kind='stable')
    found = np.cumsum(hits[order])
    total = sum(frame[2] for frame in frames)
    return scores[order], 2 * found / (np.arange(1, len(order) + 1) + total)


def main() -> int:
    args = parse_args()
    try:
        model = init_detector(args.config, args.checkpoint)
        val, frames = (
            list(outcomes(model, info, args.min_points)) for info in (args.val, args.info)
        )
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'carry_over.py: {error}')
    scores, f1 = f1_over_scores(val)
    if not len(scores):
        sys.exit(f'carry_over.py: nothing was detected in {args.val}: no score can be chosen')
    threshold = scores[f1.argmax()]
    print(f'{args.val}: best F1 {f1.max():.3f} at a score of {threshold:.3f}')
    chosen = [(hits[score >= threshold], boxes) for score, hits, boxes in frames]
    hits, detections, boxes = (
        sum(h.sum() for h, _ in chosen),
        sum(len(h) for h, _ in chosen),
        sum(b for _, b in chosen),
    )
    print(
        f'{args.info}: {len(frames)} frames, {boxes} boxes with {args.min_points} or more points, {detections} '
        f'detections, {hits} hits: F1 {2 * hits / max(detections + boxes, 1):.3f}'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
