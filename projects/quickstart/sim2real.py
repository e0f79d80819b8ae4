#!/usr/bin/env python
"""Score a detector trained in simulation by its F1, for every sensor and on other frames."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stratified3d.commands import begin_command

begin_command('sim2real.py')

import numpy as np
import torch
from mmdet3d.structures import LiDARInstance3DBoxes, LiDARPoints
from tqdm import tqdm

from stratified3d.apis import Detections, detect, init_detector
from stratified3d.datasets.io.info_files import read_info_file
from stratified3d.datasets.nuscenes.frames import AnnotatedFrame, read_frame
from stratified3d.evaluation.center_distance import match_centers
from stratified3d.sensors import Sensor
from stratified3d.simulation import simulate_frame
from stratified3d.simulation.layouts.catalog import VAL_LAYOUTS
from stratified3d.simulation.physics.scanners import MOUNTINGS

if TYPE_CHECKING:
    from mmdet3d.models.detectors import Base3DDetector

FOLDER = Path(__file__).parent
EXAMPLES = """examples:
  python projects/quickstart/sim2real.py                              every simulated sensor
  python projects/quickstart/sim2real.py data/nuscenes/nuscenes_infos_val.pkl
  python projects/quickstart/sim2real.py data/one_frame.pkl --turned   mean and spread of few frames

The score threshold is the one with the best F1 on all simulated frames. A box is found by a
detection of its class within 2 m. Boxes with fewer points than --min-points do not count, and
neither do detections of them. Each frame is a single sweep; its ground is found, as `detect` does
with sensor='auto'.
"""
_FIRST_SEED = 10**6  # of the simulated frames; training sets have small ones
_LISTED = ('car', 'pedestrian', 'barrier')
_ANGLES = (-0.3, -0.1, 0.1, 0.3)  # rad of the turned copies, half of what the weights learned with
_MIRRORS = (None, 'horizontal', 'vertical')


class Outcome(NamedTuple):
    """What a detector found in one frame, of the boxes that count.

    Attributes:
        scores: [J] of the detections.
        hits: [J], whether they are right.
        names: [J], their classes.
        box_names: the classes of the boxes.
    """

    scores: np.ndarray
    hits: np.ndarray
    names: np.ndarray
    box_names: np.ndarray


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('info', nargs='?', type=Path, help='info file of the frames to score')
    parser.add_argument(
        '--frames', type=int, default=8, help='simulated per sensor (default: %(default)s)'
    )
    parser.add_argument('--config', default=FOLDER / 'configs/any_sensor.py')
    parser.add_argument('--checkpoint', default=FOLDER / 'any-sensor.safetensors')
    parser.add_argument(
        '--min-points', type=int, default=5, help='of a box that counts (default: 5)'
    )
    parser.add_argument(
        '--turned',
        action='store_true',
        help='score the given frames in 12 turned and mirrored copies, too: how much is chance?',
    )
    args = parser.parse_args()
    if args.turned and not args.info:
        parser.error('--turned needs the info file of the frames to turn')
    return args


def read_frames(info: Path) -> Iterator[AnnotatedFrame]:
    """All frames of an info file."""
    for index in range(len(read_info_file(info)['data_list'])):
        yield read_frame(info, index)


def simulate_frames(sensor: str, count: int) -> Iterator[AnnotatedFrame]:
    """Frames of one sweep in streets of the validation layouts."""
    layouts = list(VAL_LAYOUTS)
    for i in range(count):
        layout = layouts[i % len(layouts)]
        frame = simulate_frame(_FIRST_SEED + i, layout, sensor=sensor)
        yield AnnotatedFrame(frame['points'], frame['boxes'], frame['names'], frame['num_points'])


def turn_frame(frame: AnnotatedFrame, angle: float, mirror: str | None) -> AnnotatedFrame:
    """The same frame, mirrored (None: not) and turned about the sensor by an angle in rad."""
    points = LiDARPoints(torch.from_numpy(frame.points), points_dim=frame.points.shape[1])
    boxes = LiDARInstance3DBoxes(torch.from_numpy(frame.boxes), box_dim=frame.boxes.shape[1])
    if mirror:
        boxes.flip(mirror, points)
    boxes.rotate(angle, points)
    return frame._replace(points=points.tensor.numpy(), boxes=boxes.tensor.numpy())


def outcomes(
    model: Base3DDetector, frames: Iterable[AnnotatedFrame], min_points: int
) -> list[Outcome]:
    """Detect the objects of frames, whose forward axis is y and whose intensities reach 255."""
    sensor = Sensor('y', None, 255.0)
    results = []
    for frame in frames:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of frames that look like no sensor
            found = detect(model, frame.points, sensor)
        counts = boxes_that_count(model, frame, min_points)
        results.append(judge(frame, found, counts, model.class_names))
    return results


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
    names = np.array(found.names)
    is_hit = np.zeros(len(names), bool)
    # detections of boxes that do not count are neither right nor wrong
    is_fair = np.ones(len(names), bool)
    for name in class_names:
        hits, boxes = match_class(frame, found, name)
        is_hit[hits] = True
        is_fair[hits] = counts[boxes]
    box_names = np.array(frame.names)[counts]
    return Outcome(found.scores[is_fair], is_hit[is_fair], names[is_fair], box_names)


def match_class(
    frame: AnnotatedFrame, found: Detections, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Detections of a class that are right, and the boxes that they found, indices [M] each."""
    boxes = np.flatnonzero(np.array(frame.names) == name)
    detections = np.flatnonzero(np.array(found.names) == name)
    matched = match_centers(frame.boxes[boxes], found.boxes[detections])
    is_match = matched >= 0
    return detections[is_match], boxes[matched[is_match]]


def f1_over_scores(outcomes: list[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    """Scores in descending order, and the F1 of all detections that reach each of them."""
    scores = np.concatenate([outcome.scores for outcome in outcomes])
    hits = np.concatenate([outcome.hits for outcome in outcomes])
    order = np.argsort(-scores, kind='stable')

    num_hits = np.cumsum(hits[order])
    num_detections = np.arange(1, len(order) + 1)
    num_boxes = sum(len(outcome.box_names) for outcome in outcomes)
    return scores[order], 2 * num_hits / (num_detections + num_boxes)


def f1_at(outcomes: list[Outcome], threshold: float) -> float:
    """F1 of the detections that reach a threshold."""
    hits = np.concatenate([each.hits[each.scores >= threshold] for each in outcomes])
    num_boxes = sum(len(outcome.box_names) for outcome in outcomes)
    return 2 * hits.sum() / max(len(hits) + num_boxes, 1)


def print_row(title: str, outcomes: list[Outcome], threshold: float) -> None:
    """Print a row of the table: F1 of the detections that reach a threshold, and some classes."""
    chosen = [outcome.scores >= threshold for outcome in outcomes]
    hits = np.concatenate([each.hits[keep] for each, keep in zip(outcomes, chosen)])
    names = np.concatenate([each.names[keep] for each, keep in zip(outcomes, chosen)])
    boxes = np.concatenate([each.box_names for each in outcomes])
    cells = [title, str(len(outcomes)), str(len(boxes)), f'{f1_at(outcomes, threshold):.3f}']
    for name in _LISTED:
        right, told = int(hits[names == name].sum()), int((names == name).sum())
        cells.append(f'{right} / {told} / {int((boxes == name).sum())}')
    print('| ' + ' | '.join(cells) + ' |')


def print_table(results: dict[str, list[Outcome]], threshold: float) -> None:
    """Print F1 and the listed classes of every group of frames, as Markdown."""
    print(f'score threshold {threshold:.3f}; classes: right / detections / boxes\n')
    print('| frames of | frames | boxes | F1 | ' + ' | '.join(_LISTED) + ' |')
    print('|---|---|---|---|' + '---|' * len(_LISTED))
    for title, part in results.items():
        print_row(title, part, threshold)


def score_turned(
    model: Base3DDetector, frames: list[AnnotatedFrame], min_points: int
) -> list[list[Outcome]]:
    """The outcomes of all frames, for each way to turn and mirror them."""
    turns = list(product(_ANGLES, _MIRRORS))
    return [
        outcomes(model, [turn_frame(frame, *turn) for frame in frames], min_points)
        for turn in tqdm(turns, unit='turn', disable=None)
    ]


def main() -> int:
    args = parse_args()
    try:
        given = list(read_frames(args.info)) if args.info else []
        model = init_detector(args.config, args.checkpoint)
        results = {}
        for sensor in tqdm(MOUNTINGS, unit='sensor', disable=None):
            frames = simulate_frames(sensor, args.frames)
            results[sensor] = outcomes(model, frames, args.min_points)
        other = outcomes(model, tqdm(given, unit='frame', disable=None), args.min_points)
        turned = score_turned(model, given, args.min_points) if args.turned else []
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'sim2real.py: {error}')

    simulated = [outcome for part in results.values() for outcome in part]
    scores, f1 = f1_over_scores(simulated)
    if not len(scores):
        sys.exit('sim2real.py: nothing was detected: no score can be chosen')
    if args.info:
        results[args.info.name] = other
    threshold = scores[f1.argmax()]
    print_table(results, threshold)
    if turned:
        f1 = np.array([f1_at(part, threshold) for part in turned])
        print(f'\nF1 in {len(f1)} turned and mirrored copies of {args.info.name}: ', end='')
        print(f'{f1.mean():.2f}, standard deviation {f1.std(ddof=1):.2f}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
