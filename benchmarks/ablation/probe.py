"""Ask every voxel for two numbers of its frame that it can hardly know from its own window.

They are the height of the ground 40 m ahead of the voxel, in frames that are tilted and raised at
random, and the gain that all intensities of the frame were multiplied by. Windows alone are
compared with tokens of several settings, in short trainings on simulated frames.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor, nn
from tqdm import tqdm

from stratified3d.ground import Ground, find_ground
from stratified3d.layers.attention import MixerContext, StratifiedAttention
from stratified3d.layers.block import StratifiedStage
from stratified3d.layers.sparse_conv import SparseConvTensor
from stratified3d.layers.strata import VoxelScores
from stratified3d.layers.strata_record import record_strata
from stratified3d.models.objectness import objectness_loss
from stratified3d.ops import grid_shape, segment_reduce, voxel_centers, voxelize
from stratified3d.simulation.frame import simulate_frame

EXAMPLES = """examples:
  python -m benchmarks.ablation.probe                              all variants, some minutes
  python -m benchmarks.ablation.probe --variants windows "offset 0" --seeds 5

columns: errors are root mean squares over the voxels of frames that were not trained on, +- the
standard error over the seeds; the error of a constant guess is in the first row
  ground, m         height of the ground 40 m ahead of a voxel
  log gain          logarithm of the frame's intensity gain
  share             part of a voxel's attention that goes to the tokens of the last block, in one
                    of these frames
  voxels            how many voxels a token of that block collects from there, see `StrataRecord`
"""
COLUMNS = ('variant', 'ground, m', 'log gain', 'share', 'voxels')
VARIANTS: dict[str, dict[str, Any]] = {
    'windows': dict(num_strata=0),
    'default': {},
    'offset 0': dict(strata_offset=0.0),
    'collect log n': dict(strata_offset=0.0, collect_scale=0.43),
    'tokens mix': dict(strata_offset=0.0, token_mixing=True),
    'farthest': dict(strata_offset=0.0, selection='farthest'),
    'topk': dict(strata_offset=0.0, selection='topk'),
    'separate': dict(fusion='separate'),
    'separate, learned': dict(fusion='separate', selection='learned'),
    'separate, learned, mix': dict(fusion='separate', selection='learned', token_mixing=True),
    'all': dict(strata_offset=0.0, selection='topk', collect_scale=0.43, token_mixing=True),
}
VOXEL_SIZE = (0.8, 0.8, 1.0)
RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
AHEAD = 40.0  # m along y
CHANNELS, HEADS = 32, 2
BATCH = 8
RATE = 5e-3
# standard deviations of what a frame is changed by
GAIN, RAISE, SLOPE = 0.35, 0.3, 0.03
TYPICAL = -1.84  # m, height of the ground under the sensor of a simulated frame
UNITS = (1.0, GAIN)  # m of height and log gain that errors are divided by in training


class Frame(NamedTuple):
    """points [P, 5] and boxes [K, 9], see `simulate_frame`; ground: of these points; gain: natural
    logarithm of the factor on the intensities."""

    points: np.ndarray
    boxes: np.ndarray
    ground: Ground
    gain: float = 0.0


def change_frame(frame: Frame, rng: np.random.Generator) -> Frame:
    """Shear, raise and brighten a frame at random; a small shear is a small tilt."""
    gain = GAIN * rng.standard_normal()
    height = RAISE * rng.standard_normal()
    slope_x, slope_y = SLOPE * rng.standard_normal(2)

    points, boxes = frame.points.copy(), frame.boxes.copy()
    for part in (points, boxes):
        part[:, 2] += height + part[:, 0] * slope_x + part[:, 1] * slope_y
    points[:, 3] = np.clip(points[:, 3] * np.exp(gain), 0, 255)
    before = frame.ground
    ground = Ground(before.height + height, before.slope_x + slope_x, before.slope_y + slope_y)
    return Frame(points, boxes, ground, gain)


def simulate_frames(seeds: Sequence[int], thin: int) -> list[Frame]:
    """Simulate frames and find their ground; of their points one in `thin` is kept.

    Frames whose ground cannot be told are left out.
    """
    frames = []
    for seed in tqdm(seeds, unit='frame', desc='simulating'):
        frame = simulate_frame(seed)
        ground, _ = find_ground(frame['points'])
        if ground is not None:
            frames.append(Frame(frame['points'][::thin], frame['boxes'], ground))
    return frames


class Probe(nn.Module):
    """Means over the points of a voxel, two blocks as in the detector, two numbers at every voxel.

    Args:
        mixer: settings of `StratifiedAttention`.
    """

    def __init__(self, mixer: dict[str, Any]):
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(6, CHANNELS), nn.GELU(), nn.Linear(CHANNELS, CHANNELS))
        self.stage = StratifiedStage(
            CHANNELS,
            2,
            lambda i: StratifiedAttention(MixerContext(CHANNELS, HEADS, block=i), **mixer),
            (8, 6, 6),
            head_dim=CHANNELS // HEADS,
        )
        self.out = nn.Sequential(nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 2))
        self.shape = list(grid_shape(VOXEL_SIZE, RANGE))

    def forward(self, frames: Sequence[Frame]) -> tuple[Tensor, list[VoxelScores]]:
        """Return errors [N, 2], see `UNITS`, and the objectness that tokens were chosen by."""
        feats, coords = describe_voxels(frames)
        x = SparseConvTensor(self.enter(feats), coords, self.shape, len(frames))
        x, grids = self.stage.order_voxels(x, voxel_centers(coords, VOXEL_SIZE, RANGE))
        scores: list[VoxelScores] = []
        found = self.out(self.stage(x, grids, scores).features)
        sample = x.indices[:, 0].long()
        wanted = _wanted(frames, sample, voxel_centers(x.indices, VOXEL_SIZE, RANGE))
        return found - wanted, scores


def describe_voxels(frames: Sequence[Frame]) -> tuple[Tensor, Tensor]:
    """Features [N, 6] of about 1 and coords [N, 4] of the voxels of frames.

    The features are means over the points of a voxel: the height, the logarithm of the intensity,
    the place (x, y) and its offset from the center in half voxels.
    """
    clouds = [torch.from_numpy(frame.points) for frame in frames]
    sample = torch.arange(len(frames)).repeat_interleave(torch.tensor([*map(len, clouds)]))
    points = torch.cat(clouds)
    voxels = voxelize(points, sample, VOXEL_SIZE, RANGE)
    x, y, z, intensity = points[voxels.point_order, :4].unbind(1)
    columns = torch.stack([x, y, z - TYPICAL, intensity.log1p() - 2], 1)
    means = segment_reduce(columns, voxels.offsets, 'mean')
    centers = voxel_centers(voxels.coords, VOXEL_SIZE, RANGE)
    offsets = (means[:, :2] - centers[:, :2]) / (VOXEL_SIZE[0] / 2)
    return torch.cat([means[:, 2:], means[:, :2] / 25, offsets], 1), voxels.coords


def _wanted(frames: Sequence[Frame], sample: Tensor, positions: Tensor) -> Tensor:
    """[N, 2] height of the ground ahead of each voxel and log gain, in `UNITS`."""
    table = torch.tensor([[*frame.ground, frame.gain] for frame in frames])
    height, slope_x, slope_y, gain = table.float()[sample].unbind(1)
    x, y, _ = positions.unbind(1)
    ahead = height + slope_x * x + slope_y * (y + AHEAD)
    return torch.stack([(ahead - TYPICAL) / UNITS[0], gain / UNITS[1]], 1)


def draw(frames: Sequence[Frame], steps: int, seed: int) -> Iterator[list[Frame]]:
    """Changed frames of every training step; the same for all variants."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = rng.choice(len(frames), BATCH, replace=False)
        yield [change_frame(frames[i], rng) for i in chosen]


def train(mixer: dict[str, Any], frames: Sequence[Frame], steps: int, seed: int) -> Probe:
    """Train a probe from random weights."""
    torch.manual_seed(seed)
    probe = Probe(mixer)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for batch in draw(frames, steps, seed):
        errors, scores = probe(batch)
        loss = errors.square().mean()
        if scores:
            pairs = [(score, VOXEL_SIZE) for score in scores]
            loss = loss + objectness_loss(pairs, [_gt_of(frame) for frame in batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(probe.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    return probe


def _gt_of(frame: Frame) -> InstanceData:
    return InstanceData(bboxes_3d=LiDARInstance3DBoxes(frame.boxes, box_dim=9))


class Score(NamedTuple):
    """ground (m) and gain (natural logarithm): RMS errors; share, voxels: see EXAMPLES."""

    ground: float
    gain: float
    share: float
    voxels: float


@torch.no_grad()
def evaluate(probe: Probe, frames: Sequence[Frame]) -> Score:
    """Errors over the voxels of frames, and what the tokens do in the first of them."""
    probe.eval()
    mixer = probe.stage.get_submodule('blocks.1.mixer')
    assert isinstance(mixer, StratifiedAttention)
    squares = []
    for frame in frames:
        errors, _ = probe([frame])
        squares.append(errors.square().mean(0))
    ground, gain = torch.stack(squares).mean(0).sqrt().tolist()
    share = voxels = float('nan')
    if mixer.num_strata:
        with record_strata(mixer) as records:
            probe(frames[:1])
        share = float(records[0].read.sum(1).mean())
        voxels = float(records[0].effective_voxels.mean())
    return Score(ground * UNITS[0], gain * UNITS[1], share, voxels)


@torch.no_grad()
def evaluate_constant(frames: Sequence[Frame]) -> Score:
    """Errors of the best constant guess over the voxels of the same frames."""
    everything = []
    for frame in frames:
        _, coords = describe_voxels([frame])
        sample = coords[:, 0].long()
        everything.append(_wanted([frame], sample, voxel_centers(coords, VOXEL_SIZE, RANGE)))
    guess = torch.stack([wanted.mean(0) for wanted in everything]).mean(0)
    squares = [(wanted - guess).square().mean(0) for wanted in everything]
    ground, gain = torch.stack(squares).mean(0).sqrt().tolist()
    return Score(ground * UNITS[0], gain * UNITS[1], float('nan'), float('nan'))


def describe(name: str, scores: Sequence[Score]) -> list[str]:
    """One row of the table."""
    cells = [name]
    for values, form in zip(zip(*scores), ('.3f', '.3f', '.1%', '.0f')):
        mean = np.mean(values)
        if np.isnan(mean):
            cells.append('-')
            continue
        cell = format(mean, form)
        if form == '.3f' and len(values) > 1:
            cell += f' +- {np.std(values, ddof=1) / len(values) ** 0.5:.3f}'
        cells.append(cell)
    return cells


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--variants', nargs='+', metavar='NAME', choices=VARIANTS, default=list(VARIANTS)
    )
    parser.add_argument('--seeds', type=int, default=3, help='trainings (default: %(default)s)')
    parser.add_argument('--steps', type=int, default=150, help='of eight frames (%(default)s)')
    parser.add_argument('--frames', type=int, default=12, help='to train on (%(default)s)')
    parser.add_argument(
        '--thin', type=int, default=24, help='keep one point in so many (default: %(default)s)'
    )
    args = parser.parse_args()
    for name, least in dict(seeds=1, steps=10, frames=BATCH, thin=1).items():
        if getattr(args, name) < least:
            parser.error(f'--{name} is at least {least}, not {getattr(args, name)}')
    return args


def main() -> int:
    args = parse_args()
    held_out = max(args.frames // 3, 2)
    frames = simulate_frames(range(args.frames + held_out), args.thin)
    rng = np.random.default_rng(10_000)
    test = [change_frame(frame, rng) for frame in frames[-held_out:] for _ in range(4)]
    train_frames = frames[:-held_out]
    if len(train_frames) < BATCH:
        sys.exit(f'probe.py: the ground was found in only {len(frames)} frames; take more --frames')

    scores: dict[str, list[Score]] = {'constant': [], **{name: [] for name in args.variants}}
    with tqdm(total=args.seeds * len(args.variants), unit='training') as bar:
        for seed in range(args.seeds):
            for name in args.variants:
                probe = train(VARIANTS[name], train_frames, args.steps, seed)
                score = evaluate(probe, test)
                scores[name].append(score)
                bar.update()
                tqdm.write(
                    f'{name}, seed {seed}: ground {score.ground:.3f} m, log gain {score.gain:.3f}'
                )
    scores['constant'].append(evaluate_constant(test))

    rows: list[Sequence[str]] = [COLUMNS]
    rows += [describe(name, found) for name, found in scores.items()]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print('  '.join(cell.rjust(width) for cell, width in zip(row, widths)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
