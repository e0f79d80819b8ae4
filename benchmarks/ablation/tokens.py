#!/usr/bin/env python
"""What do the strata tokens of a detector do: how much is read of them, by whom, and what do they
collect?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from stratified3d.apis import init_detector, inspect_strata
from stratified3d.datasets.io.info_files import read_info_file
from stratified3d.datasets.nuscenes.frames import read_frame
from stratified3d.layers.strata_record import StrataRecord

EXAMPLES = """examples:
  python benchmarks/ablation/tokens.py projects/quickstart/configs/quickstart.py work_dirs/quickstart/epoch_3.pth
  python benchmarks/ablation/tokens.py CONFIG WEIGHTS --silent silent.pth && python tools/test.py CONFIG silent.pth

"share" is the part of a voxel's attention that goes to the tokens (all of it where fusion is gated: there the gate
says how much of it counts); "readers" how evenly a voxel's reading is spread over the tokens and "sources" how evenly
a token's collecting is spread over the voxels, by the exponential of the entropy, 1 where all weigh the same. Distances
are means by weight; in brackets what even weights would give.
"""
COLUMNS = (
    'block',
    'share',
    '5 to 95 %',
    'readers',
    'read from, m',
    'sources',
    'collects from, m',
    'offset or gate',
)


class Use(NamedTuple):
    """Of one block and one cloud; see EXAMPLES. read_from, collects_from: (meters, meters of even
    weights)."""

    share: np.ndarray
    readers: float
    read_from: tuple[float, float]
    sources: float
    collects_from: tuple[float, float]


def evenness(weights: np.ndarray) -> float:
    """exp(entropy) of every row over the length of a row, in the mean: 1 / K for one place of K, 1
    for all alike."""
    weights = weights[weights.sum(1) > 0]  # silent tokens are read by nobody
    if not weights.size:
        return float('nan')
    weights = weights / weights.sum(1, keepdims=True)
    entropy = -(weights * np.log(np.maximum(weights, 1e-30))).sum(1)
    return float(np.exp(entropy).mean() / weights.shape[1])


def measure(record: StrataRecord) -> Use:
    """What the tokens of one block do with one cloud."""
    distance = np.linalg.norm(record.voxels[:, None] - record.tokens[None], axis=-1)  # [N, M]

    def weighted(weights: np.ndarray) -> tuple[float, float]:
        total = weights.sum()
        return float((weights * distance).sum() / total) if total else float('nan'), float(
            distance.mean()
        )

    return Use(
        record.read.sum(1),
        evenness(record.read),
        weighted(record.read),
        evenness(record.collected),
        weighted(record.collected.T),
    )


def mean(values: list[float], form: str) -> str:
    """Of those that are numbers; a dash where none is."""
    values = [value for value in values if np.isfinite(value)]
    return format(np.mean(values), form) if values else '-'


def describe(block: str, uses: list[Use], mixer: torch.nn.Module) -> list[str]:
    """One row of the table, means over the clouds."""
    shares = np.concatenate([use.share for use in uses])
    low, high = np.quantile(shares, (0.05, 0.95))

    def distances(pairs: list[tuple[float, float]]) -> str:
        own, even = (mean(values, '.1f') for values in zip(*pairs))
        return f'{own} ({even})'

    return [
        block,
        f'{shares.mean():.1%}',
        f'{low:.1%} to {high:.1%}',
        mean([u.readers for u in uses], '.2f'),
        distances([u.read_from for u in uses]),
        mean([u.sources for u in uses], '.2f'),
        distances([u.collects_from for u in uses]),
        ''
        if (learned := learned_weight(mixer)) is None
        else ' '.join(f'{x:.2f}' for x in learned.flatten()),
    ]


def blocks_with_strata(model: torch.nn.Module) -> Iterator[tuple[int, int, torch.nn.Module]]:
    for i, stage in enumerate(model.encoder.stages):
        for j, block in enumerate(stage.blocks):
            if getattr(block.mixer, 'num_strata', 0):
                yield i, j, block.mixer


def learned_weight(mixer: torch.nn.Module) -> torch.nn.Parameter | None:
    """What a mixer has learned to weigh its tokens with: one number a head."""
    return mixer.gate if mixer.fusion == 'gated' else mixer.strata_offset


def silence(model: torch.nn.Module) -> None:
    """Let no voxel read a token any more."""
    for _, _, mixer in blocks_with_strata(model):
        parameter = learned_weight(mixer)
        if parameter is None:
            raise ValueError(
                'tokens without a bias (strata_offset=None) cannot be silenced by their weights'
            )
        parameter.data.fill_(0.0 if mixer.fusion == 'gated' else -torch.inf)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', type=Path)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument(
        '--info',
        type=Path,
        default=Path('data/simulated/nuscenes_infos_val.pkl'),
        help="info file of the frames to look at (default: the quickstart's validation)",
    )
    parser.add_argument(
        '--frames', type=int, default=8, help='so many of them, evenly spread, a single sweep each'
    )
    parser.add_argument(
        '--silent', type=Path, help='also write the weights with tokens that nobody reads'
    )
    args = parser.parse_args()
    if args.frames < 1:
        parser.error(f'--frames is at least 1, not {args.frames}')
    return args


def main() -> int:
    args = parse_args()
    try:
        model = init_detector(args.config, args.checkpoint)
        found = list(blocks_with_strata(model))
        if not found:
            raise ValueError(f'{args.config}: no block of this detector has strata tokens')
        uses: dict[tuple[int, int], list[Use]] = {}
        count = len(read_info_file(args.info)['data_list'])
        for index in tqdm(
            np.unique(np.linspace(0, count - 1, args.frames).round().astype(int)), unit='frame'
        ):
            points = read_frame(args.info, int(index)).points
            for stage, block, _ in found:
                record = inspect_strata(model, points, stage, block)
                if len(record.tokens):
                    uses.setdefault((stage, block), []).append(measure(record))
        if not uses:
            raise ValueError(f'{args.info}: none of these frames has a voxel in range')
        rows = [
            COLUMNS,
            *(describe(f'stage {i}, block {j}', uses[i, j], mixer) for i, j, mixer in found),
        ]
        widths = [max(map(len, column)) for column in zip(*rows)]
        print(
            '\n'.join(
                '  '.join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows
            )
        )
        if args.silent:
            silence(model)
            torch.save(
                dict(
                    state_dict=model.state_dict(),
                    meta=dict(dataset_meta=dict(classes=model.class_names)),
                ),
                args.silent,
            )
            print(f'written: {args.silent}')
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'tokens.py: {error}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
