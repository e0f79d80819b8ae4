"""Linear attention in fp16, as mixed precision runs it: sums over many rows."""

import pytest
import torch

from projects.attention_zoo import ConcentratedLinearAttention, LinearWindowAttention
from stratified3d.layers.attention import MixerContext
from stratified3d.layers.window_grid import build_window_grid
from stratified3d.testing import random_coords, relative_error

HEADS, WIDTH, SHAPE, WINDOW = 2, 16, (8, 64, 64), (8, 32, 32)


@pytest.fixture(scope='module')
def grid():
    """One sample of 20,000 rows in windows of thousands."""
    coords = random_coords((20_000,), SHAPE)
    return build_window_grid(
        coords,
        coords[:, [3, 2, 1]].float() / 4,
        WINDOW,
        (0, 0, 0),
        batch_size=1,
        spatial_shape=SHAPE,
        head_dim=WIDTH,
    )


@pytest.mark.parametrize('kind', [ConcentratedLinearAttention, LinearWindowAttention])
def test_sums_over_many_rows_do_not_overflow_fp16(kind, grid):
    torch.manual_seed(0)
    mixer = kind(MixerContext(HEADS * WIDTH, HEADS, window_shape=WINDOW, block=kind.own_block))
    q, k, v = (torch.randn(len(grid.coords), HEADS, WIDTH) for _ in range(3))
    narrow = [x.half() for x in (4 * q, 4 * k, v)]
    with torch.no_grad():
        wanted = mixer.attend(*(x.float() for x in narrow), grid)
        with torch.autocast('cpu', torch.float16):
            out = mixer.attend(*narrow, grid)
    assert torch.isfinite(out).all() and relative_error(out.float(), wanted) < 0.02
