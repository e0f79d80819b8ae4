"""Voxels and tables of a fixed number of rows equal those of as many as there are."""

import pytest
import torch

from stratified3d.deploy.convolution import strided_table, strided_table_padded, submanifold_table
from stratified3d.deploy.padded import pad_coords, unique_padded, voxelize_padded
from stratified3d.ops import voxelize
from stratified3d.testing import random_coords

GRID = dict(voxel_size=(1.0, 1.0, 2.0), point_cloud_range=(-8.0, -6.0, -4.0, 8.0, 6.0, 4.0))
SHAPE = (4, 12, 16)


def random_points(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=generator) * torch.tensor([6, 6, 3, 1, 1])


@pytest.mark.parametrize('count', [1, 2, 40, 3000])
def test_padded_voxels_are_those_of_the_frame(count):
    points = random_points(count)
    points[0] = 0  # in range
    expected = voxelize(points, torch.zeros(count, dtype=torch.long), **GRID)
    total = len(expected.coords)
    for capacity in (total, total + 9):
        voxels, found = voxelize_padded(points, capacity, **GRID)
        assert found == total and len(voxels.coords) == capacity + 1
        assert torch.equal(voxels.coords[:total], expected.coords)
        assert torch.equal(voxels.offsets[: total + 1], expected.offsets)
        inside = len(expected.point_order)
        assert torch.equal(voxels.point_order[:inside], expected.point_order)
        assert (voxels.coords[total:, 0] == 1).all() and voxels.offsets[-1] == count
        assert torch.equal(voxels.point_order.sort().values, torch.arange(count))


def test_farthest_voxels_are_left_out():
    points = random_points(500)
    every = voxelize(points, torch.zeros(500, dtype=torch.long), **GRID).coords
    distance = (every[:, 2:] + 0.5 - torch.tensor([6, 8])).square().sum(1)
    nearest = distance.argsort(stable=True)[:20].sort().values
    voxels, found = voxelize_padded(points, 20, **GRID)
    assert found == len(every) and torch.equal(voxels.coords[:20], every[nearest])


def test_padding_comes_after_different_keys():
    keys, place = unique_padded(torch.tensor([5, 2, 9, 2, 9]))
    assert keys.tolist() == [2, 5, 9, 9, 9] and place.tolist() == [1, 0, 2, 0, 2]


@pytest.mark.parametrize('padding', [1, 7])
def test_tables_do_not_see_padding(padding):
    coords = random_coords((60,), SHAPE)
    padded = torch.cat([coords, pad_coords(coords[:padding], torch.zeros(padding).bool())])
    expected = submanifold_table(coords, SHAPE, (3, 3, 3))
    found = submanifold_table(padded, SHAPE, (3, 3, 3))
    assert torch.equal(found[:, :60], expected)
    assert ((found[:, 60:] == -1) | (found[:, 60:] >= 60)).all()

    expected, cells = strided_table(coords, SHAPE, (4, 2, 1))
    found, found_cells = strided_table_padded(padded, SHAPE, (4, 2, 1))
    assert len(found_cells) == len(padded)
    assert (
        torch.equal(found_cells[: len(cells)], cells) and (found_cells[len(cells) :, 0] == 1).all()
    )
    assert torch.equal(found[:, : len(cells)], expected)
