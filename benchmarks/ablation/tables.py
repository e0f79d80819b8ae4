"""Tables of results: each row against the default with the same seeds, and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, variance
from typing import Any

from benchmarks.report import table

HEAD = (
    'row',
    'question',
    'seeds',
    'mAP',
    'against default',
    'verdict',
    'NDS',
    'against default',
    'verdict',
    'car AP',
    'car heading, axis (rad)',
    'velocity (m/s)',
    'BEV GFLOP',
    'steps',
    's per step',
    'ms per frame',
    'ms per frame of a stream',
)


def compare(results: Sequence[dict[str, Any]], score: str = 'NDS') -> list[dict[str, Any]]:
    """One dict per row: means over its seeds, and its difference from the first row.

    The difference is the mean over the seeds that both rows share. The spread is the wider of the
    two rows' ranges over these seeds, None for a single one. The verdict is 'no difference' if the
    spread is not exceeded.
    """
    rows: dict[str, dict[int, dict]] = {}
    for result in results:
        rows.setdefault(result['row'], {})[result['seed']] = result
    first = next(iter(rows.values()))
    compared = []
    for name, seeds in rows.items():
        difference, spread = _difference(seeds, first, score)
        all_results = list(seeds.values())
        compared.append(
            dict(
                row=name,
                group=all_results[0]['group'],
                seeds=len(seeds),
                mAP=mean(result['mAP'] for result in all_results),
                NDS=mean(result['NDS'] for result in all_results),
                car=mean(result['AP']['car'] for result in all_results),
                difference=difference,
                spread=spread,
                verdict='' if seeds is first else _verdict(difference, spread),
                angles=[_mean_of(all_results, name) for name in ('heading', 'axis')],
                velocity=_mean_of([result.get('errors', {}) for result in all_results], 'vel_err'),
                gflop=_mean_of(all_results, 'bev_gflop'),
                iterations=mean(result['iterations'] for result in all_results),
                seconds=mean(result['seconds_per_iteration'] for result in all_results),
                ms_per_frame=mean(result['ms_per_frame'] for result in all_results),
                stream=_mean_of(all_results, 'stream_ms_per_frame'),
            )
        )
    return compared


def _mean_of(results: Sequence[dict[str, Any]], name: str) -> float | None:
    """Mean over the results that have such a value; None where none has."""
    values = [result[name] for result in results if result.get(name) is not None]
    return mean(values) if values else None


def _difference(
    seeds: dict[int, dict], first: dict[int, dict], score: str
) -> tuple[float | None, float | None]:
    """(difference, spread) over the shared seeds; None where there are too few."""
    shared = sorted(seeds.keys() & first.keys())
    if not shared:
        return None, None
    own = [seeds[seed][score] for seed in shared]
    base = [first[seed][score] for seed in shared]
    difference = mean(a - b for a, b in zip(own, base))
    if len(shared) == 1:
        return difference, None
    return difference, max(max(own) - min(own), max(base) - min(base))


def _verdict(difference: float | None, spread: float | None) -> str:
    if difference is None or spread is None:
        return 'too few seeds'
    if abs(difference) <= spread:
        return 'no difference'
    return 'better' if difference > 0 else 'worse'


def standard_error(
    results: Sequence[dict[str, Any]], score: str = 'NDS', seeds: int = 2
) -> float | None:
    """Standard error of a difference between the means of two rows.

    It follows from the variance over seeds, pooled over all rows with several seeds. Rows of other
    detectors are left out, because their variance differs.

    Args:
        seeds: of each of the two rows.
    Returns:
        None without a row of several seeds.
    """
    rows: dict[str, list[float]] = {}
    for result in results:
        if result['group'] != 'detector':
            rows.setdefault(result['row'], []).append(result[score])
    several = [values for values in rows.values() if len(values) > 1]
    if not several:
        return None
    degrees = sum(len(values) - 1 for values in several)
    pooled = sum(variance(values) * (len(values) - 1) for values in several) / degrees
    return (2 * pooled / seeds) ** 0.5


def render(results: Sequence[dict[str, Any]]) -> str:
    """Markdown table with the spread of differences in brackets, and the standard error below."""
    lines: list[Sequence[str]] = [HEAD]
    for by_map, by_nds in zip(compare(results, 'mAP'), compare(results, 'NDS')):
        lines.append(
            [
                by_map['row'],
                by_map['group'],
                str(by_map['seeds']),
                f'{by_map["mAP"]:.3f}',
                _render_difference(by_map),
                by_map['verdict'],
                f'{by_nds["NDS"]:.3f}',
                _render_difference(by_nds),
                by_nds['verdict'],
                f'{by_map["car"]:.3f}',
                ', '.join('' if angle is None else f'{angle:.2f}' for angle in by_map['angles']),
                _render_value(by_map['velocity'], 2),
                _render_value(by_map['gflop']),
                f'{by_map["iterations"]:.0f}',
                f'{by_map["seconds"]:.2f}',
                f'{by_map["ms_per_frame"]:.0f}',
                _render_value(by_map['stream']),
            ]
        )
    text = table(lines)
    map_error = standard_error(results, 'mAP')
    nds_error = standard_error(results, 'NDS')
    if map_error is not None and nds_error is not None:
        text += (
            '\n\nStandard error of a difference between two means of two seeds, from all rows but '
            f'other detectors: {map_error:.3f} mAP, {nds_error:.3f} NDS.'
        )
    return text


def _render_value(value: float | None, digits: int = 0) -> str:
    return '' if value is None else f'{value:.{digits}f}'


def _render_difference(row: dict[str, Any]) -> str:
    if row['difference'] is None or not row['verdict']:
        return ''
    spread = '' if row['spread'] is None else f' ({row["spread"]:.3f})'
    return f'{row["difference"]:+.3f}{spread}'
