"""Annotations that bird's-eye-view and perspective pictures share: scores, legend and color
scale."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from stratified3d.visualization.drawing import BACKGROUND, GT_COLOR, Drawing, class_color, ramp

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import AbstractPathEffect

INK, FAINT = '#e8eef4', '#93a3b3'
_LABEL_SIZE = (30, 15)  # pixels, of a score of four characters


def place_labels(
    anchors: np.ndarray, order: np.ndarray, limits: tuple[float, float, float, float]
) -> dict[int, tuple]:
    """Find room for as many labels as fit without overlap.

    Args:
        anchors: [J, 2] pixels, y upwards; a label stands above, right of, left of or below its
            anchor.
        order: indices of the labels, the most important first.
        limits: x_min, y_min, x_max, y_max that labels stay within.
    Returns:
        {index: center of the label in pixels} of the labels that fit.
    """
    size = np.array(_LABEL_SIZE)
    right = size * [0.7, 0]
    above = size * [0, 0.8]
    offsets = np.stack([above, right, -right, -above])
    lower = np.array(limits[:2])
    upper = np.array(limits[2:])
    placed: dict[int, tuple] = {}
    taken = np.zeros((0, 2))

    for i in order:
        for center in anchors[i] + offsets:
            is_too_low = (center - size / 2 < lower).any()
            is_too_high = (center + size / 2 > upper).any()
            overlaps = (np.abs(taken - center) < size).all(1).any()

            if not (is_too_low or is_too_high or overlaps):
                placed[int(i)] = tuple(center)
                taken = np.vstack([taken, center])
                break
    return placed


def write_scores(
    figure: Figure, drawing: Drawing, anchors: np.ndarray, limits: tuple[float, float, float, float]
) -> None:
    """Write the scores of the predictions at their anchors, the best first.

    Args:
        anchors: [J, 2] pixels; NaN for a prediction that is not visible.
        limits: see `place_labels`.
    """
    if drawing.scores is None or not len(drawing.boxes):
        return

    order = np.argsort(-drawing.scores, kind='stable')
    is_visible = np.isfinite(anchors[order]).all(1)
    width, height = figure.get_size_inches() * figure.dpi

    for i, (x, y) in place_labels(anchors, order[is_visible], limits).items():
        figure.text(
            x / width,
            y / height,
            f'{drawing.scores[i]:.2f}',
            color=class_color(drawing.names[i]),
            fontsize=9.6,
            ha='center',
            va='center',
            path_effects=halo(),
        )


def halo() -> list[AbstractPathEffect]:
    """Path effects that keep text readable on top of points and lines."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.5, foreground=BACKGROUND)]


def add_legend(
    figure: Figure, drawing: Drawing, place: tuple[float, float], has_arrows: bool
) -> None:
    """List ground truth and classes with the number of their boxes.

    Args:
        place: upper left corner in fractions of the figure.
        has_arrows: whether to explain the arrows of velocities.
    """
    entries = _legend_entries(drawing, has_arrows)
    if not entries:
        return

    lines, labels = zip(*entries)
    figure.legend(
        lines,
        labels,
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


def _legend_entries(drawing: Drawing, has_arrows: bool) -> list[tuple[Line2D, str]]:
    """Line and label of each entry; classes sorted by descending count, then by name."""
    from matplotlib.lines import Line2D

    entries = []
    if drawing.gt_boxes is not None:
        line = Line2D([], [], color=GT_COLOR, linewidth=3)
        entries.append((line, f'ground truth ({len(drawing.gt_boxes)})'))

    counts = Counter(drawing.names)
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        line = Line2D([], [], color=class_color(name), linewidth=3)
        entries.append((line, f'{name.replace("_", " ")} ({counts[name]})'))

    if has_arrows:
        line = Line2D([], [], color=INK, linewidth=1, marker='>', markersize=5, markevery=[1])
        entries.append((line, 'motion in 1 s'))
    return entries


def add_scale(
    figure: Figure, place: tuple[float, float, float, float], title: str, ends: tuple[float, float]
) -> None:
    """Draw the color ramp of the points with the values at its ends.

    Args:
        place: left, bottom, width and height in fractions of the figure.
    """
    axes = figure.add_axes(place)
    colors = ramp(np.linspace(0, 1, 256))
    axes.imshow(colors[None], aspect='auto', extent=(*ends, 0, 1))

    axes.set(yticks=[], xticks=ends)
    tick_labels = [f'{end:g}' for end in np.round(ends, 2)]
    axes.set_xticklabels(tick_labels, color=FAINT, fontsize=9, path_effects=halo())

    first, last = axes.get_xticklabels()
    first.set_horizontalalignment('left')
    last.set_horizontalalignment('right')

    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, color=FAINT, fontsize=9, loc='left', pad=4, path_effects=halo())


def to_pixels(figure: Figure) -> np.ndarray:
    """The pixels of a figure, [height, width, 3] uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
