"""The traceable program gives the boxes of the model it was made from."""

import numpy as np
import pytest
import torch

from stratified3d.apis import detect
from stratified3d.deploy.package import PackagedDetector


@pytest.fixture(scope='module')
def run(detector):
    """Runs the program as a package does, with this capacity."""
    from stratified3d.deploy.export import describe
    from stratified3d.deploy.program import DetectorProgram

    def make(capacity=None, overflow='error'):
        program = DetectorProgram(detector, torch.float32, capacity if overflow == 'drop' else None)
        return PackagedDetector(program, describe(detector, torch.float32, capacity, overflow))

    return make


@pytest.fixture(autouse=True)
def exact(detector, monkeypatch):
    monkeypatch.setattr(detector, 'bev_dtype', 'fp32')


@pytest.mark.parametrize('count', [0, 1, 2, 7, 300, 20000])
def test_program_equals_the_model(detector, run, frame, assert_same, count):
    points = frame(count)
    assert_same(run()(points), detect(detector, points))


def test_points_out_of_range_or_broken_are_no_points(detector, run, frame, assert_same):
    points = frame(500)
    broken = points[:40].copy()
    broken[:20, 2] = np.nan
    broken[20:, 0] = np.inf
    packaged = run()
    with pytest.warns(UserWarning, match='40 points'):
        found = packaged(np.concatenate([points, broken]))
    assert_same(found, packaged(points))
    assert packaged.num_dropped == 40
    points[:, :3] += 1000
    assert len(packaged(points).boxes) == 0


def test_frame_over_the_capacity_is_an_error_before_any_work(run, frame):
    points = frame(500)
    *_, voxels = run()._program(torch.from_numpy(points))
    fits = run(int(voxels))
    fits(points)  # no error
    full = run(int(voxels) - 1)
    full._program = None
    with pytest.raises(ValueError, match=f'{voxels} voxels .* capacity of {voxels - 1}'):
        full(points)


def test_heading_branch_turns_boxes(detector, run, frame):
    points = frame(300)
    expected = run()(points).boxes
    packaged = run()
    packaged._program.head.heading.layers[2].weight.neg_()
    turned = packaged(points).boxes
    np.testing.assert_allclose(turned[:, :6], expected[:, :6], atol=1e-4)
    np.testing.assert_allclose(np.abs(turned[:, 6] - expected[:, 6]), np.pi, atol=1e-3)


def test_farthest_voxels_are_dropped_and_counted(detector, run, frame, assert_same):
    near, far = frame(200), frame(200, seed=1)
    near[:, :2] *= 0.2
    far[:, :2] = np.sign(far[:, :2]) * 40
    *_, voxels = run()._program(torch.from_numpy(near))
    packaged = run(int(voxels), 'drop')
    assert_same(packaged(near), detect(detector, near))
    assert packaged.num_dropped_voxels == 0
    assert_same(packaged(np.concatenate([far, near])), detect(detector, near))
    assert packaged.num_dropped_voxels > 0


def test_parts_that_cannot_be_traced_are_named(detector):
    from stratified3d.deploy.program import DetectorProgram

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, 'head', torch.nn.Identity())
        with pytest.raises(ValueError, match='head Identity'):
            DetectorProgram(detector)
