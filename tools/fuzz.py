#!/usr/bin/env python
"""Compare a fast attention backend with the reference in encoders on random small point clouds;
with `points` or `infos`, damage point files or info files at random and read them.

Outputs and all gradients are compared. A damaged file has to give what it contains or a ValueError:
no crash, no hang, no more memory than ten times the file.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import random
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections.abc import Iterable
from math import isnan
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for benchmarks

from stratified3d.commands import begin_command

begin_command('fuzz.py')

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.mutations import mutate, read_mutations
from benchmarks.point_samples import WRITERS, available_samples
from stratified3d.datasets.io.safe_pickle import read_plain_pickle
from stratified3d.layers.attention import StratifiedAttention
from stratified3d.models.stratified_encoder import StratifiedEncoder
from stratified3d.testing import poisoned_memory, random_coords, relative_error

EXAMPLES = """examples:
  python tools/fuzz.py                           100,000 samples, most of an hour on one core
  python tools/fuzz.py --count 500 --seed 7
  python tools/fuzz.py --seed 7 --start 20000    resume a run that was interrupted
  python tools/fuzz.py --seed 7 --replay 21234   repeat one batch and print its settings
  python tools/fuzz.py infos --count 10000       damaged info files, about a minute
  python tools/fuzz.py points --mutations 10000  damaged point files, as many of every format

A batch has one to four samples, 2.5 on average. Samples and model depend on (seed, index) only. The
first failure ends the run with status 1 and prints the command that repeats it.
"""
# single precision through a whole encoder; in double precision only the order of sums differs
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
VOXEL = 0.4  # meters


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--count', type=int, default=40_000, help='batches (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the run (default: %(default)s)')
    parser.add_argument(
        '--start', type=int, default=0, help='index of the first batch (default: %(default)s)'
    )
    parser.add_argument('--replay', type=int, metavar='INDEX', help='run only this batch')
    parser.add_argument(
        '--backend',
        help='compared with the reference (default: what a detector takes, on a CPU numba in fp32 '
        'and sdpa in fp64)',
    )
    commands = parser.add_subparsers(dest='what', metavar='points | infos')
    _add_points(commands.add_parser('points', help='read damaged point files'))
    _add_infos(commands.add_parser('infos', help='read damaged info files'))
    args = parser.parse_args()
    for name in ('count', 'mutations'):
        value = getattr(args, name, 1)
        if value < 1:
            parser.error(f'--{name} must be at least 1, not {value}')
    for name in ('start', 'seed', 'replay'):
        value = getattr(args, name)
        if value is not None and value < 0:
            parser.error(f'--{name} must not be negative, but is {value}')
    return args


def _add_points(parser: argparse.ArgumentParser) -> None:
    """Options of `fuzz.py points`."""
    parser.add_argument(
        '--mutations', type=int, default=1000, help='of every format (default: %(default)s)'
    )
    parser.add_argument('--only', nargs='+', choices=WRITERS, help='samples (default: all)')
    parser.add_argument('--seed', type=int, default=0, help='of the run (default: %(default)s)')
    parser.add_argument(
        '--start', type=int, default=0, help='index of the first mutation (default: %(default)s)'
    )
    parser.add_argument(
        '--folder', type=Path, help='for the damaged files, the last of which stay (default: none)'
    )


def _add_infos(parser: argparse.ArgumentParser) -> None:
    """Options of `fuzz.py infos`."""
    parser.add_argument('--count', type=int, default=10_000, help='files (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the run (default: %(default)s)')
    parser.add_argument(
        '--start', type=int, default=0, help='index of the first file (default: %(default)s)'
    )
    parser.add_argument('--replay', type=int, metavar='INDEX', help='run only this file')


def fuzz_points(args: argparse.Namespace, folder: Path) -> int:
    """Read damaged files of every format; status 1 after the first failure."""
    folder.mkdir(parents=True, exist_ok=True)
    mutations = range(args.start, args.start + args.mutations)
    for name in args.only or available_samples():
        outcome = read_mutations(folder, name, mutations, args.seed)
        if outcome.failure:
            print(
                f'{name} {outcome.last}: {outcome.failure}\nFAILED; repeat it by: python '
                f'tools/fuzz.py points --only {name} --seed {args.seed} --start {outcome.last} '
                '--mutations 1 --folder work_dirs/fuzz'
            )
            return 1
        print(
            f'{name:20} {outcome.refused:7} refused {outcome.read:7} read, memory up to '
            f'{outcome.peak:.1f} times the file',
            flush=True,
        )
    return 0


def random_case(seed: int, index: int) -> dict[str, Any]:
    """Sizes of the samples, grid, precision and settings of the encoder.

    Tiny, odd and empty samples are frequent.
    """
    draw = random.Random(f'{seed} {index}')
    strides = draw.choice(
        [[(1, 1, 1)], [(2, 1, 1)], [(2, 1, 1), (1, 2, 2)], [(1, 2, 2), (2, 1, 1)]]
    )
    grid = (2 * draw.randint(1, 3), 2 * draw.randint(1, 8), 2 * draw.randint(1, 8))
    cells = grid[0] * grid[1] * grid[2]
    sizes = []
    for _ in range(draw.randint(1, 4)):
        size = draw.choice([0, 1, 2, draw.randint(0, 20), draw.randint(0, 150)])
        sizes.append(min(size, cells))
    heads = draw.choice([1, 2, 3])
    width = draw.choice([6, 8, 12, 16])
    stages = [_random_stage(draw, stride) for stride in strides]
    dtype = draw.choice([torch.float32, torch.float64])
    encoder: dict[str, Any] = dict(
        voxel_size=(VOXEL,) * 3,
        in_channels=4,
        channels=heads * width,
        num_heads=heads,
        point_cloud_range=(0, 0, 0, *(VOXEL * n for n in grid[::-1])),
        stages=stages,
        **_random_settings(draw),
    )
    return dict(sizes=sizes, grid=grid, dtype=dtype, encoder=encoder)


def _random_stage(draw: random.Random, stride: tuple[int, int, int]) -> dict[str, Any]:
    depth = draw.randint(1, 3)
    window_shape = (draw.randint(1, 6), draw.randint(1, 12), draw.randint(1, 12))
    return dict(depth=depth, stride=stride, window_shape=window_shape)


def _random_settings(draw: random.Random) -> dict[str, Any]:
    settings = dict(
        shifted=draw.random() < 0.5,
        use_rotary=draw.random() < 0.7,
        use_conv=draw.random() < 0.5,
        stem_depth=draw.randint(0, 1),
    )
    return dict(settings, mixer=_random_mixer(draw))


def _random_mixer(draw: random.Random) -> dict[str, Any]:
    """Settings that all have an effect.

    'topk' is left out: where two scores are nearly equal, rounding decides which voxel is chosen.
    """
    mixer: dict[str, Any] = dict(num_strata=draw.choice([0, 1, 2, 7, 16]))
    if not mixer['num_strata']:
        return mixer
    mixer.update(
        selection=draw.choice(['pool', 'random', 'first', 'farthest']),
        fusion=draw.choice(['joint', 'gated']),
        carry_tokens=draw.random() < 0.5,
        collect_scale=draw.choice([None, 0.43]),
        token_mixing=draw.random() < 0.3,
    )
    if mixer['fusion'] == 'joint':
        mixer['strata_offset'] = draw.choice([-4.0, 0.0, 3.0])
    return mixer


def run(model: nn.Module, case: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """The BEV feature map, and the gradients of the features and of every parameter, by name."""
    generator = torch.Generator().manual_seed(seed)
    coords = random_coords(case['sizes'], case['grid'], seed)
    feats = torch.randn(len(coords), 4, generator=generator).to(case['dtype']).requires_grad_()
    torch.manual_seed(seed)  # of random strata
    bev = model(feats, coords, len(case['sizes']))
    weight = torch.randn(bev.shape, generator=generator).to(bev.dtype)
    model.zero_grad()
    (bev * weight).sum().backward()
    assert feats.grad is not None

    results = dict(bev=bev.detach(), feats=feats.grad)
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        results[name] = torch.zeros_like(parameter) if gradient is None else gradient
    return results


def check(case: dict[str, Any], seed: int, index: int, backend: str | None) -> str:
    """What differs between the backend and the reference; empty if nothing does."""
    seed = random.Random(f'{seed} {index} weights').getrandbits(31)
    torch.manual_seed(seed)
    model = StratifiedEncoder(**case['encoder']).to(case['dtype'])
    for name, parameter in model.named_parameters():
        if name.endswith('gate'):  # starts at zero, which would hide errors behind it
            nn.init.normal_(parameter)

    _set_backend(model, 'reference')
    expected = run(model, case, seed)
    _set_backend(model, backend)
    with poisoned_memory():
        results = run(model, case, seed)

    errors = {name: relative_error(results[name], value) for name, value in expected.items()}
    worst = max(errors, key=lambda name: float('inf') if isnan(errors[name]) else errors[name])
    if errors[worst] <= TOLERANCE[case['dtype']]:
        return ''
    return f'{worst} differs by {errors[worst]:.2e}'


def _set_backend(model: nn.Module, backend: str | None) -> None:
    for module in model.modules():
        if isinstance(module, StratifiedAttention):
            module.backend = backend


def check_infos(seed: int, index: int) -> str:
    """What is wrong with how a damaged info file is read; empty if nothing is."""
    draw = random.Random(f'{seed} {index} infos')
    objects = [
        dict(box=np.arange(draw.randint(0, 9), dtype=draw.choice(['f4', '>f8'])), name='car')
        for _ in range(draw.randint(1, 20))
    ]
    frames = [dict(path=f'{i}.bin', points=i, stamp=i / 7, matrix=[[1.0, 0.0]]) for i in range(9)]
    content = dict(metainfo=dict(version='a'), data_list=frames, objects=objects, last=np.int64(3))
    data = mutate(pickle.dumps(content, draw.randint(2, 5)), draw)

    begin = time.perf_counter()
    tracemalloc.start()
    try:
        read_plain_pickle(io.BytesIO(data))
    except ValueError:  # what it should raise
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    seconds = time.perf_counter() - begin
    if peak > 10 * len(data) + 2**20 or seconds > 1:
        return f'{peak:,} bytes and {seconds:.2f} s for a file of {len(data):,} bytes'
    return ''


def fuzz_infos(seed: int, indices: Iterable[int]) -> int:
    """The status of a run over damaged info files."""
    read_plain_pickle(io.BytesIO(pickle.dumps([])))  # compiles
    count = 0
    for index in tqdm(indices, unit='file', disable=None):
        try:
            failure = check_infos(seed, index)
        except Exception:
            failure = traceback.format_exc()
        if failure:
            print(f'\nfile {index}: {failure}')
            print(
                f'FAILED; repeat it by: python tools/fuzz.py infos --seed {seed} --replay {index}'
            )
            return 1
        count += 1
    print(f'{count} damaged files were refused or read (seed {seed})')
    return 0


def main() -> int:
    args = parse_args()
    if args.what == 'points':
        with tempfile.TemporaryDirectory() as folder:
            return fuzz_points(args, args.folder or Path(folder))
    os.environ.pop('STRATIFIED3D_BACKEND', None)  # it would choose one backend for both
    torch.set_num_threads(1)
    indices = range(args.start, args.start + args.count) if args.replay is None else [args.replay]
    if args.what == 'infos':
        return fuzz_infos(args.seed, indices)
    samples = 0
    for index in tqdm(indices, unit='batch', disable=args.replay is not None):
        case = random_case(args.seed, index)
        try:
            failure = check(case, args.seed, index, args.backend)
        except Exception:
            failure = traceback.format_exc()
        if failure or args.replay is not None:
            print(f'\nbatch {index}: {failure or "agrees"}')
            for name, value in case.items():
                print(f'  {name}: {value}')
        if failure:
            backend = f' --backend {args.backend}' if args.backend else ''
            print(
                f'FAILED; repeat it by: python tools/fuzz.py --seed {args.seed} --replay {index}'
                + backend
            )
            return 1
        samples += len(case['sizes'])
    print(
        f'{samples} samples in {len(indices)} batches agree (seed {args.seed}, from {indices[0]})'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
