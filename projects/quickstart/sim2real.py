#!/usr/bin/env python
"""Score a detector that was trained in simulation on other annotated frames, by their F1."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stratified3d.commands import begin_command

begin_command('sim2real.py')

import numpy as np
from tqdm import tqdm

from stratified3d.apis import Detections, detect, init_detector
from stratified3d.datasets.io.info_files import read_info_file
from stratified3d.datasets.nuscenes.frames import AnnotatedFrame, read_frame
from stratified3d.evaluation.center_distance import match_centers

if TYPE_CHECKING:
    from mmdet3d.models.detectors import Base3DDetector

FOLDER = Path(__file__).parent
EXAMPLES = """examples:
  python projects/quickstart/sim2real.py data/nuscenes/nuscenes_infos_val.pkl

The score threshold is the one with the best F1 on --val. A box is found by a detection of its class
within 2 m. Boxes with fewer points than --min-points do not count, and neither do detections of
them. Each frame is a single sweep.
"""


class Outcome(NamedTuple):
    """What a detector found in one frame, of the boxes that count.

    Attributes:
        scores: [J] of the detections.
        hits: [J], whether they are right.
        num_boxes: how many boxes there are.
    """

    scores: np.ndarray
    hits: np.ndarray
    num_boxes: int


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('info', type=Path, help='info file of the frames to score')
    parser.add_argument(
        '--val',
        type=Path,
        default=FOLDER.parents[1] / 'data/simulated/nuscenes_infos_val.pkl',
        help="info file of simulated frames that choose the score (default: the quickstart's)",
    )
    parser.add_argument('--config', default=FOLDER / 'configs/pretrained.py')
    parser.add_argument('--checkpoint', default=FOLDER / 'quickstart.safetensors')
    parser.add_argument(
        '--min-points', type=int, default=5, help='of a box that counts (default: 5)'
    )
    return parser.parse_args()


def outcomes(model: Base3DDetector, info: Path, min_points: int) -> Iterator[Outcome]:
    """Detect the objects of all frames of an info file."""
    count = len(read_info_file(info)['data_list'])
    for index in tqdm(range(count), desc=info.name, unit='frame'):
        frame = read_frame(info, index)
        found = detect(model, frame.points)
        yield judge(frame, found, boxes_that_count(model, frame, min_points), model.class_names)


def boxes_that_count(model: Base3DDetector, frame: AnnotatedFrame, min_points: int) -> np.ndarray:
    """Which boxes [K] are in range, of a known class and have enough points."""
    limits = np.array(model.cfg.model.point_cloud_range).reshape(2, 3)
    lower, upper = limits[:, :2]
    centers = frame.boxes[:, :2]
    is_in_range = ((centers >= lower) & (centers < upper)).all(1)
    is_known = np.isin(frame.names, model.class_names)
    return is_in_range & is_known & (frame.num_points >= min_points)


def judge(
    frame: AnnotatedFrame, found: Detections, counts: np.ndarray, class_names: list[str]
) -> Outcome:
    """Compare detections with the boxes of their class, within 2 m.

    Args:
        counts: [K], which boxes count.
    """
    names = np.array(frame.names)
    found_names = np.array(found.names)
    scores, hits = [], []

    for name in class_names:
        boxes = np.flatnonzero(names == name)
        detections = np.flatnonzero(found_names == name)
        matched = match_centers(frame.boxes[boxes], found.boxes[detections])
        is_hit = matched >= 0

        # detections of boxes that do not count are neither right nor wrong
        is_fair = np.ones(len(detections), bool)
        is_fair[is_hit] = counts[boxes[matched[is_hit]]]
        scores.append(found.scores[detections[is_fair]])
        hits.append(is_hit[is_fair])
    return Outcome(np.concatenate(scores), np.concatenate(hits), int(counts.sum()))


def f1_over_scores(outcomes: list[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    """Scores in descending order, and the F1 of all detections that reach each of them."""
    scores = np.concatenate([outcome.scores for outcome in outcomes])
    hits = np.concatenate([outcome.hits for outcome in outcomes])
    order = np.argsort(-scores, kind='stable')

    num_hits = np.cumsum(hits[order])
    num_detections = np.arange(1, len(order) + 1)
    num_boxes = sum(outcome.num_boxes for outcome in outcomes)
    return scores[order], 2 * num_hits / (num_detections + num_boxes)


def report(info: Path, outcomes: list[Outcome], threshold: float, min_points: int) -> None:
    """Print the F1 of the detections that reach a threshold."""
    hits = [outcome.hits[outcome.scores >= threshold] for outcome in outcomes]
    num_hits = sum(int(part.sum()) for part in hits)
    num_detections = sum(len(part) for part in hits)
    num_boxes = sum(outcome.num_boxes for outcome in outcomes)
    f1 = 2 * num_hits / max(num_detections + num_boxes, 1)
    print(
        f'{info}: {len(outcomes)} frames, {num_boxes} boxes with {min_points} or more points, '
        f'{num_detections} detections, {num_hits} hits: F1 {f1:.3f}'
    )


def main() -> int:
    args = parse_args()
    try:
        model = init_detector(args.config, args.checkpoint)
        val = list(outcomes(model, args.val, args.min_points))
        frames = list(outcomes(model, args.info, args.min_points))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'sim2real.py: {error}')

    scores, f1 = f1_over_scores(val)
    if not len(scores):
        sys.exit(f'sim2real.py: nothing was detected in {args.val}: no score can be chosen')

    best = f1.argmax()
    best_f1 = f1[best]
    threshold = scores[best]
    print(f'{args.val}: best F1 {best_f1:.3f} at a score of {threshold:.3f}')
    report(args.info, frames, threshold, args.min_points)
    return 0


if __name__ == '__main__':
    sys.exit(main())
