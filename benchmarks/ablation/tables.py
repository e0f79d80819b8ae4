"""Tables of results: each row against the default with the same seeds, and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, variance
from typing import Any

from scipy.special import stdtrit

from benchmarks.report import table

OWN_VARIANCE = 4  # seeds from which a row's own variance counts
HEAD = (
    'row',
    'question',
    'seeds',
    'mAP',
    'against {}',
    'verdict',
    'NDS',
    'against {}',
    'verdict',
    'car AP',
    'car heading, axis (rad)',
    'velocity, of cars (m/s)',
    'occluded AP',
    'BEV GFLOP',
    'steps',
    's per step',
    'ms per frame',
    'ms per frame of a stream',
)


def compare(
    results: Sequence[dict[str, Any]], score: str = 'NDS', against: str | None = None
) -> list[dict[str, Any]]:
    """One dict per row: means over its seeds, and its difference from one row (default: the first).

    The difference is the mean over the seeds that both rows share, and `error` its standard error,
    both None where there are too few seeds. The variance is that of the row's own differences from
    `OWN_VARIANCE` seeds on, else the one of all rows with several seeds together; rows of other
    detectors are kept apart from ours, because their variance differs. `degrees` are the degrees of
    freedom of the variance. The verdict is that of a two-sided t-test at 95 %: of rows that do not
    differ, at most one in twenty is called better or worse.
    """
    rows: dict[str, dict[int, dict]] = {}
    for result in results:
        rows.setdefault(result['row'], {})[result['seed']] = result
    base = rows[against or next(iter(rows))]
    groups = {name: next(iter(seeds.values()))['group'] for name, seeds in rows.items()}
    differences = {
        name: [
            seeds[seed][score] - base[seed][score] for seed in sorted(seeds.keys() & base.keys())
        ]
        for name, seeds in rows.items()
        if seeds is not base
    }
    compared = []
    for name, seeds in rows.items():
        alike = [
            values
            for other, values in differences.items()
            if (groups[other] == 'detector') == (groups[name] == 'detector')
        ]
        own = differences.get(name, [])
        difference = mean(own) if own else None
        error, degrees = _standard_error(own, alike)
        compared.append(
            dict(
                row=name,
                group=groups[name],
                difference=difference,
                error=error,
                degrees=degrees,
                verdict='' if seeds is base else _verdict(difference, error, degrees),
                **_means(list(seeds.values())),
            )
        )
    return compared


def _means(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the table shows of a row's results."""
    return dict(
        seeds=len(results),
        mAP=mean(result['mAP'] for result in results),
        NDS=mean(result['NDS'] for result in results),
        car=mean(result['AP']['car'] for result in results),
        angles=[_mean_of(results, name) for name in ('heading', 'axis')],
        velocities=[
            _mean_of([result.get('errors', {}) for result in results], 'vel_err'),
            _mean_of(results, 'car_velocity'),
        ],
        occluded=_mean_of(results, 'occluded_mAP'),
        gflop=_mean_of(results, 'bev_gflop'),
        iterations=mean(result['iterations'] for result in results),
        seconds=mean(result['seconds_per_iteration'] for result in results),
        ms_per_frame=mean(result['ms_per_frame'] for result in results),
        stream=_mean_of(results, 'stream_ms_per_frame'),
    )


def _mean_of(results: Sequence[dict[str, Any]], name: str) -> float | None:
    """Mean over the results that have such a value; None where none has."""
    values = [result[name] for result in results if result.get(name) is not None]
    return mean(values) if values else None


def _standard_error(own: list[float], alike: list[list[float]]) -> tuple[float | None, float]:
    """Of the mean of a row's differences, None without a variance, and its degrees of freedom.

    All rows are compared with the same trainings, so the differences of two rows with the same seed
    correlate by a half: that leaves k rows fewer degrees of freedom than k times those of one.

    Args:
        own: one difference per seed; alike: those of all rows whose variance is taken as equal.
    """
    several = [own] if len(own) >= OWN_VARIANCE else [row for row in alike if len(row) > 1]
    if not own or not several:
        return None, 0.0
    degrees = sum(len(row) - 1 for row in several)
    pooled = sum(variance(row) * (len(row) - 1) for row in several) / degrees
    # the variance of a mean of k estimates whose squares correlate by a quarter (Satterthwaite)
    return (pooled / len(own)) ** 0.5, degrees / (1 + (len(several) - 1) / 4)


def _verdict(difference: float | None, error: float | None, degrees: float) -> str:
    if difference is None or error is None:
        return 'too few seeds'
    if abs(difference) <= stdtrit(degrees, 0.975) * error:
        return 'no difference'
    return 'better' if difference > 0 else 'worse'


def render(results: Sequence[dict[str, Any]], against: str | None = None) -> str:
    """Markdown table; differences from one row have their standard error in brackets."""
    name = against or results[0]['row']
    lines: list[Sequence[str]] = [[title.format(name) for title in HEAD]]
    for by_map, by_nds in zip(*(compare(results, score, name) for score in ('mAP', 'NDS'))):
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
                ', '.join(_render_value(angle, 2) for angle in by_map['angles']),
                ', '.join(_render_value(error, 2) for error in by_map['velocities'] if error),
                _render_value(by_map['occluded'], 3),
                _render_value(by_map['gflop']),
                f'{by_map["iterations"]:.0f}',
                f'{by_map["seconds"]:.2f}',
                f'{by_map["ms_per_frame"]:.0f}',
                _render_value(by_map['stream']),
            ]
        )
    return table(lines)


def _render_value(value: float | None, digits: int = 0) -> str:
    return '' if value is None else f'{value:.{digits}f}'


def _render_difference(row: dict[str, Any]) -> str:
    if row['difference'] is None or not row['verdict']:
        return ''
    error = '' if row['error'] is None else f' ({row["error"]:.3f})'
    return f'{row["difference"]:+.3f}{error}'
