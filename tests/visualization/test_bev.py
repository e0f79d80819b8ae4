import numpy as np

from stratified3d.visualization.bev import box_corners, draw_bev


def test_corners_front_edge_first():
    boxes = np.array([[1.0, 2, 0, 4, 2, 1, np.pi / 2]])
    np.testing.assert_allclose(box_corners(boxes)[0], [[0, 4], [2, 4], [2, 0], [0, 0]], atol=1e-9)


def test_pictures_show_what_they_are_given(tmp_path):
    from matplotlib.image import imread
    rng = np.random.default_rng(0)
    points, boxes = rng.normal(0, 20, (500, 5)), np.array([[5.0, 5, 0, 9, 4, 2, 0.5]])
    pictures = []
    for name, arguments in dict(points={}, truth=dict(truth=boxes, truth_names=['car']), both=dict(
            truth=boxes, boxes=boxes + 3, scores=np.array([0.9]), names=['car'])).items():
        draw_bev(tmp_path / f'{name}.png', points, title=name, **arguments)
        pictures.append(imread(tmp_path / f'{name}.png'))
    assert pictures[0].shape == (1200, 1200, 4)
    assert all((a != b).any() for a, b in zip(pictures, pictures[1:]))


def test_an_empty_cloud_is_drawn(tmp_path):
    draw_bev(tmp_path / 'empty.png', np.zeros((0, 5)), boxes=np.zeros((0, 9)), scores=np.zeros(0))
    assert (tmp_path / 'empty.png').stat().st_size > 1000
