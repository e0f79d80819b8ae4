import numpy as np
import pytest

from stratified3d.visualization.bev import draw_bev
from stratified3d.visualization.drawing import GT_COLOR, Drawing, class_color, rgb


def has(picture, color):
    """Lines are partly transparent and smoothed, so their very color need not occur."""
    return bool((np.abs(picture - 255 * rgb(color)) < 30).all(-1).any())


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(0, 20, (500, 5)).astype(np.float32)


def test_boxes_are_drawn_in_their_colors(points):
    boxes = np.array([[5.0, 5, 0, 9, 4, 2, 0.5]])
    bare = draw_bev(Drawing(points))
    assert bare.shape == (1200, 1480, 3)
    assert not has(bare, GT_COLOR) and not has(bare, class_color('car'))
    found = draw_bev(Drawing(points, boxes, np.array([0.9]), ['car']))
    assert has(found, class_color('car')) and not has(found, GT_COLOR)
    both = draw_bev(
        Drawing(points, boxes, np.array([0.9]), ['car'], gt_boxes=boxes + [8.0, 0, 0, 0, 0, 0, 0])
    )
    assert has(both, class_color('car')) and has(both, GT_COLOR)


def test_boxes_outside_of_the_area_are_left_out(points):
    far = Drawing(points, np.array([[500.0, 5, 0, 9, 4, 2, 0.5]]), np.array([0.9]), ['car'])
    near = draw_bev(far, area=(490.0, 0.0, 510.0, 20.0))[60:1140, 80:1160]
    assert has(near, class_color('car'))
    assert not has(draw_bev(far)[60:1140, 80:1160], class_color('car'))


def test_scores_and_arrows_are_drawn(points):
    still = Drawing(points, np.array([[5.0, 5, 0, 4, 2, 2, 0, 0, 0]]), np.array([0.9]), ['car'])
    moving = Drawing(points, np.array([[5.0, 5, 0, 4, 2, 2, 0, 0, 9]]), np.array([0.9]), ['car'])
    plain = draw_bev(still)
    assert (plain != draw_bev(moving)).any() and (plain != draw_bev(still, show_scores=False)).any()


def test_points_are_colored_by_height_or_intensity(points):
    assert (draw_bev(Drawing(points)) != draw_bev(Drawing(points), coloring='intensity')).any()
    with pytest.raises(ValueError, match="not 'time'"):
        draw_bev(Drawing(points), coloring='time')
    with pytest.raises(ValueError, match='3 columns'):
        draw_bev(Drawing(points[:, :3]), coloring='intensity')


def test_frame_without_points_is_drawn():
    assert draw_bev(Drawing(np.zeros((0, 5)), scores=np.zeros(0))).std() > 1
