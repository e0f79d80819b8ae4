"""Measure what the strata tokens of a detector do.

Prints how much voxels read from the tokens of each block, and where the tokens collect from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from stratified3d.apis import init_detector, inspect_strata
from stratified3d.datasets.io.info_files import read_info_file
from stratified3d.datasets.nuscenes.frames import read_frame
from stratified3d.layers.attention import StratifiedAttention
from stratified3d.layers.strata_record import StrataRecord

EXAMPLES = """examples:
  python -m benchmarks.ablation.tokens projects/quickstart/configs/quickstart.py \\
      work_dirs/quickstart/epoch_3.pth
  python -m benchmarks.ablation.tokens CONFIG WEIGHTS --silent silent.pth
  python tools/test.py CONFIG silent.pth

columns:
  share             part of a voxel's attention that goes to the tokens; with gated and separate
                    fusion it is all of it, and the gate or the projection says how much it counts
  readers           how evenly a voxel's reading is spread over the tokens: exponential of the
                    entropy, 1 if all have the same weight
  read from         mean distance by weight; in brackets, that of even weights
  sources           how evenly a token's collecting is spread over the voxels
  voxels            how many voxels a token collects from: exponential of the entropy, head by head
  collects from     as read from
  offset or gate    learned weight of the tokens, per head
"""
COLUMNS = (
    'block',
    'share',
    '5 to 95 %',
    'readers',
    'read from, m',
    'sources',
    'voxels',
    'collects from, m',
    'offset or gate',
)


class TokenUse(NamedTuple):
    """What the tokens of one block do with one sample; see EXAMPLES.

    read_from, collects_from: (meters, meters of even weights).
    """

    share: np.ndarray
    readers: float
    read_from: tuple[float, float]
    sources: float
    effective_voxels: float
    collects_from: tuple[float, float]


def evenness(weights: np.ndarray) -> float:
    """Mean over the rows of exp(entropy) / length: from 1 / K for one of K places to 1."""
    weights = weights[weights.sum(1) > 0]  # nobody reads silent tokens
    if not weights.size:
        return float('nan')
    weights = weights / weights.sum(1, keepdims=True)
    entropy = -(weights * np.log(np.maximum(weights, 1e-30))).sum(1)
    return float(np.exp(entropy).mean() / weights.shape[1])


def measure(record: StrataRecord) -> TokenUse:
    """What the tokens of one block do with one sample."""
    voxels, tokens, collected, read, effective = (np.asarray(part) for part in record)
    distance = np.linalg.norm(voxels[:, None] - tokens[None], axis=-1)  # [N, M]
    return TokenUse(
        share=read.sum(1),
        readers=evenness(read),
        read_from=(_weighted_mean(distance, read), float(distance.mean())),
        sources=evenness(collected),
        effective_voxels=float(effective.mean()),
        collects_from=(_weighted_mean(distance, collected.T), float(distance.mean())),
    )


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    total = weights.sum()
    return float((weights * values).sum() / total) if total else float('nan')


def mean(values: Sequence[float], form: str) -> str:
    """Formatted mean of the values that are finite; a dash if there are none."""
    finite = [value for value in values if np.isfinite(value)]
    return format(np.mean(finite), form) if finite else '-'


def describe(block: str, uses: list[TokenUse], mixer: StratifiedAttention) -> list[str]:
    """One row of the table, means over the samples."""
    shares = np.concatenate([use.share for use in uses])
    low, high = np.quantile(shares, (0.05, 0.95))
    learned = learned_weight(mixer)
    weights = [] if learned is None else learned.flatten().tolist()
    return [
        block,
        f'{shares.mean():.1%}',
        f'{low:.1%} to {high:.1%}',
        mean([use.readers for use in uses], '.2f'),
        _describe_distances([use.read_from for use in uses]),
        mean([use.sources for use in uses], '.2f'),
        mean([use.effective_voxels for use in uses], '.0f'),
        _describe_distances([use.collects_from for use in uses]),
        ' '.join(f'{weight:.2f}' for weight in weights),
    ]


def _describe_distances(distances: list[tuple[float, float]]) -> str:
    by_weight, even = zip(*distances)
    return f'{mean(by_weight, ".1f")} ({mean(even, ".1f")})'


def blocks_with_strata(model: nn.Module) -> Iterator[tuple[int, int, StratifiedAttention]]:
    """(stage, block, mixer) of every block that has tokens."""
    encoder: nn.Module = model.get_submodule('encoder')
    for i, stage in enumerate(encoder.get_submodule('stages').children()):
        for j, block in enumerate(stage.get_submodule('blocks').children()):
            mixer = block.get_submodule('mixer')
            if isinstance(mixer, StratifiedAttention) and mixer.num_strata:
                yield i, j, mixer


def learned_weight(mixer: StratifiedAttention) -> nn.Parameter | None:
    """The learned weight of a mixer's tokens, one number per head; None if it has none."""
    names = dict(joint='strata_offset', gated='gate')
    return getattr(mixer, names[mixer.fusion]) if mixer.fusion in names else None


def silence(model: nn.Module) -> None:
    """Set the learned weights so that no voxel reads a token."""
    for _, _, mixer in blocks_with_strata(model):
        if mixer.fusion == 'separate':
            mixer.out.weight.data[:, mixer.out.out_features :] = 0
            continue
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
        help='info file of the frames (default: %(default)s of the quickstart)',
    )
    parser.add_argument(
        '--frames',
        type=int,
        default=8,
        help='number of frames, evenly spread, a single sweep each (default: %(default)s)',
    )
    parser.add_argument(
        '--silent', type=Path, help='also write the weights with tokens that nobody reads'
    )
    args = parser.parse_args()
    if args.frames < 1:
        parser.error(f'--frames must be at least 1, not {args.frames}')
    return args


def run(args: argparse.Namespace) -> None:
    """Print the table, and write silent weights if asked to.

    Raises:
        FileNotFoundError, ValueError: missing files, a detector without tokens, empty frames.
    """
    model = init_detector(args.config, args.checkpoint)
    blocks = list(blocks_with_strata(model))
    if not blocks:
        raise ValueError(f'{args.config}: no block of this detector has strata tokens')
    uses = measure_frames(model, blocks, args.info, args.frames)
    if not uses:
        raise ValueError(f'{args.info}: none of these frames has a voxel in range')

    rows: list[Sequence[str]] = [COLUMNS]
    for stage, block, mixer in blocks:
        rows.append(describe(f'stage {stage}, block {block}', uses[stage, block], mixer))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print('  '.join(cell.rjust(width) for cell, width in zip(row, widths)))

    if args.silent:
        silence(model)
        save_weights(model, args.silent)
        print(f'written: {args.silent}')


def save_weights(model: nn.Module, path: Path) -> None:
    meta = dict(dataset_meta=dict(classes=model.class_names))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)


def measure_frames(
    model: nn.Module, blocks: list[tuple[int, int, StratifiedAttention]], info: Path, frames: int
) -> dict[tuple[int, int], list[TokenUse]]:
    """{(stage, block): one TokenUse per frame that has voxels in range}."""
    count = len(read_info_file(info)['data_list'])
    indices = np.unique(np.linspace(0, count - 1, frames).round().astype(int))
    uses: dict[tuple[int, int], list[TokenUse]] = {}
    for index in tqdm(indices, unit='frame'):
        points = read_frame(info, int(index)).points
        for stage, block, _ in blocks:
            record = inspect_strata(model, points, stage, block)
            if len(record.tokens):
                uses.setdefault((stage, block), []).append(measure(record))
    return uses


def main() -> int:
    args = parse_args()
    try:
        run(args)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'tokens.py: {error}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
