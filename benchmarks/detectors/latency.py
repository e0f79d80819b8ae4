"""`benchmark.py model`: whole detectors by part, in turns on the same points."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.detectors.builders import SPCONV, Detector, Entry, calibrate, entries
from benchmarks.detectors.synthetic import SyntheticObjects
from benchmarks.measure import spread, wait
from benchmarks.point_clouds import BenchmarkFrame
from benchmarks.report import number, table

# in the order in which they end; with the last one the pass ends
PARTS = ('voxelize', 'voxel features', 'encoder', 'backbone, neck', 'head', 'decode, NMS')
# meters within which everyone's range lies, and which --quick cuts it to
REACH, QUICK_REACH = 51.2, 14.4
# difference of the heatmaps and of the boxes from those of the plain run, norm over norm; a GPU's
# convolutions in fp32 take TF32
TOLERANCES = {torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 0.15}
TF32_TOLERANCE = 1e-2
TUNING_ROUNDS = 2
# passes that must be right; what is wrong at random only has to fail one of more
PASSES, MANY_PASSES = 2, 10


def time_pass(detector: Detector, points: Tensor) -> dict[str, float]:
    """Milliseconds of each part and 'total'; a GPU's parts by its own events, the total until it
    has finished."""
    cuda = detector.device.type == 'cuda'
    marks: dict[str, Any] = {}

    def mark(part: str) -> None:
        if cuda:
            marks[part] = torch.cuda.Event(enable_timing=True)
            marks[part].record()
        else:
            marks[part] = time.perf_counter()

    detector.mark = mark
    wait(detector.device)
    start = time.perf_counter()
    mark('start')
    detector.detect(points)
    mark(PARTS[-1])
    wait(detector.device)
    total = 1e3 * (time.perf_counter() - start)
    detector.mark = lambda part: None
    ends = [marks[part] for part in ('start', *PARTS)]
    spans = [a.elapsed_time(b) if cuda else 1e3 * (b - a) for a, b in zip(ends, ends[1:])]
    return dict(zip(PARTS, spans)) | dict(total=total)


def time_in_turns(
    detectors: Sequence[Detector], points: Tensor, rounds: int, warmup: int, title: str
) -> list[dict[str, list[float]]]:
    """Milliseconds of every detector's parts, a number a round; in every round each runs once, and
    each round begins with another one."""
    spent: list[list[dict[str, float]]] = [[] for _ in detectors]
    for r in tqdm(range(warmup + rounds), desc=title):
        for i in range(len(detectors)):
            i = (i + r) % len(detectors)
            one = time_pass(detectors[i], points)
            if r >= warmup:
                spent[i].append(one)
    return [{part: [one[part] for one in mine] for part in (*PARTS, 'total')} for mine in spent]


def check(detector: Detector, points: Tensor, truth: dict[str, list[Tensor]]) -> str | None:
    """Why it is not timed, or None: what the head made differs from `truth`, that of the same
    weights in a plain run (on the CPU, in fp32, on one thread, by other means where there are
    some), in one of several passes, or the boxes are not those of the planted objects."""
    tolerance = TOLERANCES[detector.dtype]
    if detector.device.type == 'cuda' and detector.dtype == torch.float32:
        tolerance = TF32_TOLERANCE
    for i in range(MANY_PASSES if detector.settings.get('convolution') == SPCONV else PASSES):
        turn = f'in pass {i + 1} ' if i else ''
        try:
            found = detector.detect(points)
        except (
            RuntimeError,
            AssertionError,
        ) as error:  # mmcv or spconv without CUDA operators, no memory
            return f'does not run: {type(error).__name__}: {error}'.splitlines()[0][:150]
        for name, true in truth.items():
            true, got = (
                torch.cat([m.float().cpu().flatten() for m in side])
                for side in (true, detector.made[name])
            )
            error = float((got - true).norm() / true.norm())
            if not error <= tolerance:
                return f"wrong, so not timed: {turn}the head's {name} are off by {error:.1e}"
        missed = detector.planted.missed(found)
        if missed:
            return f'wrong, so not timed: {turn}{missed}'
    return None


def prepare(
    entry: Entry,
    points: Tensor,
    planted: SyntheticObjects,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[list[Detector], list[dict[str, Any]]]:
    """An entry in each of its settings: those that are right, and a row of results for each."""
    threads, model = torch.get_num_threads(), entry.build()
    plain = Detector(entry, model, None, planted, torch.device('cpu'), torch.float32)
    torch.set_num_threads(1)
    try:
        calibrate(plain.model, lambda: plain.detect(points))
        plain.detect(points)
    finally:
        torch.set_num_threads(threads)
    if not all(bool(m.isfinite().all()) for made in plain.made.values() for m in made):
        raise ValueError(
            f'{entry.name}: the plain run gives numbers that are not finite; are the points?'
        )
    detectors, rows = [], []
    for settings in entry.settings(device):
        detector = Detector(entry, model, settings, planted, device, dtype)
        detector.model.load_state_dict(plain.model.state_dict())
        refused = check(detector, points.to(device), plain.made)
        rows.append(
            dict(
                name=entry.name,
                ours=entry.ours,
                settings=settings,
                parameters=plain.parameters,
                voxels=plain.voxels,
                cells=plain.cells,
                cell=entry.cell,
            )
        )
        if refused:
            rows[-1]['refused'] = refused
        else:
            detector.hurry()
            detectors.append(detector)
    return detectors, rows


def run(
    frames: Sequence[BenchmarkFrame],
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    only: Sequence[str],
    quick: bool,
) -> dict[str, Any]:
    """Everyone on every frame: first all settings of a baseline a few times, then the fastest of each
    in turns.

    Raises:
        ValueError: a name in `only` that is none, a frame without points in range, no rounds.
    """
    if runs < 1:
        raise ValueError(f'--runs is 1 or more, not {runs}')
    reach = QUICK_REACH if quick else REACH
    field = entries(reach if quick else None)
    names = [entry.name for entry in field]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ValueError(f'there is no {unknown[0]!r} to benchmark; there are {", ".join(names)}')
    field = [entry for entry in field if not only or entry.name in only]
    planted, tried, rows = SyntheticObjects(reach), [], []
    tuned = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True  # shapes stay as they are, for everyone
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', module='mmdet3d')
            for frame in frames:
                found = _run_frame(frame, field, planted, device, dtype, runs)
                tried += found[0]
                rows += found[1]
    finally:
        torch.backends.cudnn.benchmark = tuned
    return dict(
        parts=PARTS, candidates=planted.candidates, reach=reach, rounds=runs, tried=tried, rows=rows
    )


def _run_frame(
    frame: BenchmarkFrame,
    field: list[Entry],
    planted: SyntheticObjects,
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of all settings, and of the fastest of each entry."""
    if not bool((frame.points[:, :2].abs() < planted.reach).all(1).any()):
        raise ValueError(
            f'{frame.name}: none of its {len(frame.points)} points lies within {planted.reach:g} m'
        )
    detectors, tried = [], []
    for entry in tqdm(field, desc=f'checking on {frame.name}'):
        mine, rows = prepare(entry, frame.points, planted, device, dtype)
        detectors += mine
        tried += [dict(frame=frame.name, points=len(frame.points), **row) for row in rows]
    points = frame.points.to(device)
    right = [row for row in tried if 'refused' not in row]
    for row, spent in zip(
        right, time_in_turns(detectors, points, min(runs, TUNING_ROUNDS), 1, 'settings')
    ):
        row['total_ms'] = spread(spent['total'])
    best: dict[str, int] = {}
    for i, row in enumerate(right):
        if (
            row['name'] not in best
            or row['total_ms'].median < right[best[row['name']]]['total_ms'].median
        ):
            best[row['name']] = i
    rows = [{k: v for k, v in right[i].items() if k != 'total_ms'} for i in best.values()]
    for row, spent in zip(
        rows, time_in_turns([detectors[i] for i in best.values()], points, runs, 1, 'timing')
    ):
        row['ms'] = {part: spread(values) for part, values in spent.items()}
        row['total_ms_of_each_round'] = spent['total']
    for row in rows:  # round by round, so that a slow spell of the machine counts for both
        row['ratio'] = {
            other['name']: spread(
                [
                    a / b
                    for a, b in zip(row['total_ms_of_each_round'], other['total_ms_of_each_round'])
                ]
            )
            for other in rows
            if not other['ours']
        }
    return tried, rows


def render(result: dict[str, Any]) -> str:
    """Parts and ratios of every frame, who they are, and all settings."""
    text = [
        f'Median milliseconds of {result["rounds"]} rounds in which everyone runs once, each in its fastest '
        'setting (all are below). Random weights, norms calibrated on the frame; decoding and suppression get the '
        f'same {result["candidates"]} candidates from everyone. Loading a frame is not counted.'
    ]
    for frame in dict.fromkeys(row['frame'] for row in result['tried']):
        rows, tried = (
            [row for row in result[key] if row['frame'] == frame] for key in ('rows', 'tried')
        )
        text.append(f'## {frame}: {tried[0]["points"]:,} points')
        if rows:
            baselines = list(rows[0]['ratio'])
            text.append(
                table(
                    [['detector', *PARTS, 'total', 'quartiles']]
                    + [
                        [
                            row['name'],
                            *(number(row['ms'][part].median) for part in (*PARTS, 'total')),
                            f'{number(row["ms"]["total"].low)} to {number(row["ms"]["total"].high)}',
                        ]
                        for row in rows
                    ]
                )
            )
            if baselines:
                text.append(
                    'Total over that of a baseline, median of the rounds (and quartiles):\n\n'
                    + table(
                        [['detector', *baselines]]
                        + [
                            [
                                row['name'],
                                *(
                                    f'{r.median:.2f} ({r.low:.2f} to {r.high:.2f})'
                                    for r in row['ratio'].values()
                                ),
                            ]
                            for row in rows
                        ]
                    )
                )
        who = {row['name']: row for row in (*reversed(tried), *rows)}
        text.append(
            table(
                [['detector', 'parameters', 'voxels', 'map', 'cell', 'runs with']]
                + [
                    [
                        name,
                        f'{who[name]["parameters"]:,}',
                        f'{who[name]["voxels"]:,}',
                        '{} x {}'.format(*who[name]['cells']),
                        f'{who[name]["cell"]:.2g} m',
                        _setting(who[name]) if 'ms' in who[name] else 'refused',
                    ]
                    for name in dict.fromkeys(row['name'] for row in tried)
                ]
            )
        )
        text.append(
            '### every setting\n\n'
            + table(
                [['detector', 'setting', 'total', 'note']]
                + [
                    [
                        row['name'],
                        _setting(row),
                        number(row['total_ms'].median if 'total_ms' in row else None),
                        row.get('refused', ''),
                    ]
                    for row in tried
                ]
            )
        )
    return '\n\n'.join(text)


def _setting(row: dict[str, Any]) -> str:
    return ', '.join(row['settings'].values()) or 'its config'
