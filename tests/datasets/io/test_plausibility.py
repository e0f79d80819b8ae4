"""Which numbers are taken for points, and what a cloud looks like."""

import re

import numpy as np
import pytest

from benchmarks.point_samples import random_sweep
from stratified3d.datasets.io.plausibility import find_fault, sample_rows
from stratified3d.datasets.io.point_summary import describe_points


@pytest.fixture
def points():
    return random_sweep(3000)[:, :3]


@pytest.mark.parametrize(
    'change',
    [
        lambda p: p,
        lambda p: 1000 * p,  # millimeters
        lambda p: p[:, [0, 2, 1]],  # camera axes
        lambda p: np.column_stack([p[:, :2], np.full(len(p), -1.8)]),  # flat ground
        lambda p: p[:0],
        lambda p: np.zeros((999, 3)),
        lambda p: p + [100, 200, 0],
    ],
)
def test_sweeps_have_no_fault(points, change):
    assert find_fault(change(points)) == ''


@pytest.mark.parametrize(
    'change, named',
    [
        (lambda p: np.where(np.arange(3000)[:, None] % 3 > 0, np.nan, p), '67% .*NaN'),
        (lambda p: np.full((5, 3), np.inf), '100% .*NaN'),
        (lambda p: p * np.float32(1e20), 'no coordinate'),
        (lambda p: p * np.float32(1e-30), 'no coordinate'),
        (lambda p: np.where(np.arange(3000)[:, None] % 3 > 0, 5, p), '67% .*one place'),
        (lambda p: p * [0, 1, 1], 'x is 0'),
        (lambda p: p * [1, 0, 1], 'y is 0'),
        (lambda p: np.column_stack([p[:, :2], np.linalg.norm(p, axis=1)]), 'z is the distance'),
        (lambda p: p + [5e5, 5e6, 0], 'map coordinates'),
    ],
)
def test_faults_are_named(points, change, named):
    assert re.search(named, find_fault(change(points)))


def test_missing_points_may_be_many_but_not_all(points):
    points[:2999] = np.nan
    assert find_fault(points, may_be_missing=True) == ''
    points[:] = np.nan
    assert 'NaN' in find_fault(points, may_be_missing=True)


def test_samples_follow_no_pattern():
    rows = np.arange(100_000)
    sample = sample_rows(rows, 5000)
    assert len(sample) == 5000 and np.all(np.diff(sample) >= 0)
    assert set(sample % 12) == set(range(12))
    np.testing.assert_array_equal(sample, sample_rows(rows, 5000))
    np.testing.assert_array_equal(sample_rows(rows[:10], 5000), rows[:10])


def test_summary_of_a_cloud():
    points = np.array([[1, -2, 3, 5, 0], [np.nan, 0, 0, 9, 0], [-1, 4, 0, 7, 0]], np.float32)
    summary = describe_points(points)
    assert (summary.points, summary.finite, summary.intensity) == (3, 2, (5.0, 7.0))
    np.testing.assert_array_equal(summary.lower, [-1, -2, 0])
    np.testing.assert_array_equal(summary.upper, [1, 4, 3])


def test_summary_of_nothing():
    summary = describe_points(np.full((2, 4), np.nan))
    assert (summary.points, summary.finite) == (2, 0)
    assert np.isnan([*summary.lower, *summary.upper, *summary.intensity]).all()
