"""What tokens are for: a number of the whole frame that no window knows."""

import pytest
import torch

from stratified3d.layers.attention import MixerContext, StratifiedAttention
from stratified3d.layers.block import StratifiedStage
from stratified3d.layers.sparse_conv import SparseConvTensor
from stratified3d.testing import random_coords

SHAPE = (2, 24, 24)
FRAMES = 8
VOXELS = 100
STEPS = 100
NOISE = 2.0  # of one voxel; the number of the frame is uniform in -1 to 1
ALL = dict(selection='farthest', collect_scale=0.43, token_mixing=True)


def draw_frames(seed):
    """Voxels of frames: a channel of each tells the frame's number, but with much noise."""
    generator = torch.Generator().manual_seed(seed)
    coords = random_coords((VOXELS,) * FRAMES, SHAPE, seed)
    number = 2 * torch.rand(FRAMES, generator=generator) - 1
    feats = torch.randn(len(coords), 4, generator=generator)
    feats[:, 0] = number[coords[:, 0].long()] + NOISE * feats[:, 0]
    return feats, coords, number


class Probe(torch.nn.Module):
    """Two blocks that predict the frame's number at every voxel; windows of 6 x 6 x 2 voxels."""

    def __init__(self, mixer):
        super().__init__()
        self.enter = torch.nn.Linear(4, 16)
        self.stage = StratifiedStage(
            16,
            2,
            lambda i: StratifiedAttention(MixerContext(16, 2, block=i), **mixer),
            (2, 6, 6),
            head_dim=8,
            use_conv=False,
        )
        self.leave = torch.nn.Linear(16, 1)

    def error(self, feats, coords, number):
        """Mean squared error over the voxels."""
        x = SparseConvTensor(self.enter(feats), coords, list(SHAPE), FRAMES)
        x, grids = self.stage.order_voxels(x, coords[:, [3, 2, 1]].float())
        found = self.leave(self.stage(x, grids).features).squeeze(1)
        return (found - number[x.indices[:, 0].long()]).square().mean()


def train(mixer):
    """Error on frames that were not trained on, RMS."""
    torch.manual_seed(0)
    probe = Probe(mixer)
    optimizer = torch.optim.Adam(probe.parameters(), lr=1e-2)
    for step in range(STEPS):
        loss = probe.error(*draw_frames(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        errors = [probe.error(*draw_frames(10_000 + i)) for i in range(8)]
    return float(torch.stack(errors).mean().sqrt())


@pytest.fixture(scope='module')
def error_of_windows():
    return train(dict(num_strata=0))


@pytest.mark.parametrize('options', [{}, ALL], ids=['pool', 'all options'])
def test_tokens_tell_a_voxel_what_its_window_cannot(error_of_windows, options):
    error = train(dict(num_strata=4, strata_offset=0.0, **options))
    # a constant guess is off by 0.58, the mean of a window by 0.47, that of a frame by 0.19
    assert error_of_windows > 0.38
    assert error < 0.8 * error_of_windows
