import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratified3d.ops import grid_shape, voxel_centers, voxelize

RANGE = (-4.0, -3.0, -1.0, 4.0, 3.0, 1.0)
SIZE = (0.5, 0.25, 0.5)


@settings(deadline=None, max_examples=40)
@given(count=st.integers(0, 200), batch=st.integers(1, 3), seed=st.integers(0, 1000))
def test_every_point_in_range_is_in_its_voxel_once(count, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(count, 4, generator=generator) - 0.5) * torch.tensor([10.0, 8.0, 3.0, 1.0])
    sample = torch.randint(0, batch, (count,), generator=generator)
    voxels = voxelize(points, sample, SIZE, RANGE)

    expected = {}
    for i, ((x, y, z, _), b) in enumerate(zip(points.tolist(), sample.tolist())):
        if -4 <= x < 4 and -3 <= y < 3 and -1 <= z < 1:
            expected.setdefault(
                (b, int((z + 1) / 0.5), int((y + 3) / 0.25), int((x + 4) / 0.5)), []
            ).append(i)
    found = {
        tuple(c): voxels.point_order[a:b].tolist()
        for c, a, b in zip(
            voxels.coords.tolist(), voxels.offsets.tolist(), voxels.offsets.tolist()[1:]
        )
    }
    assert found == expected  # also the order of the points within a voxel
    assert (
        voxels.coords.tolist() == sorted(voxels.coords.tolist())
        and voxels.coords.dtype == torch.int32
    )


def test_points_out_of_range_give_no_voxels():
    voxels = voxelize(torch.full((3, 3), 99.0), torch.zeros(3, dtype=torch.long), SIZE, RANGE)
    assert (
        voxels.coords.shape == (0, 4)
        and voxels.offsets.tolist() == [0]
        and not len(voxels.point_order)
    )


def test_a_point_on_the_upper_border_is_outside():
    points = torch.tensor([[4.0, 0, 0], [-4.0, -3.0, -1.0]])
    assert voxelize(points, torch.zeros(2, dtype=torch.long), SIZE, RANGE).point_order.tolist() == [
        1
    ]


def test_voxel_centers_lie_half_a_voxel_inside():
    centers = voxel_centers(
        torch.tensor([[0, 0, 0, 0], [1, 3, 2, 1]], dtype=torch.int32), SIZE, RANGE
    )
    torch.testing.assert_close(
        centers, torch.tensor([[-3.75, -2.875, -0.75], [-3.25, -2.375, 0.75]])
    )


def test_grid_shape_is_z_y_x():
    assert grid_shape(SIZE, RANGE) == (4, 24, 16)
    assert grid_shape((0.3, 0.3, 0.25), (-54, -54, -5, 54, 54, 3)) == (32, 360, 360)


@pytest.mark.parametrize(
    'size, bounds, message',
    [
        (
            (0.3, 0.25, 0.5),
            RANGE,
            'x: .* not a multiple .* to 4.1 m',
        ),
        ((0.0, 0.25, 0.5), RANGE, 'x: voxel size 0.0 m'),
        (SIZE, (-4, 3, -1, 4, -3, 1), 'y: .* 3 to -3 m not empty'),
        ((0.5, 0.5), RANGE, 'voxel_size has 3 numbers'),
        ((99.0, 0.25, 0.5), RANGE, 'not a multiple'),
    ],
)
def test_bad_grids_are_refused(size, bounds, message):
    with pytest.raises(ValueError, match=message):
        grid_shape(size, bounds)


@pytest.mark.parametrize(
    'points, sample',
    [
        (torch.zeros(3, 2), torch.zeros(3)),
        (torch.zeros(3, 4), torch.zeros(2)),
        (torch.zeros(3), torch.zeros(3)),
    ],
)
def test_points_of_bad_shape_are_refused(points, sample):
    with pytest.raises(ValueError, match=r'points are \[P, C >= 3\]'):
        voxelize(points, sample.long(), SIZE, RANGE)
