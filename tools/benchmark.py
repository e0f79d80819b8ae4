#!/usr/bin/env python
"""Time and count: the encoder's parts, attention operators against their baselines, scaling, detectors,
arithmetic."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

os.environ.setdefault(
    'KINETO_LOG_LEVEL', '99'
)  # torch's profiler, which counts memory, is talkative

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for benchmarks and projects

from benchmarks import point_clouds as clouds
from benchmarks import report
from benchmarks.attention import complexity, encoder, ops, roofline, scaling
from benchmarks.detectors import config_table
from benchmarks.detectors import latency as model
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
  python tools/benchmark.py complexity
"""


def run_encoder(args: argparse.Namespace) -> None:
    points = torch.from_numpy(read_points(args.points))
    detector = init_detector(args.config, device='cpu')
    points = torch.cat([points, points.new_zeros(len(points), 1)], 1)
    seconds, voxels = encoder.time_encoder(detector, points, max(1, args.runs))
    machine = (
        f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, '
        f'torch {torch.__version__}'
    )
    print('\n' + encoder.render(seconds, len(points), voxels, machine))


def run_ops(args: argparse.Namespace) -> None:
    found = clouds.clouds_for_ops(args.points, args.quick)
    for result in ops.run(
        found, args.device, args.dtype, args.runs, args.only, args.limit
    ):  # kept cloud by cloud
        place = finish(args, result, ops.render(result))
    roofline.draw(result, place / 'roofline.png')


def run_growth(args: argparse.Namespace) -> None:
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
    place = finish(args, result, scaling.render(result))
    scaling.draw(result, place / 'scaling.png')


def run_detectors(args: argparse.Namespace) -> None:
    part = dict(model=model, configs=config_table)[args.what]
    found = clouds.frames_for_model(args.points, args.quick)
    result = part.run(found, args.device, args.dtype, args.runs, args.only, args.quick)
    finish(args, result, part.render(result))


def run_complexity(args: argparse.Namespace) -> None:
    sizes = list(complexity.GRIDS)
    result = complexity.run(sizes[:1] if args.quick else sizes)
    finish(args, result, complexity.render(result))


def finish(args: argparse.Namespace, result: dict, text: str) -> Path:
    """Print the table; keep it and the JSON."""
    made = report.environment(args.device, args.dtype)
    place = report.save(args.out, args.what, dict(environment=made, **result), text)
    print(f'\n{text}\n\nwritten to {place}')
    return place


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='what', required=True)
    command = commands.add_parser(
        'encoder', help='voxel encoder and stratified encoder of a config, by part'
    )
    command.add_argument('points', help='.bin, .npy, .pcd or .ply file of one sweep')
    command.add_argument('--config', default=CONFIG, help='default: the nuScenes config')
    command.add_argument(
        '--runs', type=int, default=10, help='counted runs, after two that warm up'
    )
    command.set_defaults(function=run_encoder)
    for name, function, words in (
        ('ops', run_ops, 'attention operators and their baselines on the same tensors'),
        ('scaling', run_growth, 'time and memory from 10,000 to a million rows'),
        ('model', run_detectors, "our detectors and mmdet3d's CenterPoint, by part and end to end"),
        (
            'configs',
            run_detectors,
            'what each of our configs costs: operations, time, memory of training',
        ),
        (
            'complexity',
            run_complexity,
            'floating-point operations, and what articles claim of them',
        ),
    ):
        command = commands.add_parser(name, help=words, description=words)
        command.add_argument(
            '--quick', action='store_true', help='small sizes, in a minute or two: does it work'
        )
        command.add_argument(
            '--out',
            type=Path,
            default=ROOT / 'benchmarks/results',
            help='default: benchmarks/results/',
        )
        command.add_argument(
            '--device', type=torch.device, help='default: the GPU where there is one'
        )
        command.add_argument(
            '--dtype', choices=DTYPES, help='default: bf16 on a GPU, fp32 on a CPU'
        )
        if name != 'complexity':
            real = os.environ.get('STRATIFIED3D_REAL_DATA', '')
            real = (
                next(iter(sorted(Path(real).glob('nuscenes_keyframe/*.bin'))), None)
                if real
                else None
            )
            command.add_argument(
                '--points', type=Path, default=real, help='file of a real sweep, measured as well'
            )
            command.add_argument('--runs', type=int, default=7, help='counted runs of each')
            command.add_argument(
                '--only', nargs='+', default=[], metavar='NAME', help='methods; default all'
            )
        if name in ('ops', 'scaling'):
            command.add_argument(
                '--limit',
                type=float,
                default=30.0,
                help='seconds; what takes longer runs once only',
            )
        if name == 'scaling':
            command.add_argument('--rows', type=int, nargs='+', help='default: 10,000 to 1,000,000')
        command.set_defaults(function=function)
    args = parser.parse_args()
    if args.what != 'encoder':
        args.device = args.device or torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        args.dtype = DTYPES[args.dtype or ('bf16' if args.device.type == 'cuda' else 'fp32')]
    return args


def main() -> int:
    args = parse()
    try:
        args.function(args)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'benchmark.py: {error}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
