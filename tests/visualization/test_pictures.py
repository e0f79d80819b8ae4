"""Open3D's pictures where it can draw, and what happens where it cannot."""

import re
from ctypes.util import find_library

import numpy as np
import pytest
from PIL import Image

from stratified3d.layers.strata_record import StrataRecord
from stratified3d.visualization import offscreen
from stratified3d.visualization.drawing import (
    BACKGROUND,
    GT_COLOR,
    Drawing,
    class_color,
    rgb,
)
from stratified3d.visualization.perspective import SIZE, Camera, project
from stratified3d.visualization.pictures import PictureFolder
from stratified3d.visualization.strata_maps import chosen_token, draw_strata
from stratified3d.visualization.video import write_video

pytestmark = pytest.mark.slow

needs_vulkan = pytest.mark.skipif(
    find_library('vulkan') is None, reason='no libvulkan: Open3D cannot draw off-screen'
)
AREA = (-20.0, -20.0, 20.0, 20.0)


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    points = np.hstack(
        [rng.uniform(-20, 20, (2000, 2)), rng.normal(-1.8, 0.05, (2000, 1)), np.ones((2000, 1))]
    )
    boxes = np.array([[0.0, 12, -1.8, 4, 2, 1.6, 1.5, 0, 5]])
    weights = rng.dirichlet(np.ones(50), 4)
    return Drawing(
        points,
        boxes,
        np.array([0.9]),
        ['car'],
        boxes + [5.0, 0, 0, 0, 0, 0, 0, 0, 0],
        'a scene',
        StrataRecord(points[:50, :3], points[:4, :3], weights, weights.T / 4, np.ones(4)),
    )


def near(pixels, color):
    return (np.abs(pixels.astype(int) - 255 * rgb(color)) < 12).all(-1)


@needs_vulkan
def test_renderer_draws_lines_in_their_colors_and_places():
    """One box edge per color lands where `project` says, in exactly its color."""
    intrinsics, extrinsics = Camera().matrices(0.0)
    place = np.array([[3.0, 10, 0]])
    segment = place + np.array([[[-0.5, 0, 0], [0.5, 0, 0]]])
    with offscreen.OffscreenRenderer(SIZE) as renderer:
        pictures = [
            renderer.render(
                np.zeros((0, 3)),
                np.zeros((0, 3)),
                [(segment, rgb(color), 4.0)],
                intrinsics,
                extrinsics,
                background=rgb(BACKGROUND),
            )
            for color in (GT_COLOR, class_color('bus'))
        ]
    x, y = project(place, intrinsics, extrinsics)[0]
    for picture, color in zip(pictures, (GT_COLOR, class_color('bus'))):
        assert picture.shape == (SIZE[1], SIZE[0], 3) and near(picture[:20], BACKGROUND).all()
        rows, columns = np.nonzero(near(picture, color))
        assert abs(columns.mean() - x) < 2 and abs(SIZE[1] - rows.mean() - y) < 2


def test_places_behind_the_camera_are_not_projected():
    assert np.isnan(project(np.array([[0.0, -200, 0]]), *Camera().matrices(0.0))).all()


@needs_vulkan
@pytest.mark.slow
def test_pictures_of_all_kinds_and_their_videos_are_written(scene, tmp_path):
    with PictureFolder(tmp_path, AREA) as folder:
        for name in ('a', 'b'):
            folder.write(name, scene, token=2)
        videos = folder.write_videos('mp4', 4)
    assert folder.failure is None
    for kind in ('bev', 'strata', 'perspective'):
        pixels = np.asarray(Image.open(tmp_path / kind / 'b.png'))
        assert pixels.std() > 5
        if kind != 'strata':
            assert near(pixels, GT_COLOR).any() and near(pixels, class_color('car')).any()
    import cv2

    for video in videos:
        capture = cv2.VideoCapture(str(video))
        assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (2, 4)


@pytest.mark.parametrize(
    'child, message',
    [
        (
            'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)',
            r'SIGSEGV \(it printed nothing\)',
        ),
        (
            'raise SystemExit("no Vulkan here")',
            r'status 1 \(no Vulkan here\)',
        ),
    ],
)
def test_a_dying_renderer_leaves_the_pictures_from_above(
    scene, tmp_path, monkeypatch, capsys, child, message
):
    """The child is replaced by one that dies as drivers make it die."""
    real = offscreen.subprocess.Popen
    monkeypatch.setattr(
        offscreen.subprocess,
        'Popen',
        lambda command, **options: real([command[0], '-c', child], **options),
    )
    with PictureFolder(tmp_path, AREA) as folder:
        folder.write('a', scene)
        folder.write('b', scene)
    assert sorted(path.name for path in (tmp_path / 'bev').iterdir()) == ['a.png', 'b.png']
    assert not (tmp_path / 'perspective').exists()
    said = capsys.readouterr().err
    assert said.count('Open3D cannot draw here') == 1 and 'Only pictures from above' in said
    assert re.search(message, folder.failure)


def test_a_hanging_renderer_is_stopped(scene, monkeypatch):
    real = offscreen.subprocess.Popen
    monkeypatch.setattr(
        offscreen.subprocess,
        'Popen',
        lambda command, **options: real(
            [command[0], '-c', 'import time; time.sleep(60)'], **options
        ),
    )
    with (
        offscreen.OffscreenRenderer(SIZE, timeout=0.5) as renderer,
        pytest.raises(offscreen.RendererError, match='longer than [01] s'),
    ):
        renderer.render(
            np.zeros((0, 3)), np.zeros((0, 3)), [], np.eye(3), np.eye(4), background=np.zeros(3)
        )


def test_strata_maps_differ_by_token(scene):
    first, second = (draw_strata(scene.strata, AREA, token) for token in (0, 1))
    assert first.shape == second.shape and (first != second).any()
    assert chosen_token(scene.strata) == scene.strata.read.sum(0).argmax()
    with pytest.raises(ValueError, match='no token 4: take 0 to 3'):
        draw_strata(scene.strata, AREA, 4)
    with pytest.raises(ValueError, match='no voxels'):
        draw_strata(StrataRecord(*(part[:0] for part in scene.strata)), AREA)


def test_videos_of_what_does_not_fit_are_refused(tmp_path):
    paths = [tmp_path / f'{i}.png' for i in range(3)]
    for i, path in enumerate(paths):
        Image.new('RGB', (64, 48), (80 * i, 0, 0)).save(path)
    write_video(tmp_path / 'a.gif', paths, 5)
    animation = Image.open(tmp_path / 'a.gif')
    assert animation.n_frames == 3 and animation.info['duration'] == 200
    Image.new('RGB', (32, 48)).save(paths[2])
    for arguments, message in (
        ((tmp_path / 'a.avi', paths), r'videos are .mp4 or .gif'),
        ((tmp_path / 'a.mp4', []), 'there are 0'),
        ((tmp_path / 'a.mp4', paths, 0), 'rate of 0'),
        ((tmp_path / 'a.mp4', paths), r'2.png: \(32, 48\) pixels'),
    ):
        with pytest.raises(ValueError, match=message):
            write_video(*arguments)
    assert not list(tmp_path.glob('*.partial*'))
