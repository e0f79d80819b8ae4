"""Results as a table: each row against the first with the same seeds, and whether that is more than chance."""
from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from projects.attention_zoo.benchmarks.report import table


def compare(results: Sequence[dict[str, Any]], score: str = 'NDS') -> list[dict[str, Any]]:
    """One dict a row: its mean score, the mean difference to the first row over the seeds that both ran, the spread and
    a verdict.

    The spread is the wider of the two rows' ranges over seeds. A difference that does not exceed it is none, nor is one
    of a single seed.
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
        spread = max((max(x) - min(x) for x in (own, base)), default=0.0) if len(shared) > 1 else None
        if seeds is first:
            verdict = ''
        elif spread is None:
            verdict = 'too few seeds'
        elif abs(difference) <= spread:
            verdict = 'no difference'
        else:
            verdict = 'better' if difference > 0 else 'worse'
        some = next(iter(seeds.values()))
        found.append(dict(
            row=name, group=some['group'], seeds=len(seeds), mAP=mean(r['mAP'] for r in seeds.values()),
            NDS=mean(r['NDS'] for r in seeds.values()), car=mean(r['AP']['car'] for r in seeds.values()),
            difference=difference, spread=spread, verdict=verdict,
            iterations=mean(r['iterations'] for r in seeds.values()),
            seconds=mean(r['seconds_per_iteration'] for r in seeds.values()),
            ms_per_frame=mean(r['ms_per_frame'] for r in seeds.values())))
    return found


def render(results: Sequence[dict[str, Any]]) -> str:
    """The markdown table."""
    head = ['row', 'question', 'seeds', 'mAP', 'NDS', 'car AP', 'NDS against default', 'spread', 'verdict', 'steps',
            's a step', 'ms a frame']
    lines = [[r['row'], r['group'], str(r['seeds']), f'{r["mAP"]:.3f}', f'{r["NDS"]:.3f}', f'{r["car"]:.3f}',
              '' if not r['verdict'] or r['difference'] is None else f'{r["difference"]:+.3f}',
              '' if r['spread'] is None else f'{r["spread"]:.3f}', r['verdict'], f'{r["iterations"]:.0f}',
              f'{r["seconds"]:.2f}', f'{r["ms_per_frame"]:.0f}'] for r in compare(results)]
    return table([head, *lines])
