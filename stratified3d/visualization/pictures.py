"""A folder of pictures: every frame from above and, where Open3D can draw, in perspective; strata
maps; videos of all."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stratified3d.visualization.bev import draw_bev
from stratified3d.visualization.drawing import Drawing
from stratified3d.visualization.offscreen import OffscreenRenderer, RendererError
from stratified3d.visualization.perspective import SIZE, Camera, draw_perspective
from stratified3d.visualization.strata_maps import draw_strata
from stratified3d.visualization.video import write_video


class PictureFolder:
    """Writes pictures of frames into bev/, perspective/ and strata/ of a folder.

    Call `close` in the end, or use it as a context manager. Open3D runs in a process of its own.
    If that process dies, its message is printed once and kept in `failure`, and pictures from
    above are still written.

    Args:
        folder: created if it is missing.
        area: x_min, y_min, x_max, y_max in meters of the pictures from above.
        camera: of the perspective.
        coloring: of the points, 'height' or 'intensity'.
        use_perspective: False draws from above only and needs no Open3D.
    """

    def __init__(
        self,
        folder: str | Path,
        area: Sequence[float],
        camera: Camera | None = None,
        coloring: str = 'height',
        use_perspective: bool = True,
    ):
        self.folder = Path(folder)
        self.area = area
        self.camera = camera
        self.coloring = coloring
        self.failure: str | None = None
        self.written: dict[str, list[Path]] = defaultdict(list)

        self.folder.mkdir(parents=True, exist_ok=True)
        self._renderer = OffscreenRenderer(SIZE) if use_perspective else None

    def __enter__(self) -> PictureFolder:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """End Open3D's process."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def write(self, name: str, drawing: Drawing, token: int | None = None) -> None:
        """Write the pictures of one frame as <kind>/<name>.png.

        Args:
            token: of the strata map, see `draw_strata`.
        """
        self._save('bev', name, draw_bev(drawing, self.area, self.coloring))
        if drawing.strata is not None:
            pixels = draw_strata(drawing.strata, self.area, token, drawing.title)
            self._save('strata', name, pixels)

        if self._renderer is None:
            return
        try:
            pixels = draw_perspective(self._renderer, drawing, self.camera, self.coloring)
            self._save('perspective', name, pixels)
        except RendererError as error:
            self.failure = str(error)
            message = f'\n{error}\nOnly pictures from above are drawn, none in perspective.'
            print(message, file=sys.stderr, flush=True)
            self.close()

    def write_videos(self, suffix: str, rate: float) -> list[Path]:
        """Join the pictures written so far to <kind>.<suffix> of every kind; see `write_video`."""
        paths = []
        for kind, pictures in self.written.items():
            path = self.folder / f'{kind}.{suffix}'
            write_video(path, pictures, rate)
            paths.append(path)
        return paths

    def _save(self, kind: str, name: str, pixels: np.ndarray) -> None:
        from PIL import Image

        path = self.folder / kind / f'{name}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        self.written[kind].append(path)
