"""Perspective pictures: Open3D draws points and boxes, matplotlib the words."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stratified3d.visualization.annotations import (
    FAINT,
    INK,
    add_legend,
    add_scale,
    halo,
    picture,
    write_scores,
)
from stratified3d.visualization.drawing import (
    BACKGROUND,
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
from stratified3d.visualization.offscreen import OffscreenRenderer

SIZE = (1600, 900)
_DPI = 100
_RINGS = (20, 40, 60, 80)  # m


class Camera(NamedTuple):
    """Where the picture is taken from: azimuth it looks to (degrees, 0 along x, 90 along y),
    elevation above the ground (degrees), distance (m) from the place on the ground that it looks
    at, `ahead` (m) before the sensor."""

    azimuth: float = 90.0
    elevation: float = 36.0
    distance: float = 62.0
    ahead: float = 12.0

    def matrices(self, ground: float) -> tuple[np.ndarray, np.ndarray]:
        """Intrinsics [3, 3] and extrinsics [4, 4] for pictures of SIZE; ground: its z in meters."""
        a, e = np.radians([self.azimuth, self.elevation])
        towards = np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), -np.sin(e)])
        eye = (
            np.array([np.cos(a), np.sin(a), 0]) * self.ahead
            + [0, 0, ground]
            - self.distance * towards
        )
        right = np.array([np.sin(a), -np.cos(a), 0])
        extrinsics = np.eye(4)
        extrinsics[:3, :3] = np.stack([right, np.cross(towards, right), towards])
        extrinsics[:3, 3] = -extrinsics[:3, :3] @ eye
        focal = SIZE[0] / 2 / np.tan(np.radians(60) / 2)
        return np.array([[focal, 0, SIZE[0] / 2], [0, focal, SIZE[1] / 2], [0, 0, 1.0]]), extrinsics


def project(places: np.ndarray, intrinsics: np.ndarray, extrinsics: np.ndarray) -> np.ndarray:
    """[N, 3] meters -> [N, 2] pixels, y upwards; NaN for what lies behind the camera or outside of
    the picture."""
    seen = places @ extrinsics[:3, :3].T + extrinsics[:3, 3]
    pixels = seen @ intrinsics.T
    with np.errstate(divide='ignore', invalid='ignore'):
        pixels = pixels[:, :2] / pixels[:, 2:]
    inside = (seen[:, 2] > 0.5) & (pixels >= 0).all(1) & (pixels < SIZE).all(1)
    pixels[:, 1] = SIZE[1] - pixels[:, 1]
    return np.where(inside[:, None], pixels, np.nan)


def draw_perspective(
    renderer: OffscreenRenderer,
    scene: Drawing,
    camera: Camera | None = None,
    coloring: str = 'height',
    show_scores: bool = True,
) -> np.ndarray:
    """Draw a scene from behind and above.

    Args:
        renderer: of pictures of SIZE; the caller starts and ends it.
        scene: truth is drawn as thin green boxes.
        camera: default: behind a sensor whose y points forward.
        coloring: of the points, 'height' or 'intensity'.
        show_scores: write as many scores as find room, the highest first.
    Returns:
        The picture [height, width, 3] uint8.
    Raises:
        RendererError: Open3D's process died.
    """
    from matplotlib.figure import Figure

    points = scene.points[np.isfinite(scene.points).all(1)]
    values, title, ends = point_values(points, coloring)
    ground = ground_height(points)
    intrinsics, extrinsics = (camera or Camera()).matrices(ground)
    arrows = velocity_arrows(scene.boxes)
    rings = np.concatenate([_ring(radius, ground) for radius in _RINGS])
    lines = [(rings, rgb('#33414f'), 1.0)]
    if scene.truth is not None:
        lines.append((box_lines(scene.truth).reshape(-1, 2, 3), rgb(TRUTH), 1.5))
    segments = box_lines(scene.boxes)
    for name in sorted(set(scene.names)):
        mine = [i for i, other in enumerate(scene.names) if other == name]
        lines.append((segments[mine].reshape(-1, 2, 3), rgb(class_color(name)), 2.5))
    lines.append((arrows.reshape(-1, 2, 3), rgb(INK), 2.0))
    image = renderer.render(
        points[:, :3], ramp(values), lines, intrinsics, extrinsics, background=rgb(BACKGROUND)
    )

    width, height = SIZE
    figure = Figure(figsize=np.array(SIZE) / _DPI, dpi=_DPI, facecolor=BACKGROUND)
    figure.figimage(image, zorder=-1)
    if show_scores and len(segments):
        corners = project(segments[:, :, 0].reshape(-1, 3), intrinsics, extrinsics).reshape(
            len(segments), -1, 2
        )
        anchors = np.stack(
            [corners[..., 0].mean(1), corners[..., 1].max(1)], 1
        )  # above what is seen of the box
        write_scores(figure, scene, anchors, (0, 0, width - 240, height - 50))
    _name_rings(figure, (camera or Camera()).azimuth, ground, intrinsics, extrinsics)
    figure.text(
        24 / width, 1 - 34 / height, scene.title, color=INK, fontsize=13, path_effects=halo()
    )
    add_legend(figure, scene, (1 - 235 / width, 1 - 20 / height), len(arrows) > 0)
    add_scale(figure, (24 / width, 36 / height, 200 / width, 12 / height), title, ends)
    return picture(figure)


def _ring(radius: float, ground: float) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, 121)
    circle = np.stack([radius * np.cos(turn), radius * np.sin(turn), np.full(121, ground)], 1)
    return np.stack([circle[:-1], circle[1:]], 1)


def _name_rings(
    figure, azimuth: float, ground: float, intrinsics: np.ndarray, extrinsics: np.ndarray
) -> None:
    side = np.radians(azimuth - 60)
    places = np.array([[r * np.cos(side), r * np.sin(side), ground] for r in _RINGS])
    for radius, place in zip(_RINGS, project(places, intrinsics, extrinsics)):
        if np.isfinite(place).all():
            figure.text(
                *(place / SIZE),
                f' {radius} m',
                color=FAINT,
                fontsize=9,
                va='center',
                path_effects=halo(),
            )
