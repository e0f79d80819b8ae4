#!/usr/bin/env python
"""Train variants of the detector briefly on simulated nuScenes, and compare them seed by seed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for benchmarks and projects

from stratified3d.commands import begin_command

begin_command('ablate.py', 'rerun the same command to resume')

import torch
from tqdm import tqdm

from benchmarks import report
from benchmarks.ablation.rows import ROWS, Row
from benchmarks.ablation.runs import (
    TrainingSettings,
    is_result_of,
    name_results,
    read_world,
    run_all,
)
from benchmarks.ablation.tables import render
from stratified3d.config_options import ConfigOptions

ROOT = Path(__file__).parents[1]
DEFAULT = ROWS[0]
EXAMPLES = """examples:
  python tools/ablate.py --list
  python tools/ablate.py --rows default "m = 0" gated      results of other rows stay as they are
  python tools/ablate.py --groups strata fusion --seeds 0 1 2
  python tools/ablate.py --rows "m = 0" "offset 0" --against "m = 0"
  python tools/ablate.py --jobs 2                          all rows, two trainings at a time
  python tools/ablate.py --data data/mixed                 simulated with --sensor mixed

bash tools/quickstart.sh creates the dataset. Rows that have a result are skipped: rerun the same
command to resume after an interruption. Other --cfg-options have results of their own. Configs,
logs and weights are in --work.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--list', action='store_true', help='print all rows and exit')
    parser.add_argument(
        '--rows',
        nargs='+',
        metavar='NAME',
        default=[row.name for row in ROWS],
        help='rows to train (default: all)',
    )
    parser.add_argument(
        '--groups', nargs='+', metavar='NAME', help='train all rows of these groups'
    )
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=[0, 1], help='one training each (default: 0 1)'
    )
    parser.add_argument(
        '--against',
        metavar='NAME',
        default=DEFAULT.name,
        help='the row that the table compares the others with (default: %(default)s)',
    )
    parser.add_argument(
        '--iterations', type=int, default=240, help='steps of two frames (default: %(default)s)'
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=1,
        help='trainings at a time; they share the cores (default: %(default)s)',
    )
    _add_folders(parser)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        default={},
        help='settings of the config for every row, as key=value',
    )
    args = parser.parse_args()
    problem = check_args(args)
    if problem:
        parser.error(problem)
    return args


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--data',
        type=Path,
        default=ROOT / 'data/simulated',
        help='prepared simulated nuScenes (default: data/simulated)',
    )
    parser.add_argument(
        '--work',
        type=Path,
        default=ROOT / 'work_dirs/ablation',
        help='folder of the trainings (default: work_dirs/ablation)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=ROOT / 'benchmarks/results',
        help='results go to OUT/<device>/ (default: benchmarks/results)',
    )


def check_args(args: argparse.Namespace) -> str | None:
    """What is wrong with the arguments, or None."""
    names = {row.name for row in ROWS}
    groups = {row.group for row in ROWS}
    for kind, given, known in (
        ('row', [*args.rows, args.against], names),
        ('group', args.groups or [], groups),
    ):
        for name in given:
            if name not in known:
                return f'there is no {kind} {name!r}; there are {", ".join(sorted(known))}'
    if args.iterations < 20:
        return f'--iterations must be at least 20, not {args.iterations}'
    if args.jobs < 1:
        return f'--jobs must be at least 1, not {args.jobs}'
    needed = ('nuscenes_dbinfos_train.pkl', 'simulation.json')
    if not args.list and not all((args.data / name).is_file() for name in needed):
        return (
            f'{args.data} is not a prepared dataset: create one by bash tools/quickstart.sh, or by '
            f'python tools/simulate.py {args.data} and '
            f'python tools/create_data.py {args.data} --sweeps 4'
        )
    return None


class Results:
    """Results by device and number of steps; written to disk after each training.

    Args:
        out: folder of all devices.
        settings: of the trainings; other sensors than nuScenes' and other settings of the config
            have results of their own.
        against: row that the table compares the others with, once it has a result.
    Raises:
        ValueError: the results there are of another dataset.
    """

    def __init__(self, out: Path, settings: TrainingSettings, against: str = DEFAULT.name):
        device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        self.against = against
        self.name = name_results(settings)
        self.environment = report.environment(device, torch.float32)
        self.out = report.keep_out_of_results(out, self.environment)
        self.folder = report.folder_of(self.out, self.environment)
        path = self.folder / f'{self.name}.json'
        self.entries = json.loads(path.read_text())['results'] if path.is_file() else []
        world = read_world(settings.data)
        for entry in self.entries:
            if entry.get('data', world) != world:
                raise ValueError(
                    f'{path} has results of another dataset, {entry["data"]}, but {settings.data} '
                    f'is {world}: give another folder as --out, or move that file away'
                )

    def missing(self, rows: list[Row], seeds: list[int]) -> list[tuple[Row, int]]:
        """(row, seed) pairs without a result of the row's present options and change."""
        done = {(entry['row'], entry['seed']): entry for entry in self.entries}
        pairs = [(row, seed) for seed in seeds for row in rows]
        return [
            (row, seed) for row, seed in pairs if not is_result_of(row, done.get((row.name, seed)))
        ]

    def add(self, row: Row, seed: int, result: dict[str, Any]) -> None:
        """Add a result in the order of the rows, in place of an older one, and write all."""
        entry = dict(result, commit=self.environment['commit'])
        others = [e for e in self.entries if (e['row'], e['seed']) != (row.name, seed)]
        order = {row.name: i for i, row in enumerate(ROWS)}
        # rows that no longer exist come last
        self.entries = sorted([*others, entry], key=lambda e: order.get(e['row'], len(order)))
        content = dict(environment=self.environment, results=self.entries)
        report.save(self.out, self.name, content, self.table(), 'ablate.py')

    def table(self) -> str:
        """Markdown table of all results."""
        is_there = any(entry['row'] == self.against for entry in self.entries)
        return render(self.entries, self.against if is_there else None)


def train_rows(
    pairs: list[tuple[Row, int]], results: Results, settings: TrainingSettings
) -> list[str]:
    """Train (row, seed) pairs; returns the messages of those that failed."""
    failures = []
    with tqdm(total=len(pairs), unit='training', disable=not pairs) as bar:
        for row, seed, result in run_all(pairs, settings):
            bar.update()
            if isinstance(result, BaseException):
                failures.append(str(result))
                tqdm.write(f'FAILED: {result}')
                continue
            results.add(row, seed, result)
            scores = f'mAP {result["mAP"]:.3f}, NDS {result["NDS"]:.3f}'
            tqdm.write(f'{row.name}, seed {seed}: {scores}')
    return failures


def main() -> int:
    args = parse_args()
    if args.list:
        for row in ROWS:
            print(f'{row.group:<10} {row.name:<34} {row.options or ""}')
        return 0

    rows = [row for row in ROWS if row.name in args.rows]
    if args.groups:
        rows = [row for row in ROWS if row.group in args.groups]
    settings = TrainingSettings(
        args.data,
        args.work,
        args.iterations,
        threads=max(1, (os.cpu_count() or 1) // args.jobs),
        jobs=args.jobs,
        options=args.cfg_options,
    )
    try:
        results = Results(args.out, settings, args.against)
    except ValueError as error:
        print(f'ablate.py: {error}', file=sys.stderr)
        return 2
    settings = settings._replace(work=args.work / results.name)
    failures = train_rows(results.missing(rows, args.seeds), results, settings)
    if results.entries:
        print(f'\n{results.table()}\n\nwritten to {results.folder}')
    else:
        print('no result yet')
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
