#!/usr/bin/env python
"""Train rows of the ablation briefly on the simulated nuScenes and compare them, seed by seed, with
the default."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from mmengine.config import DictAction
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for benchmarks and projects

from benchmarks import report
from benchmarks.ablation.rows import ROWS
from benchmarks.ablation.runs import TrainingSettings, run_all
from benchmarks.ablation.tables import render

ROOT = Path(__file__).parents[1]
EXAMPLES = """examples:
  python tools/ablate.py --list
  python tools/ablate.py --rows default "m = 0" gated        the rest is kept as it was found
  python tools/ablate.py --groups strata fusion --seeds 0 1 2
  python tools/ablate.py --jobs 2                            everything, two trainings at once, one core each

The dataset is the quickstart's (bash tools/quickstart.sh makes it). What is there already is not run again;
interrupted, the command goes on where it stopped. Trainings keep configs, logs and weights in --work.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--list', action='store_true', help='print the rows and stop')
    parser.add_argument('--rows', nargs='+', metavar='NAME', default=[row.name for row in ROWS])
    parser.add_argument('--groups', nargs='+', metavar='NAME', help='all rows of these questions')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1], help='default 0 1')
    parser.add_argument(
        '--iterations', type=int, default=240, help='steps of two frames (default %(default)s)'
    )
    parser.add_argument(
        '--jobs', type=int, default=1, help='trainings at once; they share the cores'
    )
    parser.add_argument(
        '--data', type=Path, default=ROOT / 'data/simulated', help='prepared simulated nuScenes'
    )
    parser.add_argument(
        '--work', type=Path, default=ROOT / 'work_dirs/ablation', help='where they train'
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=ROOT / 'benchmarks/results',
        help='where results are kept, by device',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, help='for every row'
    )
    args = parser.parse_args()
    names, groups = [row.name for row in ROWS], {row.group for row in ROWS}
    for kind, given, known in (('row', args.rows, names), ('question', args.groups or [], groups)):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f'there is no {kind} {unknown[0]!r}; there are {", ".join(sorted(known))}')
    if args.iterations < 20 or args.jobs < 1:
        parser.error('--iterations is at least 20, --jobs at least 1')
    if not args.list and not (args.data / 'nuscenes_dbinfos_train.pkl').is_file():
        parser.error(
            f'{args.data} is no prepared set: bash tools/quickstart.sh makes one, or '
            f'python tools/simulate.py {args.data} and python tools/create_data.py {args.data} --sweeps 4'
        )
    return args


def main() -> int:
    args = parse_args()
    rows = [
        row for row in ROWS if (row.group in args.groups if args.groups else row.name in args.rows)
    ]
    if args.list:
        print('\n'.join(f'{row.group:<10} {row.name:<34} {row.options or ""}' for row in ROWS))
        return 0
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    made = report.environment(device, torch.float32)
    name, place = f'ablation-{args.iterations}', report.place_of(args.out, made)
    kept = place / f'{name}.json'
    results = json.loads(kept.read_text())['results'] if kept.is_file() else []
    done = {(r['row'], r['seed'], r['options']) for r in results}
    todo = [
        (row, seed)
        for seed in args.seeds
        for row in rows
        if (row.name, seed, repr(row.options)) not in done
    ]
    settings = TrainingSettings(
        args.data,
        args.work,
        args.iterations,
        max(1, (os.cpu_count() or 1) // args.jobs),
        args.cfg_options,
    )
    failures = []
    # those of equal time need the pace of the first row
    for part in ([t for t in todo if not t[0].equal_time], [t for t in todo if t[0].equal_time]):
        paces = [r['seconds_per_iteration'] for r in results if r['row'] == ROWS[0].name]
        with tqdm(total=len(part), unit='training', disable=not part) as bar:
            for row, seed, result in run_all(part, settings, min(paces, default=None), args.jobs):
                bar.update()
                if isinstance(result, Exception):
                    failures.append(str(result))
                    tqdm.write(f'FAILED: {result}')
                    continue
                results = [r for r in results if (r['row'], r['seed']) != (row.name, seed)] + [
                    result | dict(commit=made['commit'])
                ]
                results.sort(key=lambda r: [row.name for row in ROWS].index(r['row']))
                report.save(
                    args.out,
                    name,
                    dict(environment=made, results=results),
                    render(results),
                    'ablate.py',
                )
                tqdm.write(
                    f'{row.name}, seed {seed}: mAP {result["mAP"]:.3f}, NDS {result["NDS"]:.3f}'
                )
    print(f'\n{render(results)}\n\nkept in {place}' if results else 'no result yet')
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
