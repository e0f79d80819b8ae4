"""The viewer drawn without a window: what its keys change is seen in its geometries and its
picture."""

from ctypes.util import find_library

import numpy as np
import pytest

from stratified3d.layers.strata_record import StrataRecord
from stratified3d.visualization.drawing import GT_COLOR, Drawing, rgb
from stratified3d.visualization.window import KEYS, Viewer

pytestmark = pytest.mark.skipif(
    find_library('EGL') is None, reason='no libEGL: Open3D cannot draw without a display'
)


def make_drawing(index):
    rng = np.random.default_rng(index)
    points = np.hstack(
        [rng.uniform(-20, 20, (500, 2)), rng.normal(-1.8, 0.05, (500, 1)), rng.random((500, 1))]
    )
    boxes = np.array([[0.0, 12, -1.8, 4, 2, 1.6, 1.5, 0, 5], [3.0, -5, -1.8, 1, 1, 1.6, 0, 0, 0]])[
        : index + 1
    ]
    weights = rng.dirichlet(np.ones(80), 5)
    return Drawing(
        points,
        boxes,
        np.full(len(boxes), 0.9),
        ['car'] * len(boxes),
        boxes + [5.0, 0, 0, 0, 0, 0, 0, 0, 0],
        f'scene {index}',
        StrataRecord(points[:80, :3], points[:5, :3], weights, weights.T / 5, np.ones(5)),
    )


@pytest.fixture
def viewer(monkeypatch):
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    viewer = Viewer(make_drawing, 2, is_visible=False)
    yield viewer
    viewer.close()


def kinds(viewer):
    names = [type(geometry).__name__ for geometry in viewer.geometries()]
    return [names.count(kind) for kind in ('PointCloud', 'LineSet', 'TriangleMesh')]


def colors(viewer):
    return {
        tuple(np.round(np.asarray(g.colors)[0], 3))
        for g in viewer.geometries()
        if type(g).__name__ == 'LineSet' and len(g.colors)
    }


def test_keys_step_and_toggle(viewer, capsys):
    assert kinds(viewer) == [1, 3, 1]  # points; arrows, truth and one prediction; its score
    viewer.toggle('gt_boxes')
    assert kinds(viewer) == [1, 2, 1] and tuple(np.round(rgb(GT_COLOR), 3)) not in colors(viewer)
    viewer.toggle('scores')
    assert kinds(viewer) == [1, 2, 0]
    viewer.step(1)
    assert kinds(viewer) == [1, 3, 0] and '[2/2] scene 1' in capsys.readouterr().out
    viewer.toggle('strata')
    assert kinds(viewer) == [1, 4, 5]
    viewer.step(-1)
    viewer.toggle('predictions')
    assert viewer.index == 0 and kinds(viewer) == [1, 2, 5]


def test_next_token_key_shows_every_token(viewer):
    viewer.toggle('strata')
    seen = []
    for _ in range(6):
        viewer._next_token()
        seen.append(viewer.token)
    assert sorted(seen[:5]) == list(range(5)) and seen[5] == seen[0]


def test_recolor_key_changes_the_picture(viewer):
    before = np.asarray(viewer.window.capture_screen_float_buffer(True))
    viewer._recolor()
    after = np.asarray(viewer.window.capture_screen_float_buffer(True))
    assert before.std() > 0.02 and (before != after).any()


def test_scores_are_visible_in_the_picture(viewer):
    with_scores = np.asarray(viewer.window.capture_screen_float_buffer(True))
    viewer.toggle('scores')
    without = np.asarray(viewer.window.capture_screen_float_buffer(True))
    assert (np.abs(with_scores - without).max(-1) > 0.2).sum() > 50


def test_every_key_has_a_meaning():
    assert set(KEYS) == set('NBTSPCAKVQ')
