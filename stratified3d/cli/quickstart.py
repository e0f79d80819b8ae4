"""Simulate a small nuScenes, train the tiny detector on it from random weights, score it officially
and draw it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from stratified3d.commands import command_parser, environment_of_step
from stratified3d.config_options import ConfigOptions
from stratified3d.resumable import LineRecord, acquire_folder, describe_error
from stratified3d.shipped import find_shipped, shipped_root

CONFIG = 'stratified3d::quickstart/quickstart.py'
WEIGHTS = 'stratified3d::quickstart/any-sensor.safetensors'
SCORES = 'results/pred_instances_3d/metrics_summary.json'  # in the folder of the results
EXAMPLES = """examples:
  {prog}                 everything; interrupted, it resumes when rerun
  {prog} --fresh         from the beginning
  {prog} --seed 1 --out work_dirs/quickstart_seed1
  {prog} --pretrained --out work_dirs/quickstart_pretrained

In the repository `bash tools/quickstart.sh` sets up the environment first.
"""


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = command_parser(prog, __doc__, EXAMPLES)
    parser.add_argument(
        '--fresh', action='store_true', help='delete the data and the results first'
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='of weights, augmentation and order (not of the data)'
    )
    parser.add_argument('--pretrained', action='store_true', help=f'train on from {WEIGHTS}')
    parser.add_argument(
        '--data', type=Path, default=Path('data/simulated'), help='where the dataset goes'
    )
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/quickstart'), help='where the results go'
    )
    parser.add_argument('--scenes', default='8+2', help='training + validation scenes')
    parser.add_argument('--keyframes', type=int, default=20, help='per scene')
    parser.add_argument(
        '--cfg-options', nargs='*', default=[], help='passed on to training and testing'
    )
    return parser


class Steps:
    """Named steps; a finished one is recorded with its seconds and skipped when rerun.

    A step that runs again, because what it makes is gone, makes those after it run again as well.

    Args:
        folder: of the results.
        settings: of the run; results of other settings are refused.
    """

    def __init__(self, folder: Path, settings: dict):
        try:
            acquire_folder(folder, settings, 'steps.json')
        except (OSError, ValueError) as error:
            sys.exit(f'quickstart: {describe_error(error)} (take --fresh or another --out)')
        self._finished = LineRecord(folder / 'steps.jsonl')
        self.seconds: dict[str, float] = {}
        for line in self._finished.lines:
            self._note(json.loads(line))

    def _note(self, step: dict[str, float | None]) -> None:
        """Note the seconds of a finished step; None undoes it and all that came after it."""
        for name, seconds in step.items():
            if seconds is not None:
                self.seconds[name] = seconds
                continue
            names = list(self.seconds)
            for later in names[names.index(name) :]:
                del self.seconds[later]

    def _record(self, step: dict[str, float | None]) -> None:
        self._finished.append(json.dumps(step))
        self._note(step)

    def run(self, name: str, makes: Path, script: str, *arguments: object) -> None:
        """Run a script of tools/ unless the step is finished and what it makes is still there."""
        is_finished = name in self.seconds
        if is_finished and makes.exists():
            print(f'== {name}: done before, in {self.seconds[name]:.0f} s')
            return
        print(f'== {name}{f" again: {makes} is gone" if is_finished else ""}', flush=True)
        if is_finished:
            self._record({name: None})
        begin = time.monotonic()
        call(script, *arguments)
        self._record({name: round(time.monotonic() - begin, 1)})


def remove(folder: Path, mark: str) -> None:
    """Delete a folder of an earlier run, which contains the mark of such a run."""
    if folder.exists() and any(folder.iterdir()) and not (folder / mark).is_file():
        sys.exit(
            f'quickstart: --fresh does not delete {folder}: it was not made by a quickstart (it '
            f'has no {mark})'
        )
    shutil.rmtree(folder, ignore_errors=True)


def call(script: str, *arguments: object) -> None:
    tool = Path(shipped_root(), 'tools', script)
    command = [sys.executable, '-W', 'ignore', str(tool), *map(str, arguments)]
    child = subprocess.Popen(command, env=environment_of_step())
    try:
        status = child.wait()
    except KeyboardInterrupt:
        child.wait()  # Ctrl-C reaches it, too
        raise
    if status:
        sys.exit(
            f'quickstart: {" ".join(command[3:])} ended with status {status}; the lines above say '
            'why. Rerun the same command to resume with this step.'
        )


def parse_args(arguments: list[str], prog: str) -> argparse.Namespace:
    """Refuse what cannot be before the folder of the results records its settings."""
    from stratified3d.cli.simulate import parse_scenes
    from stratified3d.simulation import NuScenesSettings

    parser = make_parser(prog)
    args = parser.parse_args(arguments)
    try:
        train, val = parse_scenes(args.scenes)
        NuScenesSettings(train=train, val=val, keyframes=args.keyframes).check()
    except (argparse.ArgumentTypeError, ValueError) as error:
        parser.error(str(error))
    if not train or not val:
        parser.error(f'--scenes {args.scenes}: one scene to train on and one to score at least')
    read_options = ConfigOptions(['--cfg-options'], 'checked')
    read_options(parser, argparse.Namespace(), args.cfg_options, '--cfg-options')
    return args


def main(arguments: list[str], prog: str) -> int:
    args = parse_args(arguments, prog)
    data = args.data.resolve()
    out = args.out.resolve()
    if args.fresh:
        remove(data, 'simulation.json')
        remove(out, 'steps.json')
    settings = dict(
        seed=args.seed,
        scenes=args.scenes,
        keyframes=args.keyframes,
        data=str(data),
        options=args.cfg_options,
        pretrained=args.pretrained,
    )
    steps = Steps(out, settings)
    run_steps(args, steps, data, out)
    report(data, out, steps)
    return 0


def run_steps(args: argparse.Namespace, steps: Steps, data: Path, out: Path) -> None:
    """Simulate, prepare, train, test and draw."""
    os.environ['NUSCENES_ROOT'] = str(data)  # the config of every step reads it
    options = [
        '--cfg-options',
        f'val_evaluator.jsonfile_prefix={out}/results',
        f'test_evaluator.jsonfile_prefix={out}/results',
        f'randomness.seed={args.seed}',
        *args.cfg_options,
    ]
    scenes = ['--scenes', args.scenes, '--keyframes', args.keyframes]
    steps.run('simulate', data / 'simulation.json', 'simulate.py', data, *scenes)
    infos = data / 'nuscenes_infos_val.pkl'
    workers = ['--sweeps', 4, '--workers', os.cpu_count()]
    steps.run('prepare', infos, 'create_data.py', data, *workers)

    config = find_shipped(CONFIG)
    work_dir = ['--work-dir', out]
    # without a checkpoint --resume would leave out the weights of --pretrained
    resume = ['--resume'] if any(out.glob('*.pth')) else []
    # the next step scores: no need to do so after the last epoch as well
    training = [*options, 'train_cfg.val_begin=1000000']
    if args.pretrained:
        training.append(f'load_from={find_shipped(WEIGHTS)}')
    steps.run('train', last_checkpoint(out), 'train.py', config, *work_dir, *resume, *training)

    checkpoint = last_checkpoint(out)
    scores = out / SCORES
    steps.run('test', scores, 'test.py', config, checkpoint, *work_dir, *options)
    pictures = out / 'pictures'
    draw = ['--dataset', '--out', pictures]
    steps.run('draw', pictures, 'visualize.py', config, checkpoint, *draw, *options)


def last_checkpoint(out: Path) -> Path:
    """The checkpoint that training wrote last, which mmengine names in a file; absent before."""
    note = out / 'last_checkpoint'
    named = note.read_text().strip() if note.is_file() else ''
    return out / (Path(named).name or 'epoch_1.pth')


def report(data: Path, out: Path, steps: Steps) -> None:
    """Write summary.json and print it as a table."""
    from stratified3d.evaluation.heading import axis_errors

    pictures = sorted(map(str, (out / 'pictures').glob('*/*.png')))
    metrics = json.loads((out / SCORES).read_text())
    car = metrics['label_tp_errors']['car']
    boxes = (out / SCORES).with_name('results_nusc.json')
    try:
        car['axis_err'] = axis_errors(data, 'v1.0-mini', boxes)['car']
    except ValueError:  # nothing was found
        car['axis_err'] = 1.0
    summary = dict(
        mAP=metrics['mean_ap'],
        NDS=metrics['nd_score'],
        AP=metrics['mean_dist_aps'],
        car_errors=car,
        seconds=steps.seconds,
        pictures=pictures,
    )
    (out / 'summary.json').write_text(json.dumps(summary, indent=1))

    scores = sorted(summary['AP'].items(), key=lambda item: -item[1])
    rows = [('mAP', f'{summary["mAP"]:.3f}'), ('NDS', f'{summary["NDS"]:.3f}')]
    rows += [(f'  AP {name}', f'{value:.3f}') for name, value in scores]
    rows.append(('cars: heading off by', f'{car["orient_err"]:.2f} rad'))
    rows.append(('  front or back ignored', f'{car["axis_err"]:.2f} rad'))
    rows.append(('  velocity off by', f'{car["vel_err"]:.2f} m/s'))
    rows += [(f'{name} (s)', f'{value:.0f}') for name, value in steps.seconds.items()]
    rows.append(('pictures', f'{os.path.relpath(out / "pictures")}/*/*.png ({len(pictures)})'))
    rows.append(('summary', os.path.relpath(out / 'summary.json')))
    print()
    for name, text in rows:
        print(f'{name:<28}{text}')
