"""Bird's-eye-view pictures by matplotlib, on any machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stratified3d.visualization.annotations import (
    FAINT,
    INK,
    add_legend,
    add_scale,
    picture,
    write_scores,
)
from stratified3d.visualization.drawing import (
    BACKGROUND,
    TRUTH,
    Drawing,
    box_corners,
    class_color,
    point_values,
    ramp,
    velocity_arrows,
)

_SIZE, _DPI = (1480, 1200), 100  # pixels: a square of 1100 and a column for the legend


def draw_bev(
    scene: Drawing,
    area: Sequence[float] = (-54.0, -54.0, 54.0, 54.0),
    coloring: str = 'height',
    show_scores: bool = True,
) -> np.ndarray:
    """Draw a scene from above, x to the right and y upwards.

    Args:
        scene: truth is drawn as thick green outlines under the predictions; the open side of a
        prediction's mark is
            its rear.
        area: x_min, y_min, x_max, y_max in meters.
        coloring: of the points, 'height' or 'intensity'.
        show_scores: write as many scores as find room, the highest first.
    Returns:
        The picture [height, width, 3] uint8.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    figure = Figure(figsize=np.array(_SIZE) / _DPI, dpi=_DPI, facecolor=BACKGROUND)
    width, height = _SIZE
    axes = figure.add_axes(
        [70 / width, 55 / height, 1100 / width, 1100 / height], facecolor=BACKGROUND, anchor='NW'
    )
    axes.set(xlim=(area[0], area[2]), ylim=(area[1], area[3]), aspect='equal')
    low, high = np.array(area[:2]), np.array(area[2:])
    points = scene.points[((scene.points[:, :2] > low) & (scene.points[:, :2] < high)).all(1)]
    values, title, ends = point_values(points, coloring)
    order = values.argsort()  # what is high hides what is low
    axes.scatter(*points[order, :2].T, s=1.1, c=ramp(values[order]), linewidths=0, rasterized=True)
    _add_rings(axes, area)
    if scene.truth is not None:
        axes.add_collection(
            LineCollection(_outlines(scene.truth), colors=TRUTH, linewidths=2.6, alpha=0.9)
        )
    colors = [class_color(name) for name in scene.names]
    axes.add_collection(LineCollection(_outlines(scene.boxes), colors=colors, linewidths=1.5))
    arrows = velocity_arrows(scene.boxes)
    axes.add_collection(
        LineCollection(arrows[..., :2].reshape(-1, 2, 2), colors=INK, linewidths=1.0)
    )
    axes.plot(0, 0, marker='+', color=INK, markersize=9)

    figure.canvas.draw_idle()
    axes.apply_aspect()
    corners = box_corners(scene.boxes)
    anchors = (
        np.stack([corners[..., 0].mean(1), corners[..., 1].max(1)], 1)
        if len(corners)
        else np.zeros((0, 2))
    )
    anchors = np.where(((anchors > low) & (anchors < high)).all(1)[:, None], anchors, np.nan)
    if show_scores:
        box = axes.get_window_extent()
        write_scores(
            figure, scene, axes.transData.transform(anchors), (box.x0, box.y0, box.x1, box.y1)
        )
    axes.set_xlabel('x (m)', color=FAINT)
    axes.set_ylabel('y (m)', color=FAINT, labelpad=0)
    axes.tick_params(colors=FAINT, length=3)
    for spine in axes.spines.values():
        spine.set_color('#2b3641')
    figure.text(70 / width, 1 - 32 / height, scene.title, color=INK, fontsize=13)
    add_legend(figure, scene, (1200 / width, 1155 / height), len(arrows) > 0)
    add_scale(figure, (1210 / width, 75 / height, 200 / width, 12 / height), title, ends)
    return picture(figure)


def _outlines(boxes: np.ndarray) -> list[np.ndarray]:
    """Closed outline with a line from the middle to the front: [7, 2] of each box."""
    return [np.array([*c, c[0], c[:2].mean(0), c.mean(0)]) for c in box_corners(boxes)]


def _add_rings(axes, area: Sequence[float]) -> None:
    """Faint circles every 20 m around the sensor."""
    turn = np.linspace(0, 2 * np.pi, 181)
    reach = np.linalg.norm(np.maximum(np.abs(area[:2]), np.abs(area[2:])))
    for radius in np.arange(20, reach, 20):
        axes.plot(
            radius * np.cos(turn),
            radius * np.sin(turn),
            color='#7d90a3',
            linewidth=0.6,
            alpha=0.45,
            zorder=1,
        )
        at = radius * np.sqrt(0.5)
        if at < min(area[2], area[3]):
            axes.text(at, at, f'{radius:.0f} m', color=FAINT, fontsize=8, ha='left', va='bottom')
