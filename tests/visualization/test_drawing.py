import numpy as np
import pytest

from stratified3d.visualization.annotations import place_labels
from stratified3d.visualization.drawing import (
    Drawing,
    box_corners,
    box_lines,
    class_color,
    ground_height,
    point_values,
    velocity_arrows,
)

BOXES = np.array([[1.0, 2, 3, 4, 2, 1, np.pi / 2, 0, 3], [0.0, 0, 0, 4, 2, 1, 0, 0.1, 0]])


def test_box_corners_begin_with_the_front_edge():
    np.testing.assert_allclose(box_corners(BOXES)[0], [[0, 4], [2, 4], [2, 0], [0, 0]], atol=1e-9)


def test_box_lines_span_the_box_and_the_mark_points_forward():
    lines = box_lines(BOXES)
    assert lines.shape == (2, 14, 2, 3)
    np.testing.assert_allclose(lines[0].reshape(-1, 3).min(0), [0, 0, 3], atol=1e-9)
    np.testing.assert_allclose(lines[0].reshape(-1, 3).max(0), [2, 4, 4], atol=1e-9)
    np.testing.assert_allclose(lines[0, 12, 0], [1, 2, 4], atol=1e-9)  # the middle of the roof
    assert (lines[0, 12:, 1, 1] == 4).all()


def test_velocity_arrows_lead_where_the_box_will_be():
    arrows = velocity_arrows(BOXES)
    assert arrows.shape == (1, 3, 2, 3)  # 0.1 m/s is no motion
    np.testing.assert_allclose(arrows[0, 0], [[1, 2, 3.5], [1, 5, 3.5]])
    assert velocity_arrows(BOXES[:, :7]).shape == (0, 3, 2, 3)


def test_labels_do_not_overlap_and_the_best_come_first():
    anchors = np.random.default_rng(0).uniform(0, 200, (200, 2))
    placed = place_labels(anchors, np.arange(200)[::-1], (0, 0, 200, 200))
    centers = np.array(list(placed.values()))
    apart = np.abs(centers[:, None] - centers[None]) >= (30, 15)
    assert (apart.any(-1) | np.eye(len(centers), dtype=bool)).all()
    assert 10 < len(placed) < 200 and 199 in placed
    assert (centers >= (15, 7.5)).all() and (centers <= (185, 192.5)).all()


def test_colors_of_classes_are_fixed():
    assert class_color('car') == class_color('Car') != class_color('truck')
    assert class_color('forklift') == class_color('forklift')


def test_heights_are_counted_from_the_ground():
    rng = np.random.default_rng(0)
    points = np.hstack(
        [rng.uniform(-15, 15, (1000, 2)), rng.normal(-1.8, 0.01, (1000, 1)), np.ones((1000, 1))]
    )
    points[:50, 2] = 2.2
    assert abs(ground_height(points) + 1.8) < 0.05
    values, _, ends = point_values(points, 'height')
    assert ends == (0, 4) and values[:50].min() > 0.95 and values[50:].max() < 0.05


def test_drawing_names_what_does_not_fit():
    with pytest.raises(ValueError, match='1 names'):
        Drawing(np.zeros((0, 4)), BOXES, names=['car'])
    with pytest.raises(ValueError, match='3 scores'):
        Drawing(np.zeros((0, 4)), BOXES, np.ones(3))
