import numpy as np
from matplotlib.image import imread

from stratified3d.visualization.bev import box_corners, draw_bev


def test_corners_front_edge_first():
    boxes = np.array([[1.0, 2, 0, 4, 2, 1, np.pi / 2]])
    np.testing.assert_allclose(box_corners(boxes)[0], [[0, 4], [2, 4], [2, 0], [0, 0]], atol=1e-9)


def colours(path):
    return {tuple(pixel) for row in (imread(path)[..., :3] * 255).round().astype(int) for pixel in row.tolist()}


def test_boxes_are_drawn_in_their_colours(tmp_path):
    points, boxes = np.random.default_rng(0).normal(0, 20, (500, 5)), np.array([[5.0, 5, 0, 9, 4, 2, 0.5]])
    green, orange = (0x38, 0xe0, 0x7b), (0xff, 0x9e, 0x00)
    found = {}
    for name, arguments in dict(points={}, truth=dict(truth=boxes), boxes=dict(
            boxes=boxes, scores=np.array([0.9]), names=['car']), nameless=dict(boxes=boxes)).items():
        draw_bev(tmp_path / f'{name}.png', points, title='the same', **arguments)
        found[name] = colours(tmp_path / f'{name}.png')
    assert imread(tmp_path / 'points.png').shape == (1200, 1200, 4)
    assert not any(near(found['points'], c) for c in (green, orange))
    assert near(found['truth'], green) and near(found['boxes'], orange)
    assert len(found['nameless'] - found['points']) > 5


def near(pixels, colour):
    """Lines are drawn partly transparent and smoothed, so their very colour need not occur."""
    return any(max(abs(a - b) for a, b in zip(pixel, colour)) < 30 for pixel in pixels)


def test_an_empty_cloud_is_drawn(tmp_path):
    draw_bev(tmp_path / 'empty.png', np.zeros((0, 5)), boxes=np.zeros((0, 9)), scores=np.zeros(0))
    assert (tmp_path / 'empty.png').stat().st_size > 1000
