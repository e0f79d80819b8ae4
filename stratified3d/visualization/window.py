"""A window on a row of frames, by Open3D: turn with the mouse, step and toggle with keys."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import numpy as np

from stratified3d.visualization.drawing import (
    BACKGROUND,
    COLORINGS,
    TRUTH,
    Drawing,
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
    'B': 'frame before (or left arrow)',
    'T': 'truth on and off',
    'S': 'scores on and off',
    'P': 'predictions on and off',
    'C': 'points by height or by intensity',
    'A': 'strata tokens on and off',
    'K': 'next token',
    'V': 'camera back to its place',
    'Q': 'close',
}
_RIGHT, _LEFT = 262, 263  # GLFW's key codes
_TOKEN_LINES = 60  # voxels that a token is joined with: those that it collects most from
_PINK = rgb('#ff5fa2')


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

        # without a display Open3D would draw on, unseen, into a window that nobody can close
        if (
            is_visible
            and sys.platform == 'linux'
            and not (os.getenv('DISPLAY') or os.getenv('WAYLAND_DISPLAY'))
        ):
            raise RuntimeError(
                'there is no display for a window (DISPLAY and WAYLAND_DISPLAY are unset): without '
                '--show the pictures are drawn into files'
            )
        self._o3d, self._load, self.count, self._camera = o3d, load, count, camera or Camera()
        self._scenes: dict[int, Drawing] = {}
        self.index, self.token = 0, None
        self.shown = dict(truth=True, scores=True, predictions=True, strata=False)
        self.coloring = COLORINGS[0]
        self.window = o3d.visualization.VisualizerWithKeyCallback()
        if not self.window.create_window('stratified3d', 1600, 900, visible=is_visible):
            raise RuntimeError(
                'Open3D cannot open a window on this display: has it OpenGL? Without --show the '
                'pictures are drawn into files'
            )
        actions = dict(
            N=lambda: self.step(1),
            B=lambda: self.step(-1),
            T=lambda: self.toggle('truth'),
            S=lambda: self.toggle('scores'),
            P=lambda: self.toggle('predictions'),
            A=lambda: self.toggle('strata'),
            C=self._recolor,
            K=self._next_token,
            V=self._look,
        )
        codes = {ord(key): action for key, action in actions.items()}
        codes |= {_RIGHT: actions['N'], _LEFT: actions['B']}
        for code, action in codes.items():
            self.window.register_key_callback(code, _callback(action))
        options = self.window.get_render_option()
        options.background_color, options.point_size = rgb(BACKGROUND), 2.0
        options.mesh_show_back_face = True  # Open3D's letters face inwards
        self.draw()
        self._look()

    @property
    def scene(self) -> Drawing:
        """The frame that is shown."""
        if self.index not in self._scenes:
            self._scenes[self.index] = self._load(self.index)
        return self._scenes[self.index]

    def run(self) -> None:
        """Show the window until it is closed."""
        self.window.run()
        self.close()

    def close(self) -> None:
        """Close the window."""
        self.window.destroy_window()

    def step(self, by: int) -> None:
        """Go to another frame, round at the ends."""
        self.index = (self.index + by) % self.count
        self.draw()

    def toggle(self, part: str) -> None:
        """Show or hide truth, scores, predictions or strata."""
        self.shown[part] = not self.shown[part]
        self.draw()

    def _recolor(self) -> None:
        self.coloring = COLORINGS[1 - COLORINGS.index(self.coloring)]
        self.draw()

    def _next_token(self) -> None:
        if self.scene.strata is not None:
            self.token = (chosen_token(self.scene.strata, self.token) + 1) % len(
                self.scene.strata.tokens
            )
        self.draw()

    def _look(self) -> None:
        _, extrinsics = self._camera.matrices(ground_height(self.scene.points))
        control = self.window.get_view_control()
        parameters = control.convert_to_pinhole_camera_parameters()
        parameters.extrinsic = extrinsics
        control.convert_from_pinhole_camera_parameters(parameters, allow_arbitrary=True)

    def draw(self) -> None:
        """Draw the frame anew and leave the camera where it is."""
        before = self.window.get_view_control().convert_to_pinhole_camera_parameters()
        self.window.clear_geometries()
        for geometry in self.geometries():
            self.window.add_geometry(geometry)
        self.window.get_view_control().convert_from_pinhole_camera_parameters(
            before, allow_arbitrary=True
        )
        print(f'\r[{self.index + 1}/{self.count}] {self.scene.title}\033[K', end='', flush=True)

    def geometries(self) -> list:
        """What the toggles leave to be seen, as Open3D geometries."""
        o3d, scene = self._o3d, self.scene
        points = scene.points[np.isfinite(scene.points).all(1)]
        cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points[:, :3]))
        cloud.colors = o3d.utility.Vector3dVector(ramp(point_values(points, self.coloring)[0]))
        shown = [cloud]
        arrows = velocity_arrows(scene.boxes)
        if len(arrows):
            shown.append(self._lines(arrows.reshape(-1, 2, 3), np.ones(3)))
        if self.shown['truth'] and scene.truth is not None and len(scene.truth):
            shown.append(self._lines(box_lines(scene.truth).reshape(-1, 2, 3), rgb(TRUTH)))
        if self.shown['predictions']:
            for name, segments in zip(scene.names, box_lines(scene.boxes)):
                shown.append(self._lines(segments, rgb(class_color(name))))
            if self.shown['scores'] and scene.scores is not None:
                shown += [self._score(i) for i in range(len(scene.boxes))]
        if self.shown['strata'] and scene.strata is not None:
            shown += self._strata()
        return shown

    def _lines(self, segments: np.ndarray, color: np.ndarray):
        lines = self._o3d.geometry.LineSet(
            self._o3d.utility.Vector3dVector(segments.reshape(-1, 3)),
            self._o3d.utility.Vector2iVector(np.arange(2 * len(segments)).reshape(-1, 2)),
        )
        lines.paint_uniform_color(color)
        return lines

    def _score(self, i: int):
        """The score as a flat sign over its box, leaning towards the first camera."""
        scene, angle = self.scene, np.radians(self._camera.azimuth - 90)
        text = self._o3d.t.geometry.TriangleMesh.create_text(
            f'{scene.scores[i]:.2f}', depth=0.1
        ).to_legacy()
        text.translate(-text.get_axis_aligned_bounding_box().get_center() * [1, 0, 1])
        text.scale(0.1, (0, 0, 0))
        text.rotate(
            self._o3d.geometry.get_rotation_matrix_from_zyx((angle, 0, np.radians(60))), (0, 0, 0)
        )
        text.translate(scene.boxes[i, :3] + [0, 0, scene.boxes[i, 5] + 0.5])
        text.paint_uniform_color(rgb(class_color(scene.names[i])))
        return text

    def _strata(self) -> list:
        """A ball for every token, and lines from one of them to the voxels that it collects most
        from."""
        weights, token = self.scene.strata, chosen_token(self.scene.strata, self.token)
        balls = []
        for i, place in enumerate(weights.tokens):
            balls.append(
                self._o3d.geometry.TriangleMesh.create_sphere(0.9 if i == token else 0.45, 10)
            )
            balls[-1].translate(place)
            balls[-1].paint_uniform_color(_PINK)
        best = np.argsort(-weights.collected[token])[:_TOKEN_LINES]
        ends = weights.voxels[best]
        return [
            *balls,
            self._lines(
                np.stack([np.broadcast_to(weights.tokens[token], ends.shape), ends], 1), _PINK
            ),
        ]


def _callback(action: Callable[[], None]) -> Callable[[object], bool]:
    def run(window: object) -> bool:
        action()
        return False

    return run
