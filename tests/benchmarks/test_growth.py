"""How many operations every attention of the zoo takes on a larger area: counted, not timed."""

import math

import pytest
import torch

from benchmarks.attention import growth
from benchmarks.attention.methods import Method
from benchmarks.point_clouds import VoxelBatch, take_rows, thin_rows
from projects.attention_zoo import (
    OTHER_FUNCTION,
    SAME_FUNCTION,
    AxialAttention,
    CrossShapedAttention,
    DilatedAttention,
    FullAttention,
    SampledWindowAttention,
    SpatialReductionAttention,
)
from stratified3d.layers.attention import MixerContext
from stratified3d.layers.window_grid import build_window_grid
from stratified3d.testing import random_coords

HEADS, WIDTH, TOKENS = 4, 8, 8
WINDOW = (8, 2, 2)  # so small that an area has more windows than there are regions
# sides and rows, of one density; FlexAttention's tokens, right behind the rows, would lie in one
# block of 128 keys and in two
AREAS = ((64, 950), (128, 3800))
LINEAR, STRIPS, PAIRS = (0.0, 1.1), (1.12, 1.6), (1.9, 2.1)  # exponents
# strips and lines are as long as the scene; the others pair voxels with all voxels or all cells
EXPECTED = {
    CrossShapedAttention: STRIPS,
    AxialAttention: STRIPS,
    FullAttention: PAIRS,
    SpatialReductionAttention: PAIRS,
}
SETTINGS = {DilatedAttention: dict(dilation=(1, 2, 2))}  # a neighborhood that fits into the area


def count(kind, side, rows):
    """Operations of a mixer on that many random voxels of a square area."""
    shape = (8, side, side)
    coords = random_coords((rows,), shape)
    grid = build_window_grid(
        coords,
        coords[:, [3, 2, 1]].double() / 4,
        WINDOW,
        (0, 0, 0),
        batch_size=1,
        spatial_shape=shape,
        head_dim=WIDTH,
    )
    same = kind in SAME_FUNCTION
    settings = dict(num_strata=TOKENS) if same else SETTINGS.get(kind, {})
    context = MixerContext(HEADS * WIDTH, HEADS, window_shape=WINDOW, block=kind.own_block)
    mixer = kind(context, **settings).to(growth.DTYPE)
    inputs = [torch.randn(rows, HEADS, WIDTH, dtype=growth.DTYPE) for _ in range(3)]
    if same:
        inputs += [torch.randn(1, TOKENS, HEADS, WIDTH, dtype=growth.DTYPE) for _ in range(2)]
        inputs.append(torch.zeros(1, TOKENS, HEADS))
    group = 'same' if same else 'other'
    return growth.count(Method(kind.__name__, group, settings, True, mixer), inputs, grid)


@pytest.mark.parametrize('kind', SAME_FUNCTION + OTHER_FUNCTION)
def test_operations_grow_with_the_area_as_the_design_says(kind):
    rows = [rows for _, rows in AREAS]
    counts = [count(kind, *area) for area in AREAS]
    least, most = EXPECTED.get(kind, LINEAR)
    assert least <= growth.exponent(rows, [one.attention for one in counts]) <= most

    plans = [one.plan for one in counts]
    if min(plans):
        # farthest point sampling compares all rows with an eighth of them
        least, most = PAIRS if kind is SampledWindowAttention else LINEAR
        assert least <= growth.exponent(rows, plans) <= most


def test_count_is_that_of_the_products_and_of_the_numbers_written():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert growth.count_calls(lambda: (a @ b).T + 1) == 2 * 3 * 5 * 7 + 3 * 7 + 7 * 3


def test_count_of_attention_has_one_product_for_logits_and_one_for_values():
    q, k = torch.ones(1, 2, 6, 4), torch.ones(1, 2, 9, 4)
    attention = torch.nn.functional.scaled_dot_product_attention
    counted = growth.count_calls(lambda: attention(q, k, k))
    products, outputs = 2 * 2 * 2 * 6 * 9 * 4, 2 * 6 * 4 + 2 * 6  # and the log-sum-exp
    assert counted == products + outputs


def random_batch(rows, side):
    coords = random_coords((rows,), (8, side, side))
    positions = coords[:, [3, 2, 1]] * torch.tensor((0.3, 0.2, 0.25)) - 5
    return VoxelBatch('random', coords, positions, 1, (8, side, side), (8, 4, 4))


def test_rows_are_taken_from_an_area_that_grows_along_both_axes():
    batch = random_batch(800, 30)
    n = len(batch.coords)
    for rows in (200, n, 4 * n, 5 * n + 7, 9 * n):
        taken = take_rows(batch, rows)
        assert len(taken.coords) == rows == len(taken.coords.unique(dim=0))
        sides = taken.coords[:, 2:].amax(0) + 1
        assert (sides <= torch.tensor(taken.spatial_shape[1:])).all()
        if rows in (200, n, 4 * n, 9 * n):
            side = 30 * math.sqrt(rows / n)
            assert (sides - side).abs().max() < 0.1 * side  # copies are 32 voxels apart
        apart = taken.positions[:, :2] - taken.coords[:, [3, 2]] * torch.tensor((0.3, 0.2))
        assert float(apart.std(0).max()) < 1e-3  # voxels keep their size


def test_thinned_rows_keep_their_area():
    batch = random_batch(800, 30)
    thin = thin_rows(batch, 300)
    assert len(thin.coords.unique(dim=0)) == 300 and thin.spatial_shape == batch.spatial_shape
    both = torch.cat([thin.coords, batch.coords]).unique(dim=0)
    assert len(both) == 800
    assert float((thin.positions[:, 0] - thin.coords[:, 3] * 0.3 + 5).abs().max()) < 1e-5


def test_colors_tell_linear_from_strips_and_pairs():
    colors = [growth._color(power) for power in (0.89, 1.2, 1.43, 1.6, 1.9, 2.0)]
    assert colors == ['tab:green'] * 2 + ['tab:orange'] * 2 + ['tab:red'] * 2


def test_table_and_picture_have_every_attention(tmp_path):
    growths = {
        'LongAttention': growth.Growth([10.0, 20.0, 40.0], 1.5, 2.0, None),
        'ShortAttention': growth.Growth([9.0, 9.0, 9.0], 1.0, 1.0, 1.02),
    }
    lines = growth.render(growths).split('\n')
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]]
    assert rows[0] == ['ShortAttention', '9', '1.00', '1.00', '1.02']
    assert rows[1] == ['LongAttention', '10', '1.50', '2.00', '-']
    growth.draw(growths, tmp_path / 'growth.png')
    assert (tmp_path / 'growth.png').stat().st_size > 3000
