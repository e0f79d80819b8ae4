"""Train and score rows in separate processes, several at once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean, median
from threading import Lock
from typing import Any, NamedTuple

from mmengine.config import Config

from benchmarks.ablation.costs import bev_gflop, stream_ms
from benchmarks.ablation.recipes import paste_on_ground
from benchmarks.ablation.rows import ROWS, Row
from stratified3d.evaluation.heading import axis_errors
from stratified3d.evaluation.occlusion import occluded_ap

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'benchmarks/ablation/configs/ablation.py'
PLAIN = 'nuscenes'  # the sensor of the quickstart's world
WARM_UP = 10  # steps before a training is timed
STREAMED = ('default', 'memory')  # groups whose detectors also run on a stream of frames
TIMED = 20  # steps that are timed to learn the pace of a training
# one thread at a time may read a config, because that changes sys.path and os.environ
_READING = Lock()


class TrainingSettings(NamedTuple):
    """data: prepared dataset; work: folder of trainings; iterations: steps of the default; threads:
    of each process; jobs: trainings at a time; options: more settings of every config."""

    data: Path
    work: Path
    iterations: int
    threads: int
    jobs: int = 1
    options: dict[str, Any] = {}


def read_world(data: Path) -> dict[str, Any]:
    """Settings of a simulated dataset: its version, sensor, and others."""
    return {'sensor': PLAIN, **json.loads((data / 'simulation.json').read_text())}


def name_results(settings: TrainingSettings) -> str:
    """The name of the results of such trainings, for their files and their folder of work."""
    name = f'ablation-{settings.iterations}'
    sensor = read_world(settings.data)['sensor']
    if sensor != PLAIN:
        name += f'-{sensor}'
    if settings.options:
        text = repr(sorted(settings.options.items()))
        name += f'-{hashlib.sha256(text.encode()).hexdigest()[:8]}'
    return name


def _describe(row: Row) -> dict[str, str]:
    """What an entry of the results says of its row's definition."""
    change = ''
    if row.change is not None:
        call = row.change if isinstance(row.change, partial) else partial(row.change)
        change = f'{call.func.__name__}{call.args}{call.keywords}'
    return dict(options=repr(row.options), change=change)


def is_result_of(row: Row, entry: dict[str, Any] | None) -> bool:
    """Whether an entry is of the row as it is defined now.

    Entries that are older than the record of changes count as of the same change.
    """
    return entry is not None and all(
        entry.get(key, value) == value for key, value in _describe(row).items()
    )


def make_config(row: Row, seed: int, settings: TrainingSettings, iterations: int) -> Config:
    """The complete config of one training."""
    with _READING, _environment(NUSCENES_ROOT=str(settings.data.resolve())):
        config = Config.fromfile(CONFIG)
        row.apply(config)
    if read_world(settings.data)['sensor'] != PLAIN:
        paste_on_ground(config)
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
    """Set environment variables, which configs read, within the block."""
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
    """The folder where a row trains."""
    folder = ''.join(c if c.isalnum() or c in '.=' else '_' for c in name)
    return settings.work / folder / f'seed{seed}'


def train(
    row: Row, seed: int, settings: TrainingSettings, iterations: int, score: bool = True
) -> dict[str, Any]:
    """Train from random weights and score, in a separate process.

    Args:
        score: False stops after the last step, to learn how fast the steps are.
    Returns:
        seconds_per_iteration (median), and with score: mAP, NDS, AP {class: value}, errors {name:
        value}, heading and axis (rad, orientation error of cars and the same modulo pi),
        car_velocity (m/s, velocity error of cars), occluded_mAP (of the objects that are mostly
        hidden), ms_per_frame (mean of a detection).
    Raises:
        RuntimeError: the training failed; names its log.
    """
    folder = folder_of(row.name, seed, settings)
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(row, seed, settings, iterations)
    if not score:
        config.train_cfg.val_begin = iterations + 1
        config.default_hooks.pop('checkpoint')
    config.dump(folder / 'config.py')
    status = _run_training(folder, settings.threads)
    if status:
        raise RuntimeError(
            f'{row.name}, seed {seed}: training ended with status {status}; '
            f'see {folder / "log.txt"}'
        )

    scalars = max(folder.glob('*/vis_data/scalars.json'), key=os.path.getmtime)
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    times = [line['time'] for line in lines if 'loss' in line and line['step'] > WARM_UP]
    result = dict(seconds_per_iteration=round(median(times), 3))
    if score:
        result |= _read_score(folder, settings.data, evaluation=lines[-1])
    return result


def _run_training(folder: Path, threads: int) -> int:
    """Run tools/train.py with folder/config.py; returns its exit status."""
    paths = [str(ROOT), os.environ.get('PYTHONPATH')]
    environment = dict(
        os.environ,
        OMP_NUM_THREADS=str(threads),
        PYTHONPATH=os.pathsep.join(filter(None, paths)),
    )
    command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools/train.py')]
    with (folder / 'log.txt').open('w') as log:
        process = subprocess.run(
            [*command, 'config.py', '--work-dir', '.'],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    return process.returncode


def _read_score(folder: Path, data: Path, evaluation: dict[str, float]) -> dict[str, Any]:
    """The scores that the devkit wrote, and the time from the log line of the evaluation."""
    results = folder / 'results/pred_instances_3d'
    metrics = json.loads((results / 'metrics_summary.json').read_text())
    submission = (data, read_world(data)['version'], results / 'results_nusc.json')
    try:
        axis = axis_errors(*submission)['car']
        occluded = mean(occluded_ap(*submission).values())
    except ValueError:  # nothing was found
        axis, occluded = None, 0.0
    seconds = evaluation['time'] - evaluation['data_time']
    return dict(
        mAP=metrics['mean_ap'],
        NDS=metrics['nd_score'],
        AP=metrics['mean_dist_aps'],
        errors=metrics['tp_errors'],
        heading=metrics['label_tp_errors']['car']['orient_err'],
        car_velocity=metrics['label_tp_errors']['car']['vel_err'],
        axis=axis,
        occluded_mAP=occluded,
        ms_per_frame=round(1e3 * seconds, 1),
    )


def _iterations_of_equal_time(row: Row, seed: int, settings: TrainingSettings) -> int:
    """Steps that a row makes in the time of the default's, by a short trial of both.

    A pace that was stored would be that of other threads, neighbors or code.
    """
    trials = settings._replace(work=folder_of(row.name, seed, settings) / 'pace')
    pace, own = (
        train(each, seed, trials, WARM_UP + TIMED, score=False)['seconds_per_iteration']
        for each in (ROWS[0], row)
    )
    return max(1, round(settings.iterations * pace / own))


def measure(row: Row, seed: int, settings: TrainingSettings) -> dict[str, Any]:
    """One entry of the results: what was trained, for how long, and its score."""
    iterations = settings.iterations
    if row.equal_time:
        iterations = _iterations_of_equal_time(row, seed, settings)
    result = train(row, seed, settings, iterations)
    config = make_config(row, seed, settings, iterations)
    gflop = bev_gflop(config)
    stream = stream_ms(config) if row.group in STREAMED else None
    return dict(
        row=row.name,
        group=row.group,
        seed=seed,
        iterations=iterations,
        **_describe(row),
        cfg_options=repr(settings.options),
        data=read_world(settings.data),
        threads=settings.threads,
        jobs=settings.jobs,
        bev_gflop=None if gflop is None else round(gflop, 1),
        stream_ms_per_frame=None if stream is None else round(stream, 1),
        **result,
    )


def run_all(
    todo: list[tuple[Row, int]], settings: TrainingSettings
) -> Iterator[tuple[Row, int, dict[str, Any] | BaseException]]:
    """Measure (row, seed) pairs; yields each result or exception as it comes."""
    with ThreadPoolExecutor(settings.jobs) as pool:
        running = {}
        for row, seed in todo:
            running[pool.submit(measure, row, seed, settings)] = (row, seed)
        try:
            for future in as_completed(running):
                row, seed = running[future]
                yield row, seed, future.exception() or future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
