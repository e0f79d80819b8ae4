#!/usr/bin/env python
"""Measure the encoder's parts, attention operators, their scaling, detectors, configs and FLOPs."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

# torch's profiler, which counts memory, is talkative
os.environ.setdefault('KINETO_LOG_LEVEL', '99')


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for benchmarks and projects

from stratified3d.commands import begin_command

begin_command('benchmark.py')

import torch
from mmengine.config import Config

from benchmarks import report
from benchmarks.attention import complexity, encoder, ops, roofline, scaling
from benchmarks.detectors import config_table, latency, streaming
from benchmarks.point_clouds import batches_for_ops, frames_for_model
from stratified3d.apis import init_detector
from stratified3d.datasets.io.point_files import read_points

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/stratified/stratified-centerpoint_voxel03_8xb4-cyclic-20e_nus-3d.py'
DTYPES = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)
EXAMPLES = """examples:
  python tools/benchmark.py encoder sweep.pcd.bin
  python tools/benchmark.py ops --points sweep.pcd.bin --only SSTAttention VarlenAttention
  python tools/benchmark.py scaling --device cuda --dtype bf16
  python tools/benchmark.py model --points sweep.pcd.bin
  python tools/benchmark.py configs --only centerpoint_pillar03 centerpoint_voxel03
  python tools/benchmark.py stream --config projects/quickstart/configs/quickstart.py
  python tools/benchmark.py complexity
"""


def run_encoder(args: argparse.Namespace) -> None:
    points = torch.from_numpy(read_points(args.points))
    points = torch.cat([points, points.new_zeros(len(points), 1)], 1)
    detector = init_detector(args.config, device='cpu')
    seconds, voxels = encoder.time_encoder(detector, points, max(1, args.runs))
    machine = (
        f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, '
        f'torch {torch.__version__}'
    )
    print('\n' + encoder.render(seconds, len(points), voxels, machine))


def run_ops(args: argparse.Namespace) -> None:
    batches = batches_for_ops(args.points, args.quick)
    # written after each point cloud
    for result in ops.run(batches, args.device, args.dtype, args.runs, args.only, args.limit):
        folder = finish(args, result, ops.render(result))
        ops.draw(result, folder / 'ops.png')
    roofline.draw(result, folder / 'roofline.png')


def run_scaling(args: argparse.Namespace) -> None:
    sizes = args.rows or ([1000, 2000, 4000] if args.quick else list(scaling.ROWS))
    result = scaling.run(
        sorted(sizes),
        args.points,
        args.device,
        args.dtype,
        args.runs,
        args.only,
        args.limit,
        args.quick,
    )
    folder = finish(args, result, scaling.render(result))
    scaling.draw(result, folder / 'scaling.png')


def run_detectors(args: argparse.Namespace) -> None:
    module = latency if args.command == 'model' else config_table
    frames = frames_for_model(args.points, args.quick)
    result = module.run(frames, args.device, args.dtype, args.runs, args.only, args.quick)
    finish(args, result, module.render(result))


def run_complexity(args: argparse.Namespace) -> None:
    sizes = list(complexity.GRIDS)
    result = complexity.run(sizes[:1] if args.quick else sizes)
    finish(args, result, complexity.render(result))


def run_stream(args: argparse.Namespace) -> None:
    config = Config.fromfile(args.config)
    runs = 2 if args.quick else args.runs
    result = streaming.run(config, args.device, args.dtype, runs, args.memory, args.every)
    finish(args, dict(config=str(args.config), **result), streaming.render(result))


def finish(args: argparse.Namespace, result: dict, text: str) -> Path:
    """Print the table; write it and the JSON; return their folder."""
    environment = report.environment(args.device, args.dtype)
    content = dict(environment=environment, **result)
    folder = report.save(args.out, args.command, content, text)
    print(f'\n{text}\n\nwritten to {folder}')
    return folder


COMMANDS = {
    'ops': (run_ops, 'attention operators and their baselines on the same tensors'),
    'scaling': (run_scaling, 'time and memory from 10,000 to a million rows'),
    'model': (run_detectors, "our detectors and mmdet3d's CenterPoint, by part and end to end"),
    'configs': (run_detectors, 'cost of each of our configs: operations, time, training memory'),
    'complexity': (run_complexity, 'floating-point operations, and what articles claim of them'),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    add_encoder_command(commands)
    add_stream_command(commands)
    for name, (function, description) in COMMANDS.items():
        command = commands.add_parser(name, help=description, description=description)
        command.set_defaults(function=function)
        add_options(command)
        if name != 'complexity':
            add_options_of_times(command)
        if name in ('ops', 'scaling'):
            command.add_argument(
                '--limit',
                type=float,
                default=30.0,
                help='seconds; a method whose pass takes longer runs only once '
                '(default: %(default)s)',
            )
        if name == 'scaling':
            command.add_argument(
                '--rows', type=int, nargs='+', help='default: eight sizes, 10,000 to 1,000,000'
            )
    args = parser.parse_args()
    if args.command != 'encoder':
        args.device = args.device or torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        args.dtype = DTYPES[args.dtype or ('bf16' if args.device.type == 'cuda' else 'fp32')]
    return args


def add_encoder_command(commands: argparse._SubParsersAction) -> None:
    description = 'voxel encoder and stratified encoder of a config, by part'
    command = commands.add_parser('encoder', help=description, description=description)
    command.add_argument('points', help='point file of one sweep: .bin, .npy, .pcd, .ply, ...')
    command.add_argument('--config', default=CONFIG, help='default: the nuScenes config')
    command.add_argument(
        '--runs', type=int, default=10, help='timed runs after two to warm up (default: 10)'
    )
    command.set_defaults(function=run_encoder)


def add_stream_command(commands: argparse._SubParsersAction) -> None:
    description = 'a stream of frames: with memory of earlier ones, and with stacked sweeps'
    command = commands.add_parser('stream', help=description, description=description)
    command.add_argument('--config', default=CONFIG, help='default: the nuScenes config')
    command.add_argument('--memory', type=int, default=4, help='earlier frames (default: 4)')
    command.add_argument(
        '--every', type=int, default=2, help='20 Hz sweeps from frame to frame (default: 2)'
    )
    command.add_argument('--runs', type=int, default=12, help='timed frames (default: 12)')
    add_options(command)
    command.set_defaults(function=run_stream)


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        '--quick', action='store_true', help='small sizes, to see in a minute or two if it works'
    )
    command.add_argument(
        '--out',
        type=Path,
        default=ROOT / 'benchmarks/results',
        help='results go to OUT/<device>/ (default: benchmarks/results)',
    )
    command.add_argument(
        '--device', type=torch.device, help='default: the GPU if there is one, else the CPU'
    )
    command.add_argument('--dtype', choices=DTYPES, help='default: bf16 on a GPU, fp32 on a CPU')


def add_options_of_times(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        '--points',
        type=Path,
        default=find_real_sweep(),
        help='file of a real sweep, which is measured too '
        '(default: the first keyframe in $STRATIFIED3D_REAL_DATA)',
    )
    command.add_argument(
        '--runs', type=int, default=7, help='timed runs per median (default: %(default)s)'
    )
    command.add_argument(
        '--only', nargs='+', default=[], metavar='NAME', help='what to measure (default: all)'
    )


def find_real_sweep() -> Path | None:
    folder = os.environ.get('STRATIFIED3D_REAL_DATA')
    if not folder:
        return None
    return next(iter(sorted(Path(folder).glob('nuscenes_keyframe/*.bin'))), None)


def main() -> int:
    args = parse_args()
    try:
        args.function(args)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'benchmark.py: {error}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
