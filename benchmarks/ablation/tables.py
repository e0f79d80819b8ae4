"""Results as a table: each row against the first with the same seeds, and whether that is more than
chance."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, variance
from typing import Any

from benchmarks.report import table


def compare(results: Sequence[dict[str, Any]], score: str = 'NDS') -> list[dict[str, Any]]:
    """One dict a row: its mean score, the mean difference to the first row over the seeds that both
    ran, the spread and a verdict.

    The spread is the wider of the two rows' ranges over seeds. A difference that does not exceed it
    is none, nor is one of a single seed.
    """
    rows: dict[str, dict[int, dict]] = {}
    for result in results:
        rows.setdefault(result['row'], {})[result['seed']] = result
    first = next(iter(rows.values()))
    found = []
    for name, seeds in rows.items():
        shared = sorted(seeds.keys() & first.keys())
        own, base = ([side[s][score] for s in shared] for side in (seeds, first))
        difference = mean(a - b for a, b in zip(own, base)) if shared else None
        spread = (
            max((max(x) - min(x) for x in (own, base)), default=0.0) if len(shared) > 1 else None
        )
        if seeds is first:
            verdict = ''
        elif spread is None:
            verdict = 'too few seeds'
        elif abs(difference) <= spread:
            verdict = 'no difference'
        else:
            verdict = 'better' if difference > 0 else 'worse'
        some = next(iter(seeds.values()))
        found.append(
            dict(
                row=name,
                group=some['group'],
                seeds=len(seeds),
                mAP=mean(r['mAP'] for r in seeds.values()),
                NDS=mean(r['NDS'] for r in seeds.values()),
                car=mean(r['AP']['car'] for r in seeds.values()),
                difference=difference,
                spread=spread,
                verdict=verdict,
                iterations=mean(r['iterations'] for r in seeds.values()),
                seconds=mean(r['seconds_per_iteration'] for r in seeds.values()),
                ms_per_frame=mean(r['ms_per_frame'] for r in seeds.values()),
            )
        )
    return found


def standard_error(
    results: Sequence[dict[str, Any]], score: str = 'NDS', seeds: int = 2
) -> float | None:
    """Of a difference between the means of two rows of so many seeds each, from the variance over
    seeds of all rows that have some; the rows of other detectors vary otherwise and are left out.
    None without such rows."""
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
    """The markdown table; differences to the first row with the spread in brackets; the standard
    error below."""
    head = [
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
        'steps',
        's a step',
        'ms a frame',
    ]
    by_score = [compare(results, score) for score in ('mAP', 'NDS')]
    lines = []
    for pair in zip(*by_score):
        row = pair[0]
        scores = [
            cell
            for score, r in zip(('mAP', 'NDS'), pair)
            for cell in (f'{r[score]:.3f}', _gap(r), r['verdict'])
        ]
        lines.append(
            [
                row['row'],
                row['group'],
                str(row['seeds']),
                *scores,
                f'{row["car"]:.3f}',
                f'{row["iterations"]:.0f}',
                f'{row["seconds"]:.2f}',
                f'{row["ms_per_frame"]:.0f}',
            ]
        )
    text = table([head, *lines])
    errors = [standard_error(results, score) for score in ('mAP', 'NDS')]
    if None not in errors:
        text += (
            '\n\nStandard error of a difference between two means of two seeds, from all rows but other '
            f'detectors: {errors[0]:.3f} mAP, {errors[1]:.3f} NDS.'
        )
    return text


def _gap(row: dict[str, Any]) -> str:
    if row['difference'] is None or not row['verdict']:
        return ''
    return f'{row["difference"]:+.3f}' + (
        '' if row['spread'] is None else f' ({row["spread"]:.3f})'
    )
