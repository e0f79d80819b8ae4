"""Train and score rows in processes of their own, several at once; results are kept one by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from threading import Lock
from typing import Any, NamedTuple

import stratified3d.plugin  # noqa: F401  (registers the parts of configs)

# isort: split
from mmengine.config import Config

from benchmarks.ablation.rows import Row

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'benchmarks/ablation/configs/ablation.py'
# steps that a training needs to find its pace, and those that are timed then
WARM_UP, TIMED = 10, 20
# reading a config is not for several threads at once: it changes sys.path meanwhile
_READING = Lock()


class TrainingSettings(NamedTuple):
    """data: prepared set; work: folder for trainings; iterations: of the first row; threads: of
    each process; options: more settings of every config."""

    data: Path
    work: Path
    iterations: int
    threads: int
    options: dict[str, Any] = {}


def make_config(row: Row, seed: int, settings: TrainingSettings, iterations: int) -> Config:
    """The whole config of one training."""
    with _READING, _environment(NUSCENES_ROOT=str(settings.data.resolve())):
        config = Config.fromfile(CONFIG)
        row.apply(config)
    folder = folder_of(row.name, seed, settings)
    for name in ('val_evaluator', 'test_evaluator'):
        config[name].jsonfile_prefix = str(folder / 'results')
    for scheduler in config.param_scheduler:
        scheduler.total_steps = iterations
    config.train_cfg.update(max_iters=iterations, val_interval=iterations)
    config.default_hooks.checkpoint.interval = iterations
    config.randomness.seed = seed
    config.merge_from_dict(settings.options)
    return config


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Environment variables that configs read, until the block ends."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def folder_of(name: str, seed: int, settings: TrainingSettings) -> Path:
    """Where a row trains."""
    return (
        settings.work
        / ''.join(c if c.isalnum() or c in '.=' else '_' for c in name)
        / f'seed{seed}'
    )


def train(
    row: Row, seed: int, settings: TrainingSettings, iterations: int, score: bool = True
) -> dict[str, Any]:
    """Train from random weights and score, in a process of its own.

    Args:
        score: False stops after the last step, to learn how fast the steps are.
    Returns:
        seconds_per_iteration (median), and with score: mAP, NDS, AP {class: value}, errors {name:
        value}, ms_per_frame (a detection, in the mean).
    Raises:
        RuntimeError: it failed; names its log.
    """
    folder = folder_of(row.name, seed, settings)
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(row, seed, settings, iterations)
    if not score:
        config.train_cfg.val_begin = iterations + 1
        config.default_hooks.pop('checkpoint')
    config.dump(folder / 'config.py')
    log = folder / 'log.txt'
    environment = {
        **os.environ,
        'OMP_NUM_THREADS': str(settings.threads),
        'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])),
    }
    with log.open('w') as out:
        status = subprocess.run(
            [
                sys.executable,
                '-W',
                'ignore',
                str(ROOT / 'tools/train.py'),
                'config.py',
                '--work-dir',
                '.',
            ],
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
        ).returncode
    if status:
        raise RuntimeError(
            f'{row.name}, seed {seed}: training ended with status {status}; see {log}'
        )
    scalars = max(folder.glob('*/vis_data/scalars.json'), key=os.path.getmtime)
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    times = [line['time'] for line in lines if 'loss' in line and line['step'] > WARM_UP]
    result = dict(seconds_per_iteration=round(median(times), 3))
    if score:
        metrics = json.loads(
            (folder / 'results/pred_instances_3d/metrics_summary.json').read_text()
        )
        last = lines[-1]  # of the evaluation
        result |= dict(
            mAP=metrics['mean_ap'],
            NDS=metrics['nd_score'],
            AP=metrics['mean_dist_aps'],
            errors=metrics['tp_errors'],
            ms_per_frame=round(1e3 * (last['time'] - last['data_time']), 1),
        )
    return result


def measure(row: Row, seed: int, settings: TrainingSettings, pace: float | None) -> dict[str, Any]:
    """One entry of the results: what was trained, for how long, and its score.

    Args:
        pace: seconds per step of the first row, for rows that run equally long.
    """
    iterations = settings.iterations
    if row.equal_time:
        if pace is None:
            raise ValueError(
                f'{row.name} runs as long as the first row, which has no result yet; run that one first'
            )
        own = train(row, seed, settings, WARM_UP + TIMED, score=False)['seconds_per_iteration']
        iterations = max(1, round(settings.iterations * pace / own))
    found = train(row, seed, settings, iterations)
    return dict(
        row=row.name,
        group=row.group,
        seed=seed,
        iterations=iterations,
        options=repr(row.options),
        **found,
    )


def run_all(
    todo: list[tuple[Row, int]], settings: TrainingSettings, pace: float | None, jobs: int
) -> Iterator[tuple[Row, int, dict[str, Any] | Exception]]:
    """Measure (row, seed) pairs, `jobs` at a time; yields each as it ends, a failure as its
    exception."""
    with ThreadPoolExecutor(jobs) as pool:
        running = {
            pool.submit(measure, row, seed, settings, pace): (row, seed) for row, seed in todo
        }
        try:
            for future in as_completed(running):
                row, seed = running[future]
                yield row, seed, future.exception() or future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
