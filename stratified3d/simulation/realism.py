"""Statistics that tell whether a simulated keyframe looks like a released one.

    python -m stratified3d.simulation.realism DATASET [--real real.json] [--version v1.0-mini]

prints the table of docs/simulation.md for a dataset in nuScenes format (simulated or real).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from stratified3d.simulation.nuscenes.schema import DETECTION_NAMES
from stratified3d.simulation.physics.lidar import N_RINGS

RANGE_EDGES = (0.0, 1.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 80.0, 110.0)  # m
POINT_EDGES = (0, 1, 6, 21, 10**6)  # boxes by their points: 0, 1-5, 6-20, more
BOX_RANGE_EDGES = (0.0, 20.0, 40.0, 110.0)  # m
INTENSITY_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
GROUND_REACH, GROUND_CELL, GROUND_POINTS = 40.0, 4.0, 10  # m, m, points that a cell needs


def point_statistics(points: np.ndarray) -> dict:
    """Points per ring, per range bin, the share of rays without a return and the ground's slope, of
    one keyframe.

    Args:
        points: [N, 5] as in a nuScenes file: x, y, z (m), intensity, ring. Within 1 m of the sensor
        lie rays without a
            return and the car's own roof.
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
    """Degrees between the sensor's floor and the plane that fits the low points of a frame best.

    Of every square cell below the sensor the height that a tenth of its points stay below is taken;
    the plane has the least sum of absolute errors (by reweighted least squares), so that cells
    without ground weigh little.

    Args:
        points: [N, 3] x, y, z (m, LiDAR frame), without the car's own roof.
    Returns:
        The angle; NaN where no three cells off one line hold enough points.
    """
    points = points[(np.abs(points[:, :2]) < GROUND_REACH).all(1) & (points[:, 2] < 0)].astype(
        np.float64
    )
    _, cell, count = np.unique(
        np.floor(points[:, :2] / GROUND_CELL), axis=0, return_inverse=True, return_counts=True
    )
    members = np.split(points[np.argsort(cell.ravel(), kind='stable')], np.cumsum(count)[:-1])
    low = np.array(
        [
            [*each[:, :2].mean(0), 1.0, np.quantile(each[:, 2], 0.1)]
            for each in members
            if len(each) >= GROUND_POINTS
        ]
    )
    if not len(low) or np.linalg.matrix_rank(low[:, :3]) < 3:
        return float('nan')
    weight = np.ones(len(low))
    for _ in range(20):
        plane = np.linalg.lstsq(low[:, :3] * weight[:, None], low[:, 3] * weight, rcond=None)[0]
        weight = np.maximum(np.abs(low[:, :3] @ plane - low[:, 3]), 0.05) ** -0.5
    return float(np.degrees(np.arctan(np.hypot(*plane[:2]))))


def box_statistics(names: list[str], distance: np.ndarray, num_points: np.ndarray) -> dict:
    """Boxes per class, by distance and by points, of one keyframe.

    Args:
        names: K detection names, 'other' for the rest. distance: [K] m from the sensor. num_points:
        [K].
    Returns:
        {class: [3][4] counts by BOX_RANGE_EDGES and POINT_EDGES}.
    """
    table = {}
    for name in sorted(set(names)):
        chosen = np.array([each == name for each in names])
        table[name] = np.histogram2d(
            distance[chosen], num_points[chosen], [BOX_RANGE_EDGES, POINT_EDGES]
        )[0].tolist()
    return table


def read_dataset(root: Path, version: str = 'v1.0-mini') -> dict:
    """Means of the statistics over all keyframes of a dataset, and its counts.

    Returns:
        rings, ranges, missing, intensity, slope: means of `point_statistics`. boxes: mean boxes per
        keyframe and class.
        keyframes: how many. all_boxes, few: annotated boxes, and those with at most 5 points, per
            keyframe.
    """
    rows = {
        name: json.loads((root / version / f'{name}.json').read_text())
        for name in ('sample_data', 'sample_annotation', 'instance', 'category', 'ego_pose')
    }
    category = {row['token']: row['name'] for row in rows['category']}
    of_instance = {
        row['token']: DETECTION_NAMES.get(category[row['category_token']], 'other')
        for row in rows['instance']
    }
    pose = {row['token']: row['translation'] for row in rows['ego_pose']}
    by_sample = defaultdict(list)
    for row in rows['sample_annotation']:
        by_sample[row['sample_token']].append(row)
    points, boxes = (
        [],
        defaultdict(lambda: np.zeros((len(BOX_RANGE_EDGES) - 1, len(POINT_EDGES) - 1))),
    )
    for row in rows['sample_data']:
        if not (row['is_key_frame'] and row['filename'].startswith('samples/LIDAR_TOP')):
            continue
        points.append(
            point_statistics(np.fromfile(root / row['filename'], np.float32).reshape(-1, 5))
        )
        found = by_sample[row['sample_token']]
        offset = (
            np.array([box['translation'] for box in found]).reshape(-1, 3)
            - pose[row['ego_pose_token']]
        )
        table = box_statistics(
            [of_instance[box['instance_token']] for box in found],
            np.hypot(*offset[:, :2].T),
            np.array([box['num_lidar_pts'] for box in found]),
        )
        for name, counts in table.items():
            boxes[name] += np.array(counts)
    count = len(points)
    result = {key: np.nanmean([each[key] for each in points], 0).tolist() for key in points[0]}
    result['boxes'] = {name: (table / count).tolist() for name, table in sorted(boxes.items())}
    result['keyframes'] = count
    return summarize(result)


def summarize(statistics: dict) -> dict:
    """Add the totals of boxes to statistics."""
    total = sum(np.array(table) for table in statistics['boxes'].values())
    return {**statistics, 'all_boxes': float(total.sum()), 'few': float(total[:, :2].sum())}


def compare(simulated: dict, real: dict) -> str:
    """The table in Markdown."""
    lines = ['| | real keyframe | simulated, mean | ratio |', '|---|---|---|---|']

    def row(label, ours, theirs, digits=0):
        ratio = f'{ours / theirs:.2f}' if theirs else ''
        lines.append(f'| {label} | {theirs:.{digits}f} | {ours:.{digits}f} | {ratio} |')

    row(
        'missing returns and own roof (within 1 m), share', simulated['missing'], real['missing'], 3
    )
    for low in range(0, N_RINGS, 4):
        row(
            f'points of rings {low}-{low + 3}',
            sum(simulated['rings'][low : low + 4]),
            sum(real['rings'][low : low + 4]),
        )
    for i, (low, high) in enumerate(zip(RANGE_EDGES, RANGE_EDGES[1:])):
        row(f'points at {low:g}-{high:g} m', simulated['ranges'][i], real['ranges'][i])
    for i, quantile in enumerate(INTENSITY_QUANTILES):
        row(f'intensity, {quantile:.0%} quantile', simulated['intensity'][i], real['intensity'][i])
    row('slope of the ground, degrees', simulated['slope'], real['slope'], 1)
    row('annotated boxes', simulated['all_boxes'], real['all_boxes'], 1)
    row(
        'of them with at most 5 points, share',
        simulated['few'] / simulated['all_boxes'],
        real['few'] / real['all_boxes'],
        2,
    )
    lines += [
        '',
        '| boxes per keyframe | distance, m | real: 0 / 1-5 / 6-20 / more points | simulated |',
        '|---|---|---|---|',
    ]
    empty = np.zeros((len(BOX_RANGE_EDGES) - 1, len(POINT_EDGES) - 1))
    for name in sorted({*simulated['boxes'], *real['boxes']}):
        for i, (low, high) in enumerate(zip(BOX_RANGE_EDGES, BOX_RANGE_EDGES[1:])):
            ours, theirs = (
                np.array(each['boxes'].get(name, empty))[i] for each in (simulated, real)
            )
            lines.append(
                f'| {name} | {low:g}-{high:g} | '
                + ' / '.join(f'{v:.0f}' for v in theirs)
                + ' | '
                + ' / '.join(f'{v:.1f}' for v in ours)
                + ' |'
            )
    return '\n'.join(lines)


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
