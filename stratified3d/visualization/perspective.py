"""Perspective pictures: Open3D draws points and boxes, matplotlib the text."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stratified3d.visualization.annotations import (
    FAINT,
    INK,
    add_legend,
    add_scale,
    halo,
    to_pixels,
    write_scores,
)
from stratified3d.visualization.drawing import (
    BACKGROUND,
    GT_COLOR,
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (1600, 900)  # pixels
_DPI = 100
_RINGS = (20, 40, 60, 80)  # m


class Camera(NamedTuple):
    """Where a picture is taken from.

    Attributes:
        azimuth: degrees that it looks to: 0 along x, 90 along y.
        elevation: degrees above the ground.
        distance: m to the place on the ground that it looks at.
        ahead: m from the sensor to that place.
    """

    azimuth: float = 90.0
    elevation: float = 36.0
    distance: float = 62.0
    ahead: float = 12.0

    def matrices(self, ground: float) -> tuple[np.ndarray, np.ndarray]:
        """Intrinsics [3, 3] and extrinsics [4, 4] for pictures of SIZE.

        Args:
            ground: z of the ground in meters.
        """
        azimuth, elevation = np.radians([self.azimuth, self.elevation])
        cos, sin = np.cos(azimuth), np.sin(azimuth)
        towards = np.array([cos * np.cos(elevation), sin * np.cos(elevation), -np.sin(elevation)])
        right = np.array([sin, -cos, 0])

        target = np.array([cos, sin, 0]) * self.ahead + [0, 0, ground]
        eye = target - self.distance * towards
        extrinsics = np.eye(4)
        extrinsics[:3, :3] = np.stack([right, np.cross(towards, right), towards])
        extrinsics[:3, 3] = -extrinsics[:3, :3] @ eye

        width, height = SIZE
        focal = width / 2 / np.tan(np.radians(60) / 2)
        intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
        return intrinsics, extrinsics


def project(places: np.ndarray, intrinsics: np.ndarray, extrinsics: np.ndarray) -> np.ndarray:
    """Pixels [N, 2] of places [N, 3] in meters, y upwards.

    What is behind the camera or outside of the picture becomes NaN.
    """
    seen = places @ extrinsics[:3, :3].T + extrinsics[:3, 3]
    pixels = seen @ intrinsics.T
    with np.errstate(divide='ignore', invalid='ignore'):
        pixels = pixels[:, :2] / pixels[:, 2:]

    is_ahead = seen[:, 2] > 0.5
    is_inside = is_ahead & (pixels >= 0).all(1) & (pixels < SIZE).all(1)
    pixels[:, 1] = SIZE[1] - pixels[:, 1]
    return np.where(is_inside[:, None], pixels, np.nan)


def draw_perspective(
    renderer: OffscreenRenderer,
    drawing: Drawing,
    camera: Camera | None = None,
    coloring: str = 'height',
    show_scores: bool = True,
) -> np.ndarray:
    """Draw a frame from behind and above.

    Args:
        renderer: of pictures of SIZE; the caller starts and ends it.
        drawing: ground truth is drawn as thin green boxes.
        camera: default: behind a sensor whose y points forward.
        coloring: of the points, 'height' or 'intensity'.
        show_scores: write as many scores as fit, the highest first.
    Returns:
        The picture [height, width, 3] uint8.
    Raises:
        RendererError: Open3D's process died.
    """
    camera = camera or Camera()
    points = drawing.points[np.isfinite(drawing.points).all(1)]
    values, meaning, ends = point_values(points, coloring)
    ground = ground_height(points)
    intrinsics, extrinsics = camera.matrices(ground)
    arrows = velocity_arrows(drawing.boxes)

    image = renderer.render(
        points[:, :3],
        ramp(values),
        _lines(drawing, arrows, ground),
        intrinsics,
        extrinsics,
        background=rgb(BACKGROUND),
    )

    figure = _make_figure(image)
    if show_scores and len(drawing.boxes):
        anchors = _anchors(drawing.boxes, intrinsics, extrinsics)
        write_scores(figure, drawing, anchors, (0, 0, SIZE[0] - 240, SIZE[1] - 50))
    _name_rings(figure, camera.azimuth, ground, intrinsics, extrinsics)
    _add_texts(figure, drawing, len(arrows) > 0, meaning, ends)
    return to_pixels(figure)


def _lines(
    drawing: Drawing, arrows: np.ndarray, ground: float
) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Groups of lines: segments [S, 2, 3], color [3] and width in pixels of each."""
    rings = np.concatenate([_ring(radius, ground) for radius in _RINGS])
    lines = [(rings, rgb('#33414f'), 1.0)]
    if drawing.gt_boxes is not None:
        segments = box_lines(drawing.gt_boxes).reshape(-1, 2, 3)
        lines.append((segments, rgb(GT_COLOR), 1.5))

    segments = box_lines(drawing.boxes)
    for name in sorted(set(drawing.names)):
        rows = [i for i, other in enumerate(drawing.names) if other == name]
        lines.append((segments[rows].reshape(-1, 2, 3), rgb(class_color(name)), 2.5))

    lines.append((arrows.reshape(-1, 2, 3), rgb(INK), 2.0))
    return lines


def _ring(radius: float, ground: float) -> np.ndarray:
    """Segments [120, 2, 3] of a circle around the sensor."""
    angles = np.linspace(0, 2 * np.pi, 121)
    height = np.full(121, ground)
    circle = np.stack([radius * np.cos(angles), radius * np.sin(angles), height], 1)
    return np.stack([circle[:-1], circle[1:]], 1)


def _make_figure(image: np.ndarray) -> Figure:
    """A figure whose background is the rendered image."""
    from matplotlib.figure import Figure

    size = (SIZE[0] / _DPI, SIZE[1] / _DPI)
    figure = Figure(figsize=size, dpi=_DPI, facecolor=BACKGROUND)
    figure.figimage(image, zorder=-1)
    return figure


def _anchors(boxes: np.ndarray, intrinsics: np.ndarray, extrinsics: np.ndarray) -> np.ndarray:
    """Pixels [J, 2] above what is visible of each box."""
    corners = box_lines(boxes)[:, :, 0]  # [J, 14, 3]
    pixels = project(corners.reshape(-1, 3), intrinsics, extrinsics)
    pixels = pixels.reshape(len(boxes), -1, 2)
    return np.stack([pixels[..., 0].mean(1), pixels[..., 1].max(1)], 1)


def _name_rings(
    figure: Figure, azimuth: float, ground: float, intrinsics: np.ndarray, extrinsics: np.ndarray
) -> None:
    """Write the radius of each visible ring at its right side."""
    side = np.radians(azimuth - 60)
    places = [[radius * np.cos(side), radius * np.sin(side), ground] for radius in _RINGS]
    pixels = project(np.array(places), intrinsics, extrinsics)

    for radius, (x, y) in zip(_RINGS, pixels):
        if not np.isfinite([x, y]).all():
            continue
        figure.text(
            x / SIZE[0],
            y / SIZE[1],
            f' {radius} m',
            color=FAINT,
            fontsize=9,
            va='center',
            path_effects=halo(),
        )


def _add_texts(
    figure: Figure, drawing: Drawing, has_arrows: bool, meaning: str, ends: tuple[float, float]
) -> None:
    """Write title, legend and the scale of the points."""
    width, height = SIZE
    left, top = 24 / width, 1 - 34 / height
    figure.text(left, top, drawing.title, color=INK, fontsize=13, path_effects=halo())
    add_legend(figure, drawing, (1 - 235 / width, 1 - 20 / height), has_arrows)
    add_scale(figure, (left, 36 / height, 200 / width, 12 / height), meaning, ends)
