"""Open3D without a display, in a process of its own: where no driver fits, the renderer ends the
process it is in."""

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
    """The renderer's process ended or hung; the message says how."""


class OffscreenRenderer:
    """A child process that renders one picture after the other; `close` it, or use it as a context
    manager.

    Args:
        size: width and height of the pictures in pixels.
        timeout: seconds that one picture may take; the first one includes the start of Open3D.
    """

    def __init__(self, size: tuple[int, int], timeout: float = 120.0):
        self.size, self.timeout = size, timeout
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close)
        self._pipe, theirs = Pipe()
        with theirs:
            self._child = subprocess.Popen(
                [
                    sys.executable,
                    '-W',
                    'ignore',
                    '-m',
                    __name__,
                    str(theirs.fileno()),
                    *map(str, size),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=os.environ | dict(EGL_PLATFORM='surfaceless'),
            )

    def close(self) -> None:
        """End the process."""
        self._pipe.close()  # the child's receive ends with it
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
            points: [P, 3] meters; colors: [P, 3] in 0 to 1.
            lines: (segments [S, 2, 3], color [3], width in pixels) of each group.
            intrinsics: [3, 3] pinhole; extrinsics: [4, 4] world to camera (x right, y down, z
            forward).
            background: [3]; point_size: pixels.
        Returns:
            [height, width, 3] uint8.
        Raises:
            RendererError: the process died or took longer than `timeout`.
        """
        try:
            self._pipe.send((points, colors, lines, intrinsics, extrinsics, background, point_size))
            if not self._pipe.poll(self.timeout):
                self._child.kill()
                raise RendererError(
                    f'Open3D took longer than {self.timeout:.0f} s over one picture and was stopped'
                )
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise RendererError(self._obituary()) from error

    def _obituary(self) -> str:
        status = self._child.wait(10)
        how = f'signal {signal.Signals(-status).name}' if status < 0 else f'status {status}'
        self._log.seek(0)
        lines = [
            line.strip()
            for line in self._log.read().decode(errors='replace').splitlines()
            if line.strip()
        ]
        return (
            f'Open3D cannot draw here: its process ended with {how} ({lines[-1] if lines else "without a word"}). '
            'Without a GPU it needs software Vulkan: apt-get install libvulkan1 mesa-vulkan-drivers libusb-1.0-0'
        )


def _encoded(color: np.ndarray) -> np.ndarray:
    """Linear light -> sRGB (IEC 61966-2-1)."""
    return np.where(color <= 0.0031308, 12.92 * color, 1.055 * color ** (1 / 2.4) - 0.055)


def _serve(pipe: Connection, width: int, height: int) -> None:
    """The child: draw what arrives until the pipe is closed."""
    import open3d as o3d
    from open3d.visualization import rendering

    renderer = rendering.OffscreenRenderer(width, height)
    scene = renderer.scene
    scene.view.set_post_processing(False)  # it would shift the colors
    while True:
        scene.clear_geometry()
        try:
            points, colors, lines, intrinsics, extrinsics, background, point_size = pipe.recv()
        except EOFError:
            return
        scene.set_background(
            [*_encoded(background), 1.0]
        )  # the only color that is decoded on the way
        material = rendering.MaterialRecord()
        material.shader, material.point_size = 'defaultUnlit', point_size
        if len(points):  # Open3D warns of an empty cloud
            cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))
            cloud.colors = o3d.utility.Vector3dVector(colors)
            scene.add_geometry('points', cloud, material)
        for i, (segments, color, thickness) in enumerate(lines):
            if not len(segments):
                continue
            group = o3d.geometry.LineSet(
                o3d.utility.Vector3dVector(segments.reshape(-1, 3)),
                o3d.utility.Vector2iVector(np.arange(2 * len(segments)).reshape(-1, 2)),
            )
            group.paint_uniform_color(color)
            material = rendering.MaterialRecord()
            material.shader, material.line_width = 'unlitLine', thickness
            scene.add_geometry(f'lines {i}', group, material)
        renderer.setup_camera(intrinsics, extrinsics, width, height)
        pipe.send(np.asarray(renderer.render_to_image()))


if __name__ == '__main__':
    _serve(Connection(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
