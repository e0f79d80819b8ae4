"""Open3D without a display, in a process of its own, which Open3D ends where it finds no driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np


class RendererError(RuntimeError):
    """The process of the renderer ended or hung; the message says how."""


class OffscreenRenderer:
    """A child process that renders pictures one by one.

    Call `close` in the end, or use it as a context manager.

    Args:
        size: width and height of the pictures in pixels.
        timeout: seconds that one picture may take; the first one includes the start of Open3D.
    """

    def __init__(self, size: tuple[int, int], timeout: float = 120.0):
        self.size = size
        self.timeout = timeout
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close)
        self._pipe, child_end = Pipe()

        with child_end:
            descriptor = child_end.fileno()
            command = [sys.executable, '-W', 'ignore', '-m', __name__, str(descriptor)]
            self._child = subprocess.Popen(
                [*command, *map(str, size)],
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=os.environ | dict(EGL_PLATFORM='surfaceless'),
            )

    def close(self) -> None:
        """End the process."""
        self._pipe.close()  # the child ends when it next receives
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._log.close()

    def __enter__(self) -> OffscreenRenderer:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def render(
        self,
        points: np.ndarray,
        colors: np.ndarray,
        lines: list[tuple[np.ndarray, np.ndarray, float]],
        intrinsics: np.ndarray,
        extrinsics: np.ndarray,
        *,
        background: np.ndarray,
        point_size: float = 2.0,
    ) -> np.ndarray:
        """Render points and lines.

        Args:
            points: [P, 3] meters.
            colors: [P, 3] in 0 to 1.
            lines: (segments [S, 2, 3], color [3], width in pixels) of each group.
            intrinsics: [3, 3] of a pinhole camera.
            extrinsics: [4, 4] world to camera (x right, y down, z forward).
            background: [3] in 0 to 1.
            point_size: pixels.
        Returns:
            [height, width, 3] uint8.
        Raises:
            RendererError: the process died or took longer than `timeout`.
        """
        try:
            request = (points, colors, lines, intrinsics, extrinsics, background, point_size)
            self._pipe.send(request)
            if not self._pipe.poll(self.timeout):
                self._child.kill()
                raise RendererError(
                    f'Open3D took longer than {self.timeout:.0f} s over one picture and was stopped'
                )
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise RendererError(self._describe_end()) from error

    def _describe_end(self) -> str:
        """How the process ended, with the last line that it printed."""
        status = self._child.wait(10)
        how = f'signal {signal.Signals(-status).name}' if status < 0 else f'status {status}'

        self._log.seek(0)
        output = self._log.read().decode(errors='replace')
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        last = lines[-1] if lines else 'it printed nothing'
        return (
            f'Open3D cannot draw here: its process ended with {how} ({last}). Without a GPU it '
            'needs software Vulkan: apt-get install libvulkan1 mesa-vulkan-drivers libusb-1.0-0'
        )


def _to_srgb(color: np.ndarray) -> np.ndarray:
    """Linear light as sRGB (IEC 61966-2-1)."""
    return np.where(color <= 0.0031308, 12.92 * color, 1.055 * color ** (1 / 2.4) - 0.055)


def _serve(pipe: Connection, width: int, height: int) -> None:
    """Draw what arrives until the pipe is closed; the work of the child."""
    from open3d.visualization import rendering

    renderer = rendering.OffscreenRenderer(width, height)
    renderer.scene.view.set_post_processing(False)  # it would change the colors
    while True:
        try:
            points, colors, lines, intrinsics, extrinsics, background, point_size = pipe.recv()
        except EOFError:
            return

        renderer.scene.clear_geometry()
        # the only color that Open3D takes for linear light
        renderer.scene.set_background([*_to_srgb(background), 1.0])
        _add_points(renderer.scene, points, colors, point_size)
        for i, (segments, color, thickness) in enumerate(lines):
            _add_lines(renderer.scene, f'lines {i}', segments, color, thickness)

        renderer.setup_camera(intrinsics, extrinsics, width, height)
        pipe.send(np.asarray(renderer.render_to_image()))


def _add_points(scene, points: np.ndarray, colors: np.ndarray, size: float) -> None:
    """Add points to a scene of Open3D."""
    import open3d as o3d
    from open3d.visualization import rendering

    if not len(points):  # Open3D would warn
        return
    geometry = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))
    geometry.colors = o3d.utility.Vector3dVector(colors)

    material = rendering.MaterialRecord()
    material.shader = 'defaultUnlit'
    material.point_size = size
    scene.add_geometry('points', geometry, material)


def _add_lines(scene, name: str, segments: np.ndarray, color: np.ndarray, thickness: float) -> None:
    """Add segments of one color to a scene of Open3D."""
    import open3d as o3d
    from open3d.visualization import rendering

    if not len(segments):
        return
    ends = o3d.utility.Vector3dVector(segments.reshape(-1, 3))
    pairs = o3d.utility.Vector2iVector(np.arange(2 * len(segments)).reshape(-1, 2))
    geometry = o3d.geometry.LineSet(ends, pairs)
    geometry.paint_uniform_color(color)

    material = rendering.MaterialRecord()
    material.shader = 'unlitLine'
    material.line_width = thickness
    scene.add_geometry(name, geometry, material)


if __name__ == '__main__':
    _serve(Connection(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
