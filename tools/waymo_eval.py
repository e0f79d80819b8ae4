#!/usr/bin/env python
"""Score detections by the Waymo Open Dataset's 3D metric: AP and APH by type, range and level,
without TensorFlow."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from stratified3d.commands import begin_command

begin_command('waymo_eval.py')

from tqdm import tqdm

from stratified3d.evaluation.waymo.boxes import WaymoBoxes
from stratified3d.evaluation.waymo.files import ObjectsFile, read_objects
from stratified3d.evaluation.waymo.score import average_precisions, count_boxes, format_table
from stratified3d.resumable import atomic_write

EXAMPLES = """examples:
  python tools/waymo_eval.py predictions.bin ground_truths.bin
  python tools/waymo_eval.py submission.bin ground_truths.bin --json scores.json

Both are Objects files, such as validation ground truths that Waymo publishes and predictions that
mmdet3d writes; the predictions may be a Submission too. docs/waymo_evaluation.md has the definition
of the score.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('predictions', type=Path)
    parser.add_argument('ground_truths', type=Path)
    parser.add_argument(
        '--json',
        type=Path,
        metavar='OUT',
        help='write the scores there as well: {"VEHICLE_LEVEL_1": {"AP": 0.5, "APH": 0.4}, '
        '"VEHICLE_[0,30)_LEVEL_1": ...}',
    )
    return parser.parse_args()


def read(path: Path) -> WaymoBoxes:
    """Boxes of a file; prints what of it is not scored."""
    file = ObjectsFile(path)
    progress = partial(tqdm, desc=f'reading {path.name}', unit='box', total=len(file))
    boxes = read_objects(file, progress)
    unknown = int((boxes.types == 0).sum())
    if unknown:
        print(
            f'{path}: {unknown} of {len(boxes)} objects have a type that is not scored and are '
            'left out'
        )
    for number, count in file.other_fields.items():
        if number == 2:
            what = 'no-label zones: predictions say by overlap_with_nlz whether they lie in one'
        else:
            what = f'fields with the number {number}, which Objects files do not have'
        print(f'{path}: does not use its {count} {what}')
    return boxes


def main() -> int:
    args = parse_args()
    try:
        ground_truths = read(args.ground_truths)
        if not len(ground_truths):
            raise ValueError(f'{args.ground_truths}: contains no objects to compare with')
        predictions = read(args.predictions)
        counts = count_boxes(
            predictions, ground_truths, partial(tqdm, desc='matching', unit='block')
        )
        scores = average_precisions(counts)
        print(format_table(scores, counts.ground_truths))
        if args.json is not None:
            atomic_write(args.json, (json.dumps(scores, indent=2) + '\n').encode())
    except (OSError, ValueError) as error:
        sys.exit(f'waymo_eval.py: {error}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
