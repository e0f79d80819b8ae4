"""The steps of `benchmarks.gpu_check` that need mmdet3d and spconv: the whole detector on a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / 'work_dirs/gpu_check'
DATA = WORK / 'simulated'
CONFIG = 'configs/stratified/stratified-centerpoint_voxel03_8xb4-cyclic-20e_nus-3d.py'
# seconds; in order of worth, and every step after 'simulate' needs its frames
DETECTOR_LIMITS = {
    'doctor': 240,
    'simulate': 150,
    'train': 90,
    'train-amp': 90,
    'latency': 150,
    'tokens': 600,
}
FRAMES = 10  # about 20 steps of 4: classes are balanced by repeating frames
DETECTORS = ('stratified voxel 0.3', 'CenterPoint voxel 0.1')
SEEDS = ('0', '1', '2')


def detector_commands(step: str, out: Path, is_small: bool) -> dict[str, list[str]]:
    """Command of each process of a step, by the name of its log.

    Args:
        out: folder of the results.
        is_small: whether to run only a small part, to try the step itself on a CPU.
    """
    device = 'cpu' if is_small else 'cuda'
    if step == 'doctor':
        part = ['--only', 'sparse convolution'] if is_small else []
        report = ['--device', device, '--json', str(out / 'doctor.json'), *part]
        return {step: [sys.executable, '-m', 'stratified3d.doctor', '--gpu', *report]}
    if step == 'simulate':
        return {step: ['bash', '-c', ' && '.join(_data_commands(is_small))]}
    if step in ('train', 'train-amp'):
        return {step: _training(step, is_small)}
    if step == 'latency':
        options = ['--device', device, '--out', str(out / 'results'), '--only', *DETECTORS]
        return {step: _tool('benchmark.py', 'model', *options, *['--quick'] * is_small)}
    return {step: _ablation(out, is_small)}


def _tool(name: str, *arguments: str) -> list[str]:
    return [sys.executable, f'tools/{name}', *arguments]


def _data_commands(is_small: bool) -> list[str]:
    scenes = '--scenes 1+1 --keyframes 3' if is_small else '--scenes 8+2 --keyframes 20'
    cores = f'--workers {os.cpu_count()}'
    return [
        f'{sys.executable} tools/simulate.py {DATA} {scenes} {cores}',
        f'{sys.executable} tools/create_data.py {DATA} --sweeps 4 {cores}',
    ]


def _training(step: str, is_small: bool) -> list[str]:
    """Train the default config for 20 steps, from the same weights on the same frames."""
    settings = [
        'train_cfg.max_epochs=1',
        'train_cfg.val_begin=1000000',
        f'train_dataloader.dataset.dataset.indices={1 if is_small else FRAMES}',
        'default_hooks.logger.interval=1',
        'custom_hooks=[]',
    ]
    if is_small:
        settings += ['train_dataloader.batch_size=1', 'model.voxel_size=(1.2,1.2,0.25)']
    command = _tool('train.py', CONFIG, '--work-dir', str(WORK / step))
    amp = ['--amp'] if step == 'train-amp' and not is_small else []  # mmengine's needs a GPU
    return ['env', f'NUSCENES_ROOT={DATA}', *command, *amp, '--cfg-options', *settings]


def _ablation(out: Path, is_small: bool) -> list[str]:
    """Train the quickstart's detector with tokens and without, from the same seeds."""
    steps, seeds = ('20', SEEDS[:1]) if is_small else ('640', SEEDS)
    options = ['--seeds', *seeds, '--iterations', steps, '--jobs', '2', '--data', str(DATA)]
    folders = ['--work', str(WORK / 'tokens'), '--out', str(out / 'results')]
    return _tool('ablate.py', '--rows', 'default', 'm = 0', *options, *folders)
