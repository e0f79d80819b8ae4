"""Compare statistics of simulated keyframes with those of a released one.

    python -m stratified3d.simulation.realism DATASET [--real real.json] [--version v1.0-mini]

prints the table of docs/simulation.md for a dataset in nuScenes format (simulated or real).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np

from stratified3d.simulation.nuscenes.schema import DETECTION_NAMES
from stratified3d.simulation.physics.scanners import SCANNERS

N_RINGS = SCANNERS['nuscenes'].beams
RANGE_EDGES = (0.0, 1.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 80.0, 110.0)  # m
POINT_EDGES = (0, 1, 6, 21, 10**6)  # boxes by their points: 0, 1-5, 6-20, more
BOX_RANGE_EDGES = (0.0, 20.0, 40.0, 110.0)  # m
INTENSITY_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
GROUND_REACH = 40.0  # m
GROUND_CELL = 4.0  # m
GROUND_POINTS = 10  # that a cell needs
_TABLE_SHAPE = (len(BOX_RANGE_EDGES) - 1, len(POINT_EDGES) - 1)


def point_statistics(points: np.ndarray) -> dict:
    """Statistics of one keyframe's points.

    Points per ring and per range bin, the share of rays without a return, quantiles of intensity
    and the slope of the ground.

    Args:
        points: [N, 5] as in a nuScenes file: x, y, z (m), intensity, ring. Within 1 m of the sensor
            lie rays without a return and the car's own roof.
    """
    distance = np.linalg.norm(points[:, :3], axis=1)
    far = distance > 1.0
    return {
        'rings': np.bincount(points[far, 4].astype(int), minlength=N_RINGS).tolist(),
        'ranges': np.histogram(distance, RANGE_EDGES)[0].tolist(),
        'missing': float((~far).mean()),
        'intensity': np.quantile(points[far, 3], INTENSITY_QUANTILES).tolist(),
        'slope': ground_slope(points[distance > RANGE_EDGES[2], :3]),
    }


def ground_slope(points: np.ndarray) -> float:
    """Angle between the sensor's floor and the plane that fits the ground best, degrees.

    Each square cell's ground is the height below which a tenth of its points lie. The plane has the
    least sum of absolute errors (by reweighted least squares), so that cells without ground weigh
    little.

    Args:
        points: [N, 3] x, y, z (m, LiDAR frame), without the car's own roof.
    Returns:
        The angle; NaN if there are not three cells off one line with enough points.
    """
    is_near = (np.abs(points[:, :2]) < GROUND_REACH).all(1)
    points = points[is_near & (points[:, 2] < 0)].astype(np.float64)
    low = _lowest_per_cell(points)
    if not len(low) or np.linalg.matrix_rank(low[:, :3]) < 3:
        return float('nan')

    design, height = low[:, :3], low[:, 3]
    weight = np.ones(len(low))
    for _ in range(20):
        plane = np.linalg.lstsq(design * weight[:, None], height * weight, rcond=None)[0]
        error = np.abs(design @ plane - height)
        weight = np.maximum(error, 0.05) ** -0.5
    return float(np.degrees(np.arctan(np.hypot(*plane[:2]))))


def _lowest_per_cell(points: np.ndarray) -> np.ndarray:
    """[C, 4] mean x, mean y, 1 and low height of each cell with enough points [N, 3]."""
    index = np.floor(points[:, :2] / GROUND_CELL)
    _, cell, count = np.unique(index, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(cell.ravel(), kind='stable')
    rows = []
    for inside in np.split(points[order], np.cumsum(count)[:-1]):
        if len(inside) >= GROUND_POINTS:
            low = np.quantile(inside[:, 2], 0.1)
            rows.append([*inside[:, :2].mean(0), 1.0, low])
    return np.array(rows)


def box_statistics(names: list[str], distance: np.ndarray, num_points: np.ndarray) -> dict:
    """Boxes per class, by distance and by points, of one keyframe.

    Args:
        names: K detection names, 'other' for the rest.
        distance: [K] m from the sensor.
        num_points: [K].
    Returns:
        {class: [3][4] counts by BOX_RANGE_EDGES and POINT_EDGES}.
    """
    table = {}
    for name in sorted(set(names)):
        chosen = np.array([each == name for each in names])
        counts, _, _ = np.histogram2d(
            distance[chosen],
            num_points[chosen],
            [np.array(BOX_RANGE_EDGES), np.array(POINT_EDGES)],
        )
        table[name] = counts.tolist()
    return table


def read_dataset(root: Path, version: str = 'v1.0-mini') -> dict:
    """Means of the statistics over all keyframes of a dataset, and its counts.

    Returns:
        rings, ranges, missing, intensity, slope: means of `point_statistics`.
        boxes: mean boxes per keyframe and class.
        keyframes: how many.
        all_boxes, few: annotated boxes, and those with at most 5 points, per keyframe.
    """
    names = ('sample_data', 'sample_annotation', 'instance', 'category', 'ego_pose')
    tables = {name: json.loads((root / version / f'{name}.json').read_text()) for name in names}
    class_of = _instance_classes(tables)
    position = {row['token']: row['translation'] for row in tables['ego_pose']}
    by_sample = _group_by_sample(tables['sample_annotation'])
    statistics = []
    boxes: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(_TABLE_SHAPE))
    for row in tables['sample_data']:
        if not (row['is_key_frame'] and row['filename'].startswith('samples/LIDAR_TOP')):
            continue
        points = np.fromfile(root / row['filename'], np.float32).reshape(-1, 5)
        statistics.append(point_statistics(points))
        annotations = by_sample[row['sample_token']]
        counts = _count_boxes(annotations, class_of, position[row['ego_pose_token']])
        for name, table in counts.items():
            boxes[name] += np.array(table)
    return summarize(_average(statistics, boxes))


def _average(statistics: list[dict], boxes: dict[str, np.ndarray]) -> dict:
    """Means over keyframes of `point_statistics`, and of boxes given as totals per class."""
    count = len(statistics)
    result: dict = {}
    for key in statistics[0]:
        result[key] = np.nanmean([each[key] for each in statistics], 0).tolist()
    result['boxes'] = {name: (table / count).tolist() for name, table in sorted(boxes.items())}
    result['keyframes'] = count
    return result


def _group_by_sample(annotations: list[dict]) -> dict[str, list[dict]]:
    groups = defaultdict(list)
    for row in annotations:
        groups[row['sample_token']].append(row)
    return groups


def _instance_classes(tables: dict[str, list[dict]]) -> dict[str, str]:
    """{instance token: detection name or 'other'}."""
    category = {row['token']: row['name'] for row in tables['category']}
    classes = {}
    for row in tables['instance']:
        name = category[row['category_token']]
        classes[row['token']] = DETECTION_NAMES.get(name, 'other')
    return classes


def _count_boxes(annotations: list[dict], class_of: dict[str, str], ego: list[float]) -> dict:
    """`box_statistics` of one keyframe's annotations around the ego car at `ego` [3] m."""
    center = np.array([row['translation'] for row in annotations]).reshape(-1, 3)
    offset = center - ego
    names = [class_of[row['instance_token']] for row in annotations]
    num_points = np.array([row['num_lidar_pts'] for row in annotations])
    return box_statistics(names, np.hypot(*offset[:, :2].T), num_points)


def summarize(statistics: dict) -> dict:
    """Add the totals of boxes to statistics."""
    total = np.zeros(_TABLE_SHAPE)
    for table in statistics['boxes'].values():
        total = total + np.array(table)
    return {**statistics, 'all_boxes': float(total.sum()), 'few': float(total[:, :2].sum())}


def compare(simulated: dict, real: dict) -> str:
    """Both statistics side by side, as two tables in Markdown."""
    lines = ['| | real keyframe | simulated, mean | ratio |', '|---|---|---|---|']
    for label, key, digits in _listed_statistics():
        theirs, ours = key(real), key(simulated)
        ratio = f'{ours / theirs:.2f}' if theirs else ''
        lines.append(f'| {label} | {theirs:.{digits}f} | {ours:.{digits}f} | {ratio} |')
    lines += [
        '',
        '| boxes per keyframe | distance, m | real: 0 / 1-5 / 6-20 / more points | simulated |',
        '|---|---|---|---|',
    ]
    for name in sorted({*simulated['boxes'], *real['boxes']}):
        lines += _compare_boxes(name, simulated['boxes'], real['boxes'])
    return '\n'.join(lines)


def _compare_boxes(name: str, simulated: dict, real: dict) -> Iterator[str]:
    """One class's lines of the second table."""
    empty = np.zeros(_TABLE_SHAPE)
    ours = simulated.get(name, empty)
    theirs = real.get(name, empty)
    for i, (low, high) in enumerate(zip(BOX_RANGE_EDGES, BOX_RANGE_EDGES[1:])):
        real_counts = ' / '.join(f'{count:.0f}' for count in theirs[i])
        simulated_counts = ' / '.join(f'{count:.1f}' for count in ours[i])
        yield f'| {name} | {low:g}-{high:g} | {real_counts} | {simulated_counts} |'


def _listed_statistics() -> Iterator[tuple[str, Callable[[dict], float], int]]:
    """Label, value and number of decimals of every line in the table of `compare`."""
    yield 'missing returns and own roof (within 1 m), share', itemgetter('missing'), 3
    for ring in range(0, N_RINGS, 4):
        rings = slice(ring, ring + 4)
        yield f'points of rings {ring}-{ring + 3}', partial(_sum_rings, rings), 0
    for i, (low, high) in enumerate(zip(RANGE_EDGES, RANGE_EDGES[1:])):
        yield f'points at {low:g}-{high:g} m', partial(_get, 'ranges', i), 0
    for i, quantile in enumerate(INTENSITY_QUANTILES):
        yield f'intensity, {quantile:.0%} quantile', partial(_get, 'intensity', i), 0
    yield 'slope of the ground, degrees', itemgetter('slope'), 1
    yield 'annotated boxes', itemgetter('all_boxes'), 1
    yield 'of them with at most 5 points, share', lambda each: each['few'] / each['all_boxes'], 2


def _get(key: str, index: int, statistics: dict) -> float:
    return statistics[key][index]


def _sum_rings(rings: slice, statistics: dict) -> float:
    return sum(statistics['rings'][rings])


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('root', type=Path)
    parser.add_argument('--version', default='v1.0-mini')
    parser.add_argument(
        '--real', type=Path, help='statistics of a real keyframe to compare with, JSON'
    )
    args = parser.parse_args()
    ours = read_dataset(args.root, args.version)
    print(compare(ours, json.loads(args.real.read_text())) if args.real else json.dumps(ours))
