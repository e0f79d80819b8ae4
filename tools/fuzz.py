#!/usr/bin/env python
"""Random small clouds through the encoder: the fast attention backend against the equation, outputs
and gradients."""

from __future__ import annotations

import argparse
import os
import random
import sys
import traceback

import torch
from mmdet3d.registry import MODELS
from torch import Tensor, nn
from tqdm import tqdm

import stratified3d.models  # noqa: F401
from stratified3d.testing import poisoned_memory, random_coords, relative_error

EXAMPLES = """examples:
  python tools/fuzz.py                                    100,000 clouds, most of an hour on one core
  python tools/fuzz.py --count 500 --seed 7
  python tools/fuzz.py --seed 7 --start 20000             go on where a run was stopped
  python tools/fuzz.py --seed 7 --replay 21234            one batch again, with its settings

A batch holds one to four clouds, 2.5 on average. Clouds and model follow from (seed, index) alone. The first failure
ends the run with status 1 and a command that replays it."""
# single precision through a whole encoder; in double precision nothing but the order of sums
# differs
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
VOXEL = 0.4  # meters


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--count', type=int, default=40_000, help='batches (default %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of all of them (default %(default)s)')
    parser.add_argument('--start', type=int, default=0, help='index of the first')
    parser.add_argument('--replay', type=int, metavar='INDEX', help='only this one')
    parser.add_argument('--backend', default='sdpa', help='the fast one (default %(default)s)')
    args = parser.parse_args()
    if args.count < 1 or args.start < 0 or args.seed < 0 or (args.replay or 0) < 0:
        parser.error('--count is at least 1; --start, --seed and --replay are not negative')
    return args


def random_case(seed: int, index: int) -> dict:
    """Sizes of the samples, grid, precision and settings of the encoder; tiny, odd and empty ones
    often."""
    draw = random.Random(f'{seed} {index}')
    strides = draw.choice(
        [[(1, 1, 1)], [(2, 1, 1)], [(2, 1, 1), (1, 2, 2)], [(1, 2, 2), (2, 1, 1)]]
    )
    grid = tuple(2 * draw.randint(1, most) for most in (3, 8, 8))
    cells = grid[0] * grid[1] * grid[2]
    sizes = [
        min(draw.choice([0, 1, 2, draw.randint(0, 20), draw.randint(0, 150)]), cells)
        for _ in range(draw.randint(1, 4))
    ]
    heads, width = draw.choice([1, 2, 3]), draw.choice([6, 8, 12, 16])
    stages = [
        dict(
            depth=draw.randint(1, 3),
            stride=stride,
            window_shape=tuple(draw.randint(1, most) for most in (6, 12, 12)),
        )
        for stride in strides
    ]
    return dict(
        sizes=sizes,
        grid=grid,
        dtype=draw.choice([torch.float32, torch.float64]),
        encoder=dict(
            type='StratifiedEncoder',
            voxel_size=(VOXEL,) * 3,
            in_channels=4,
            channels=heads * width,
            num_heads=heads,
            point_cloud_range=(0, 0, 0, *(VOXEL * n for n in grid[::-1])),
            stages=stages,
            mixer=dict(
                num_strata=draw.choice([0, 1, 2, 7, 16]),
                selection=draw.choice(['pool', 'random', 'first']),
                fusion=draw.choice(['joint', 'gated']),
                carry_tokens=draw.random() < 0.5,
                strata_offset=draw.choice([-4.0, 0.0, 3.0]),
            ),
            shifted=draw.random() < 0.5,
            use_rotary=draw.random() < 0.7,
            use_conv=draw.random() < 0.5,
            stem_depth=draw.randint(0, 1),
        ),
    )


def run(model: nn.Module, case: dict, seed: int) -> dict[str, Tensor]:
    """The map and the gradient of every parameter and of the features, by name."""
    generator = torch.Generator().manual_seed(seed)
    coords = random_coords(case['sizes'], case['grid'], seed)
    feats = torch.randn(len(coords), 4, generator=generator).to(case['dtype']).requires_grad_()
    torch.manual_seed(seed)  # 'random' strata
    bev = model(feats, coords, len(case['sizes']))
    weight = torch.randn(bev.shape, generator=generator).to(bev.dtype)
    model.zero_grad()
    (bev * weight).sum().backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }
    return dict(map=bev.detach(), feats=feats.grad, **gradients)


def check(case: dict, seed: int, index: int, backend: str) -> str:
    """What differs between the backends; empty if nothing does."""
    seed = random.Random(f'{seed} {index} weights').getrandbits(31)
    torch.manual_seed(seed)
    mixer = dict(case['encoder']['mixer'], backend='reference')
    model = MODELS.build(dict(case['encoder'], mixer=mixer)).to(case['dtype'])
    for name, parameter in model.named_parameters():
        if name.endswith('gate'):  # starts at zero, which would hide what is behind it
            nn.init.normal_(parameter)
    expected = run(model, case, seed)
    for module in model.modules():
        if hasattr(module, 'backend'):
            module.backend = backend
    with poisoned_memory():
        found = run(model, case, seed)
    errors = {name: relative_error(found[name], value) for name, value in expected.items()}
    name = max(errors, key=lambda n: float('inf') if errors[n] != errors[n] else errors[n])
    return (
        '' if errors[name] <= TOLERANCE[case['dtype']] else f'{name} differs by {errors[name]:.2e}'
    )


def main() -> int:
    args = parse_args()
    os.environ.pop('STRATIFIED3D_BACKEND', None)  # it would choose one backend for both
    torch.set_num_threads(1)
    indices = range(args.start, args.start + args.count) if args.replay is None else [args.replay]
    clouds = 0
    for index in tqdm(indices, unit='batch', disable=args.replay is not None):
        case = random_case(args.seed, index)
        try:
            failure = check(case, args.seed, index, args.backend)
        except Exception:
            failure = traceback.format_exc()
        if failure or args.replay is not None:
            print(
                f'\nbatch {index}: {failure or "agrees"}\n'
                + '\n'.join(f'  {k}: {v}' for k, v in case.items())
            )
        if failure:
            print(
                f'FAILED; again: python tools/fuzz.py --seed {args.seed} --replay {index} --backend {args.backend}'
            )
            return 1
        clouds += len(case['sizes'])
    print(f'{clouds} clouds in {len(indices)} batches agree (seed {args.seed}, from {indices[0]})')
    return 0


if __name__ == '__main__':
    sys.exit(main())
