"""A window that shows frames, by Open3D: rotate with the mouse, step and toggle with keys."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import numpy as np

from stratified3d.visualization.drawing import (
    BACKGROUND,
    COLORINGS,
    GT_COLOR,
    Drawing,
    StrataLike,
    box_lines,
    class_color,
    ground_height,
    point_values,
    ramp,
    rgb,
    velocity_arrows,
)
from stratified3d.visualization.perspective import Camera
from stratified3d.visualization.strata_maps import chosen_token

KEYS = {
    'N': 'next frame (or right arrow)',
    'B': 'previous frame (or left arrow)',
    'T': 'ground truth on and off',
    'S': 'scores on and off',
    'P': 'predictions on and off',
    'C': 'points by height or by intensity',
    'A': 'strata tokens on and off',
    'K': 'next token',
    'V': 'reset the camera',
    'Q': 'close',
}
_RIGHT, _LEFT = 262, 263  # GLFW's key codes
_TOKEN_LINES = 60  # voxels that a token is connected with: those that it collects most from
_TOKEN_COLOR = rgb('#ff5fa2')


class Viewer:
    """Frames in a window.

    Args:
        load: index -> Drawing; called when a frame is first shown, and kept.
        count: of frames.
        camera: where the window looks from at first.
        is_visible: False draws without a window, for tests.
    Raises:
        RuntimeError: there is no display, or no OpenGL for it.
    """

    def __init__(
        self,
        load: Callable[[int], Drawing],
        count: int,
        camera: Camera | None = None,
        is_visible: bool = True,
    ):
        import open3d as o3d

        if is_visible:
            _check_display()
        self._o3d = o3d
        self._load = load
        self._camera = camera or Camera()
        self._drawings: dict[int, Drawing] = {}

        self.count = count
        self.index = 0
        self.token: int | None = None
        self.shown = dict(gt_boxes=True, scores=True, predictions=True, strata=False)
        self.coloring = COLORINGS[0]

        self.window = o3d.visualization.VisualizerWithKeyCallback()
        if not self.window.create_window('stratified3d', 1600, 900, visible=is_visible):
            raise RuntimeError(
                'Open3D cannot open a window on this display: has it OpenGL? Without --show the '
                'pictures are written to files'
            )
        self._register_keys()

        options = self.window.get_render_option()
        options.background_color = rgb(BACKGROUND)
        options.point_size = 2.0
        options.mesh_show_back_face = True  # Open3D's letters face inwards
        self.draw()
        self._reset_camera()

    def _register_keys(self) -> None:
        actions = dict(
            N=lambda: self.step(1),
            B=lambda: self.step(-1),
            T=lambda: self.toggle('gt_boxes'),
            S=lambda: self.toggle('scores'),
            P=lambda: self.toggle('predictions'),
            A=lambda: self.toggle('strata'),
            C=self._recolor,
            K=self._next_token,
            V=self._reset_camera,
        )
        for key, action in actions.items():
            self.window.register_key_callback(ord(key), _callback(action))
        self.window.register_key_callback(_RIGHT, _callback(actions['N']))
        self.window.register_key_callback(_LEFT, _callback(actions['B']))

    @property
    def drawing(self) -> Drawing:
        """The frame that is shown."""
        if self.index not in self._drawings:
            self._drawings[self.index] = self._load(self.index)
        return self._drawings[self.index]

    def run(self) -> None:
        """Show the window until it is closed."""
        self.window.run()
        self.close()

    def close(self) -> None:
        """Close the window."""
        self.window.destroy_window()

    def step(self, by: int) -> None:
        """Go to another frame; after the last one comes the first."""
        self.index = (self.index + by) % self.count
        self.draw()

    def toggle(self, part: str) -> None:
        """Show or hide 'gt_boxes', 'scores', 'predictions' or 'strata'."""
        self.shown[part] = not self.shown[part]
        self.draw()

    def _recolor(self) -> None:
        self.coloring = COLORINGS[1 - COLORINGS.index(self.coloring)]
        self.draw()

    def _next_token(self) -> None:
        strata = self.drawing.strata
        if strata is not None:
            self.token = (chosen_token(strata, self.token) + 1) % len(strata.tokens)
        self.draw()

    def _reset_camera(self) -> None:
        _, extrinsics = self._camera.matrices(ground_height(self.drawing.points))
        control = self.window.get_view_control()
        parameters = control.convert_to_pinhole_camera_parameters()
        parameters.extrinsic = extrinsics
        control.convert_from_pinhole_camera_parameters(parameters, allow_arbitrary=True)

    def draw(self) -> None:
        """Redraw the frame; the camera stays where it is."""
        control = self.window.get_view_control()
        parameters = control.convert_to_pinhole_camera_parameters()

        self.window.clear_geometries()
        for geometry in self.geometries():
            self.window.add_geometry(geometry)

        control = self.window.get_view_control()
        control.convert_from_pinhole_camera_parameters(parameters, allow_arbitrary=True)
        title = self.drawing.title
        print(f'\r[{self.index + 1}/{self.count}] {title}\033[K', end='', flush=True)

    def geometries(self) -> list:
        """What is switched on, as geometries of Open3D."""
        drawing = self.drawing
        geometries = [self._points(drawing.points)]

        arrows = velocity_arrows(drawing.boxes)
        if len(arrows):
            geometries.append(self._lines(arrows.reshape(-1, 2, 3), np.ones(3)))

        gt_boxes = drawing.gt_boxes
        if self.shown['gt_boxes'] and gt_boxes is not None and len(gt_boxes):
            segments = box_lines(gt_boxes).reshape(-1, 2, 3)
            geometries.append(self._lines(segments, rgb(GT_COLOR)))

        if self.shown['predictions']:
            geometries += self._predictions(drawing)
        if self.shown['strata'] and drawing.strata is not None:
            geometries += self._strata(drawing.strata)
        return geometries

    def _predictions(self, drawing: Drawing) -> list:
        geometries = []
        for name, segments in zip(drawing.names, box_lines(drawing.boxes)):
            geometries.append(self._lines(segments, rgb(class_color(name))))

        if self.shown['scores'] and drawing.scores is not None:
            for box, name, score in zip(drawing.boxes, drawing.names, drawing.scores):
                geometries.append(self._score(box, name, score))
        return geometries

    def _points(self, points: np.ndarray):
        points = points[np.isfinite(points).all(1)]
        values, _, _ = point_values(points, self.coloring)

        o3d = self._o3d
        geometry = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points[:, :3]))
        geometry.colors = o3d.utility.Vector3dVector(ramp(values))
        return geometry

    def _lines(self, segments: np.ndarray, color: np.ndarray):
        """Segments [S, 2, 3] of one color."""
        o3d = self._o3d
        ends = o3d.utility.Vector3dVector(segments.reshape(-1, 3))
        pairs = o3d.utility.Vector2iVector(np.arange(2 * len(segments)).reshape(-1, 2))
        lines = o3d.geometry.LineSet(ends, pairs)
        lines.paint_uniform_color(color)
        return lines

    def _score(self, box: np.ndarray, name: str, score: float):
        """The score as flat text above its box, leaning towards the first camera."""
        o3d = self._o3d
        mesh = o3d.t.geometry.TriangleMesh.create_text(f'{score:.2f}', depth=0.1)
        text = mesh.to_legacy()
        middle = text.get_axis_aligned_bounding_box().get_center()
        text.translate(-middle * [1, 0, 1])
        text.scale(0.1, (0, 0, 0))

        angles = (np.radians(self._camera.azimuth - 90), 0, np.radians(60))
        text.rotate(o3d.geometry.get_rotation_matrix_from_zyx(angles), (0, 0, 0))
        text.translate(box[:3] + [0, 0, box[5] + 0.5])
        text.paint_uniform_color(rgb(class_color(name)))
        return text

    def _strata(self, strata: StrataLike) -> list:
        """A ball for every token, and lines from the chosen one to the voxels that it collects
        most from."""
        token = chosen_token(strata, self.token)
        balls = []
        for i, place in enumerate(strata.tokens):
            radius = 0.9 if i == token else 0.45
            ball = self._o3d.geometry.TriangleMesh.create_sphere(radius, 10)
            ball.translate(place)
            ball.paint_uniform_color(_TOKEN_COLOR)
            balls.append(ball)

        most = np.argsort(-strata.collected[token])[:_TOKEN_LINES]
        ends = strata.voxels[most]
        begins = np.broadcast_to(strata.tokens[token], ends.shape)
        return [*balls, self._lines(np.stack([begins, ends], 1), _TOKEN_COLOR)]


def _check_display() -> None:
    """Raise where there is no display: Open3D would draw into a window that nobody can see or
    close."""
    has_display = os.getenv('DISPLAY') or os.getenv('WAYLAND_DISPLAY')
    if sys.platform == 'linux' and not has_display:
        raise RuntimeError(
            'there is no display for a window (DISPLAY and WAYLAND_DISPLAY are unset): without '
            '--show the pictures are written to files'
        )


def _callback(action: Callable[[], None]) -> Callable[[object], bool]:
    def run(window: object) -> bool:
        action()
        return False

    return run
