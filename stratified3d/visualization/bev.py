"""Bird's-eye-view pictures, drawn by matplotlib on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stratified3d.visualization.annotations import (
    FAINT,
    INK,
    add_legend,
    add_scale,
    to_pixels,
    write_scores,
)
from stratified3d.visualization.drawing import (
    BACKGROUND,
    GT_COLOR,
    Drawing,
    box_corners,
    class_color,
    point_values,
    ramp,
    velocity_arrows,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 1480, 1200  # pixels: a square of 1100 and a column for the legend
_DPI = 100
_SQUARE = (70 / _WIDTH, 55 / _HEIGHT, 1100 / _WIDTH, 1100 / _HEIGHT)


def draw_bev(
    drawing: Drawing,
    area: Sequence[float] = (-54.0, -54.0, 54.0, 54.0),
    coloring: str = 'height',
    show_scores: bool = True,
) -> np.ndarray:
    """Draw a frame from above, x to the right and y upwards.

    Args:
        drawing: ground truth is drawn as thick green outlines under the predictions; the line in
            a box points to its front.
        area: x_min, y_min, x_max, y_max in meters.
        coloring: of the points, 'height' or 'intensity'.
        show_scores: write as many scores as fit, the highest first.
    Returns:
        The picture [height, width, 3] uint8.
    """
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(_WIDTH / _DPI, _HEIGHT / _DPI), dpi=_DPI, facecolor=BACKGROUND)
    axes = figure.add_axes(_SQUARE, facecolor=BACKGROUND, anchor='NW')
    axes.set(xlim=(area[0], area[2]), ylim=(area[1], area[3]), aspect='equal')

    scale = _add_points(axes, drawing.points, area, coloring)
    _add_rings(axes, area)
    has_arrows = _add_boxes(axes, drawing)

    if show_scores:
        _add_scores(figure, axes, drawing, area)
    _label_axes(axes)
    figure.text(70 / _WIDTH, 1 - 32 / _HEIGHT, drawing.title, color=INK, fontsize=13)
    add_legend(figure, drawing, (1200 / _WIDTH, 1155 / _HEIGHT), has_arrows)
    add_scale(figure, (1210 / _WIDTH, 75 / _HEIGHT, 200 / _WIDTH, 12 / _HEIGHT), *scale)
    return to_pixels(figure)


def _add_points(
    axes: Axes, points: np.ndarray, area: Sequence[float], coloring: str
) -> tuple[str, tuple[float, float]]:
    """Draw the points of an area; returns what their colors mean and the values at both ends."""
    visible = points[_is_within(points[:, :2], area)]
    values, meaning, ends = point_values(visible, coloring)

    order = values.argsort()  # high points hide low ones
    x, y = visible[order, :2].T
    axes.scatter(x, y, s=1.1, c=ramp(values[order]), linewidths=0, rasterized=True)
    return meaning, ends


def _is_within(places: np.ndarray, area: Sequence[float]) -> np.ndarray:
    """Which places [N, 2] lie inside of an area."""
    lower, upper = np.array(area[:2]), np.array(area[2:])
    return ((places > lower) & (places < upper)).all(1)


def _add_rings(axes: Axes, area: Sequence[float]) -> None:
    """Draw faint circles every 20 m around the sensor."""
    angles = np.linspace(0, 2 * np.pi, 181)
    farthest = np.maximum(np.abs(area[:2]), np.abs(area[2:]))
    reach = float(np.linalg.norm(farthest))

    for radius in np.arange(20, reach, 20):
        x, y = radius * np.cos(angles), radius * np.sin(angles)
        axes.plot(x, y, color='#7d90a3', linewidth=0.6, alpha=0.45, zorder=1)

        diagonal = radius * np.sqrt(0.5)
        if diagonal < min(area[2], area[3]):
            label = f'{radius:.0f} m'
            axes.text(diagonal, diagonal, label, color=FAINT, fontsize=8, ha='left', va='bottom')


def _add_boxes(axes: Axes, drawing: Drawing) -> bool:
    """Draw ground truth, predictions and sensor; returns whether there are arrows of velocities."""
    from matplotlib.collections import LineCollection

    if drawing.gt_boxes is not None:
        outlines = _outlines(drawing.gt_boxes)
        axes.add_collection(LineCollection(outlines, colors=GT_COLOR, linewidths=2.6, alpha=0.9))

    outlines = _outlines(drawing.boxes)
    colors = [class_color(name) for name in drawing.names]
    axes.add_collection(LineCollection(outlines, colors=colors, linewidths=1.5))

    arrows = velocity_arrows(drawing.boxes)
    segments = list(arrows[..., :2].reshape(-1, 2, 2))
    axes.add_collection(LineCollection(segments, colors=INK, linewidths=1.0))

    axes.plot(0, 0, marker='+', color=INK, markersize=9)
    return len(arrows) > 0


def _outlines(boxes: np.ndarray) -> list[np.ndarray]:
    """Closed outline of each box with a line from its center to its front, [7, 2]."""
    outlines = []
    for corners in box_corners(boxes):
        front = corners[:2].mean(0)
        outlines.append(np.array([*corners, corners[0], front, corners.mean(0)]))
    return outlines


def _add_scores(figure: Figure, axes: Axes, drawing: Drawing, area: Sequence[float]) -> None:
    """Write scores above the boxes whose anchors are in the area."""
    corners = box_corners(drawing.boxes)
    if not len(corners):
        return

    anchors = np.stack([corners[..., 0].mean(1), corners[..., 1].max(1)], 1)  # [J, 2] meters
    anchors = np.where(_is_within(anchors, area)[:, None], anchors, np.nan)

    figure.canvas.draw_idle()
    axes.apply_aspect()
    frame = axes.get_window_extent()
    pixels = axes.transData.transform(anchors)
    write_scores(figure, drawing, pixels, (frame.x0, frame.y0, frame.x1, frame.y1))


def _label_axes(axes: Axes) -> None:
    axes.set_xlabel('x (m)', color=FAINT)
    axes.set_ylabel('y (m)', color=FAINT, labelpad=0)
    axes.tick_params(colors=FAINT, length=3)
    for spine in axes.spines.values():
        spine.set_color('#2b3641')
