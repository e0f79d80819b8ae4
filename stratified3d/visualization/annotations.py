"""What bird's-eye and perspective pictures have in common: labels that do not overlap, legend,
scale of the points."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from stratified3d.visualization.drawing import BACKGROUND, TRUTH, Drawing, class_color, ramp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT = '#e8eef4', '#93a3b3'
_LABEL = (30, 15)  # pixels taken by a score of four characters


def place_labels(
    anchors: np.ndarray, order: np.ndarray, limits: tuple[float, float, float, float]
) -> dict[int, tuple]:
    """Find room for as many labels as fit without overlap.

    Args:
        anchors: [J, 2] pixels, y upwards; a label stands above its anchor, or right, left or below.
        order: the labels' indices, the most important first.
        limits: x_min, y_min, x_max, y_max that a label keeps within.
    Returns:
        {index: center of the label in pixels} of those that found room.
    """
    width, height = _LABEL
    offsets = np.array([(0, 0.8 * height), (0.7 * width, 0), (-0.7 * width, 0), (0, -0.8 * height)])
    placed: dict[int, tuple] = {}
    taken = np.zeros((0, 2))
    for i in order:
        for center in anchors[i] + offsets:
            inside = (
                center[0] - width / 2 >= limits[0]
                and center[0] + width / 2 <= limits[2]
                and center[1] - height / 2 >= limits[1]
                and center[1] + height / 2 <= limits[3]
            )
            if inside and not (np.abs(taken - center) < _LABEL).all(1).any():
                placed[int(i)] = tuple(center)
                taken = np.vstack([taken, center])
                break
    return placed


def write_scores(
    figure: Figure, scene: Drawing, anchors: np.ndarray, limits: tuple[float, float, float, float]
) -> None:
    """Write every prediction's score at its anchor ([J, 2] pixels, NaN for one out of sight), the
    best first."""
    if scene.scores is None or not len(scene.boxes):
        return
    order = np.argsort(-scene.scores, kind='stable')
    order = order[np.isfinite(anchors[order]).all(1)]
    size = figure.get_size_inches() * figure.dpi
    for i, center in place_labels(anchors, order, limits).items():
        figure.text(
            *(np.array(center) / size),
            f'{scene.scores[i]:.2f}',
            color=class_color(scene.names[i]),
            fontsize=9.6,
            ha='center',
            va='center',
            path_effects=halo(),
        )


def halo() -> list:
    """Path effects that keep words readable on top of points and lines."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.5, foreground=BACKGROUND)]


def add_legend(
    figure: Figure, scene: Drawing, place: tuple[float, float], has_arrows: bool
) -> None:
    """List the truth and the classes with their counts; place: upper left corner in fractions of
    the figure."""
    from matplotlib.lines import Line2D

    entries = []
    if scene.truth is not None:
        entries.append((Line2D([], [], color=TRUTH, linewidth=3), f'truth ({len(scene.truth)})'))
    for name, count in sorted(Counter(scene.names).items(), key=lambda item: (-item[1], item[0])):
        entries.append(
            (
                Line2D([], [], color=class_color(name), linewidth=3),
                f'{name.replace("_", " ")} ({count})',
            )
        )
    if has_arrows:
        entries.append(
            (
                Line2D([], [], color=INK, linewidth=1, marker='>', markersize=5, markevery=[1]),
                'motion in 1 s',
            )
        )
    if entries:
        figure.legend(
            *zip(*entries),
            loc='upper left',
            bbox_to_anchor=place,
            fontsize=10,
            labelcolor=INK,
            facecolor=BACKGROUND,
            edgecolor='none',
            framealpha=0.75,
            borderaxespad=0,
            handlelength=1.6,
        )


def add_scale(
    figure: Figure, place: tuple[float, float, float, float], title: str, ends: tuple[float, float]
) -> None:
    """The ramp of the points with the values at its ends; place: left, bottom, width, height in
    fractions."""
    axes = figure.add_axes(place)
    axes.imshow(ramp(np.linspace(0, 1, 256))[None], aspect='auto', extent=(*ends, 0, 1))
    axes.set(yticks=[], xticks=ends)
    axes.set_xticklabels(
        [f'{end:g}' for end in np.round(ends, 2)], color=FAINT, fontsize=9, path_effects=halo()
    )
    for label, side in zip(axes.get_xticklabels(), ('left', 'right')):
        label.set_ha(side)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, color=FAINT, fontsize=9, loc='left', pad=4, path_effects=halo())


def picture(figure: Figure) -> np.ndarray:
    """A figure's pixels [height, width, 3] uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
