"""A folder of pictures: every frame from above and, where Open3D can draw, in perspective; strata;
videos of them."""

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
    """Writes pictures of scenes into bev/, perspective/ and strata/ of a folder; `close` it, or use
    it as a context manager.

    Open3D runs in a process of its own. When that dies, what it said is printed once and in
    `failure`, and the pictures from above go on.

    Args:
        folder: made where it is missing.
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
        self.folder, self.area, self.camera, self.coloring = Path(folder), area, camera, coloring
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

    def write(self, name: str, scene: Drawing, token: int | None = None) -> None:
        """Write the pictures of one scene as <kind>/<name>.png; token: of the strata map, see
        `draw_strata`."""
        self._save('bev', name, draw_bev(scene, self.area, self.coloring))
        if scene.strata is not None:
            self._save('strata', name, draw_strata(scene.strata, self.area, token, scene.title))
        if self._renderer is None:
            return
        try:
            self._save(
                'perspective',
                name,
                draw_perspective(self._renderer, scene, self.camera, self.coloring),
            )
        except RendererError as error:
            self.failure = str(error)
            print(
                f'\n{error}\nThe pictures from above go on, without perspective.',
                file=sys.stderr,
                flush=True,
            )
            self.close()

    def write_videos(self, suffix: str, rate: float) -> list[Path]:
        """Join the pictures written so far: <kind>.<suffix> of every kind; see `write_video`."""
        paths = []
        for kind, pictures in self.written.items():
            paths.append(self.folder / f'{kind}.{suffix}')
            write_video(paths[-1], pictures, rate)
        return paths

    def _save(self, kind: str, name: str, pixels: np.ndarray) -> None:
        from PIL import Image

        path = self.folder / kind / f'{name}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        self.written[kind].append(path)
