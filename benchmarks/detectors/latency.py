"""`benchmark.py model`: time whole detectors by part, in turns on the same points."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.detectors.builders import SPCONV, Entry, list_entries
from benchmarks.detectors.detector import Detector, calibrate
from benchmarks.detectors.synthetic import SyntheticObjects
from benchmarks.measure import spread, wait
from benchmarks.point_clouds import BenchmarkFrame
from benchmarks.report import number, table

# in the order in which they end; the pass ends with the last one
PARTS = ('voxelize', 'voxel features', 'encoder', 'backbone, neck', 'head', 'decode, NMS')
REACH = 51.2  # meters; every detector's range includes it
QUICK_REACH = 14.4  # meters to which --quick cuts the ranges
# difference of heatmaps and boxes from those of the plain run, norm over norm
TOLERANCES = {torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 0.15}
TF32_TOLERANCE = 1e-2  # of convolutions in fp32 on a GPU
TUNING_ROUNDS = 2
# passes that must be correct; MANY_PASSES where errors are random
PASSES, MANY_PASSES = 2, 10


def time_pass(detector: Detector, points: Tensor) -> dict[str, float]:
    """Milliseconds of each part, and of everything as 'total'.

    On a GPU the parts are timed by events, the total until the device has finished.
    """
    record = _record_event if detector.device.type == 'cuda' else time.perf_counter
    marks: dict[str, Any] = {}

    def mark(part: str) -> None:
        marks[part] = record()

    detector.mark = mark
    wait(detector.device)
    start = time.perf_counter()
    mark('start')
    detector.detect(points)
    mark(PARTS[-1])
    wait(detector.device)
    total = 1e3 * (time.perf_counter() - start)
    detector.mark = lambda part: None

    spent = {}
    begin = marks['start']
    for part in PARTS:
        end = marks[part]
        spent[part] = 1e3 * (end - begin) if isinstance(end, float) else begin.elapsed_time(end)
        begin = end
    return dict(spent, total=total)


def _record_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def time_in_turns(
    detectors: Sequence[Detector], points: Tensor, rounds: int, warmup: int, title: str
) -> list[dict[str, list[float]]]:
    """Milliseconds of every detector's parts, one number per round.

    In every round each detector runs once, and each round begins with another detector.
    """
    count = len(detectors)
    spent: list[list[dict[str, float]]] = [[] for _ in detectors]
    for r in tqdm(range(warmup + rounds), desc=title):
        for turn in range(count):
            i = (turn + r) % count
            times = time_pass(detectors[i], points)
            if r >= warmup:
                spent[i].append(times)

    by_part = []
    for passes in spent:
        by_part.append({part: [one[part] for one in passes] for part in (*PARTS, 'total')})
    return by_part


def check(detector: Detector, points: Tensor, expected: dict[str, list[Tensor]]) -> str | None:
    """Why a detector is not timed, or None.

    Args:
        expected: outputs of the head of the same weights in a plain run: on the CPU, in fp32, on
            one thread, by other means where there are some. In none of several passes the outputs
            may differ, and the boxes must be those of the synthetic objects.
    """
    assert detector.settings is not None
    random_errors = detector.settings.get('convolution') == SPCONV
    for i in range(MANY_PASSES if random_errors else PASSES):
        try:
            detections = detector.detect(points)
        # operators without CUDA in mmcv or spconv, out of memory
        except (RuntimeError, AssertionError) as error:
            return f'does not run: {type(error).__name__}: {error}'.splitlines()[0][:150]
        wrong = _compare(detector, expected) or detector.objects.check(detections)
        if wrong:
            turn = f'in pass {i + 1} ' if i else ''
            return f'wrong, so not timed: {turn}{wrong}'
    return None


def _compare(detector: Detector, expected: dict[str, list[Tensor]]) -> str | None:
    tolerance = TOLERANCES[detector.dtype]
    if detector.device.type == 'cuda' and detector.dtype == torch.float32:
        tolerance = TF32_TOLERANCE
    for name, tensors in expected.items():
        wanted = _join(tensors)
        error = float((_join(detector.outputs[name]) - wanted).norm() / wanted.norm())
        if not error <= tolerance:  # NaN too
            return f"the head's {name} are off by {error:.1e}"
    return None


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.float().cpu().flatten() for x in tensors])


def prepare(
    entry: Entry,
    points: Tensor,
    objects: SyntheticObjects,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[list[Detector], list[dict[str, Any]]]:
    """An entry in all its variants: the detectors that are correct, and a row of results for each
    variant."""
    model = entry.build()
    plain = Detector(entry, model, None, objects, torch.device('cpu'), torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        calibrate(plain.model, lambda: plain.detect(points))
        plain.detect(points)
    finally:
        torch.set_num_threads(threads)
    if not all(bool(x.isfinite().all()) for x in sum(plain.outputs.values(), [])):
        raise ValueError(
            f'{entry.name}: the outputs of the plain run are not finite; check the points'
        )

    detectors, rows = [], []
    for settings in entry.variants(device):
        row: dict[str, Any] = dict(
            name=entry.name,
            ours=entry.ours,
            settings=settings,
            parameters=plain.parameters,
            voxels=plain.voxels,
            cells=plain.cells,
            cell=entry.cell,
        )
        detector = Detector(entry, model, settings, objects, device, dtype)
        detector.model.load_state_dict(plain.model.state_dict())
        refused = check(detector, points.to(device), plain.outputs)
        if refused:
            row['refused'] = refused
        else:
            detector.allow_any_order()
            detectors.append(detector)
        rows.append(row)
    return detectors, rows


def run(
    frames: Sequence[BenchmarkFrame],
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
    only: Sequence[str],
    quick: bool,
) -> dict[str, Any]:
    """Time all detectors on every frame.

    First all variants of a detector run a few rounds, then the fastest variant of each runs in
    turns with the others.

    Raises:
        ValueError: an unknown name in `only`, a frame without points in range, no rounds.
    """
    if runs < 1:
        raise ValueError(f'--runs must be at least 1, not {runs}')
    reach = QUICK_REACH if quick else REACH
    entries = list_entries(reach if quick else None)
    names = [entry.name for entry in entries]
    for name in only:
        if name not in names:
            raise ValueError(f'there is no detector {name!r}; there are {", ".join(names)}')
    entries = [entry for entry in entries if not only or entry.name in only]

    objects = SyntheticObjects(reach)
    variants, rows = [], []
    cudnn_benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True  # no shape changes, for any detector
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', module='mmdet3d')
            for frame in frames:
                results = _run_frame(frame, entries, objects, device, dtype, runs)
                variants += results[0]
                rows += results[1]
    finally:
        torch.backends.cudnn.benchmark = cudnn_benchmark
    return dict(
        parts=PARTS,
        candidates=objects.candidates,
        reach=reach,
        rounds=runs,
        variants=variants,
        rows=rows,
    )


def _run_frame(
    frame: BenchmarkFrame,
    entries: Sequence[Entry],
    objects: SyntheticObjects,
    device: torch.device,
    dtype: torch.dtype,
    runs: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of all variants, and of the fastest variant of each entry."""
    within = (frame.points[:, :2].abs() < objects.reach).all(1)
    if not bool(within.any()):
        raise ValueError(
            f'{frame.name}: none of its {len(frame.points)} points lies within {objects.reach:g} m'
        )

    detectors: list[Detector] = []
    variants: list[dict[str, Any]] = []
    for entry in tqdm(entries, desc=f'checking on {frame.name}'):
        correct, rows = prepare(entry, frame.points, objects, device, dtype)
        detectors += correct
        for row in rows:
            variants.append(dict(frame=frame.name, points=len(frame.points), **row))

    points = frame.points.to(device)
    timed = [row for row in variants if 'refused' not in row]
    times = time_in_turns(detectors, points, min(runs, TUNING_ROUNDS), 1, 'variants')
    for row, spent in zip(timed, times):
        row['total_ms'] = spread(spent['total'])

    best = _fastest(timed)
    rows = [dict(timed[i]) for i in best]
    chosen = [detectors[i] for i in best]
    times = time_in_turns(chosen, points, runs, 1, 'timing')
    for row, spent in zip(rows, times):
        del row['total_ms']
        row['ms'] = {part: spread(values) for part, values in spent.items()}
        row['total_ms_of_each_round'] = spent['total']
    _add_ratios(rows)
    return variants, rows


def _fastest(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Index of the fastest row of each name."""
    best: dict[str, int] = {}
    for i, row in enumerate(rows):
        so_far = best.setdefault(row['name'], i)
        if row['total_ms'].median < rows[so_far]['total_ms'].median:
            best[row['name']] = i
    return list(best.values())


def _add_ratios(rows: Sequence[dict[str, Any]]) -> None:
    """Add each row's time over that of every baseline.

    The ratio is taken round by round, so that a slow period of the machine counts for both.
    """
    key = 'total_ms_of_each_round'
    baselines = [row for row in rows if not row['ours']]
    for row in rows:
        row['ratio'] = {}
        for baseline in baselines:
            ratios = [a / b for a, b in zip(row[key], baseline[key])]
            row['ratio'][baseline['name']] = spread(ratios)


def render(result: dict[str, Any]) -> str:
    """Tables of parts and ratios for every frame, of the detectors, and of all variants."""
    text = [
        f'Median milliseconds of {result["rounds"]} rounds in which every detector runs once, in '
        'its fastest variant (all are below). Random weights, norms calibrated on the frame; '
        f'decoding and NMS get the same {result["candidates"]} candidates from all detectors. '
        'Loading a frame is not counted.'
    ]
    for frame in dict.fromkeys(row['frame'] for row in result['variants']):
        rows = [row for row in result['rows'] if row['frame'] == frame]
        variants = [row for row in result['variants'] if row['frame'] == frame]
        text.append(f'## {frame}: {variants[0]["points"]:,} points')
        if rows:
            text.append(_table_of_parts(rows))
        if rows and rows[0]['ratio']:
            ratios = _table_of_ratios(rows)
            text.append(
                f'Total over that of a baseline, median of the rounds (and quartiles):\n\n{ratios}'
            )
        text.append(_table_of_detectors(rows, variants))
        text.append(f'### every variant\n\n{_table_of_variants(variants)}')
    return '\n\n'.join(text)


def _table_of_parts(rows: Sequence[dict[str, Any]]) -> str:
    lines = [['detector', *PARTS, 'total', 'quartiles']]
    for row in rows:
        medians = [number(row['ms'][part].median) for part in (*PARTS, 'total')]
        total = row['ms']['total']
        lines.append([row['name'], *medians, f'{number(total.low)} to {number(total.high)}'])
    return table(lines)


def _table_of_ratios(rows: Sequence[dict[str, Any]]) -> str:
    lines = [['detector', *rows[0]['ratio']]]
    for row in rows:
        ratios = [f'{r.median:.2f} ({r.low:.2f} to {r.high:.2f})' for r in row['ratio'].values()]
        lines.append([row['name'], *ratios])
    return table(lines)


def _table_of_detectors(rows: Sequence[dict[str, Any]], variants: Sequence[dict[str, Any]]) -> str:
    lines = [['detector', 'parameters', 'voxels', 'feature map', 'cell', 'runs with']]
    fastest = {row['name']: row for row in rows}
    for name in dict.fromkeys(row['name'] for row in variants):
        # any variant describes a detector that was refused in all of them
        row = fastest.get(name) or next(row for row in variants if row['name'] == name)
        height, width = row['cells']
        lines.append(
            [
                name,
                f'{row["parameters"]:,}',
                f'{row["voxels"]:,}',
                f'{height} x {width}',
                f'{row["cell"]:.2g} m',
                _setting(row) if 'ms' in row else 'refused',
            ]
        )
    return table(lines)


def _table_of_variants(variants: Sequence[dict[str, Any]]) -> str:
    lines = [['detector', 'variant', 'total', 'note']]
    for row in variants:
        total = row['total_ms'].median if 'total_ms' in row else None
        lines.append([row['name'], _setting(row), number(total), row.get('refused', '')])
    return table(lines)


def _setting(row: dict[str, Any]) -> str:
    return ', '.join(row['settings'].values()) or 'its config'
