"""Strata maps: where the tokens of one block are, what one of them collects and which voxels read
it, from above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stratified3d.visualization.annotations import FAINT, INK, halo, to_pixels
from stratified3d.visualization.drawing import BACKGROUND, StrataLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 1860, 720  # pixels
_DPI = 100
_TOKEN_COLOR = '#ff5fa2'
_COLORS = ('#26394b', '#2f7f9e', '#8fd6a8', '#ffe08a', '#ffffff')


def chosen_token(strata: StrataLike, token: int | None = None) -> int:
    """The token to show: the given one, or else the most read one.

    Raises:
        ValueError: there is no such token.
    """
    count = len(strata.tokens)
    if not count:
        raise ValueError('the frame has no voxels and so no strata tokens')
    if token is None:
        return int(strata.read.sum(0).argmax())
    if not 0 <= token < count:
        raise ValueError(f'there are {count} tokens, no token {token}: take 0 to {count - 1}')
    return token


def draw_strata(
    strata: StrataLike,
    area: Sequence[float] = (-54.0, -54.0, 54.0, 54.0),
    token: int | None = None,
    title: str = '',
) -> np.ndarray:
    """Draw three maps: all tokens, the voxels that one token collects from, and its readers.

    Args:
        strata: tokens of one block for one point cloud.
        area: x_min, y_min, x_max, y_max in meters.
        token: which one; None takes the most read one.
        title: above the picture.
    Returns:
        The picture [height, width, 3] uint8.
    Raises:
        ValueError: there is no such token.
    """
    from matplotlib.figure import Figure

    token = chosen_token(strata, token)
    total = 100 * strata.read.sum(1)
    relative = strata.collected[token] * len(strata.voxels)  # to the same share of each voxel
    readers = 100 * strata.read[:, token]

    figure = Figure(figsize=(_WIDTH / _DPI, _HEIGHT / _DPI), dpi=_DPI, facecolor=BACKGROUND)
    axes = _add_map(
        figure,
        strata,
        total,
        f"all {len(strata.tokens)} tokens, numbered; color: share of\na voxel's attention to them",
        unit='%',
        column=0,
        area=area,
    )
    _mark_all_tokens(axes, strata)

    axes = _add_map(
        figure,
        strata,
        relative,
        f'token {token} collects from these voxels;\n1 would be the same from each',
        unit='x',
        column=1,
        area=area,
    )
    _mark_token(axes, strata.tokens[token])

    axes = _add_map(
        figure,
        strata,
        readers,
        f"these voxels read token {token}; color: share of\na voxel's attention",
        unit='%',
        column=2,
        area=area,
    )
    _mark_token(axes, strata.tokens[token])

    figure.text(50 / _WIDTH, 1 - 36 / _HEIGHT, title, color=INK, fontsize=13)
    return to_pixels(figure)


def _add_map(
    figure: Figure,
    strata: StrataLike,
    values: np.ndarray,
    caption: str,
    *,
    unit: str,
    column: int,
    area: Sequence[float],
) -> Axes:
    """Draw the voxels in the colors of their values [N], in one of three columns."""
    from matplotlib.colors import LinearSegmentedColormap

    left = (50 + 610 * column) / _WIDTH
    place = (left, 50 / _HEIGHT, 540 / _WIDTH, 540 / _HEIGHT)
    axes = figure.add_axes(place, facecolor=BACKGROUND)

    top = max(float(np.percentile(values, 99.5)), 1e-9)
    order = values.argsort()
    x, y = strata.voxels[order, :2].T
    drawn = axes.scatter(
        x,
        y,
        s=5,
        c=values[order],
        cmap=LinearSegmentedColormap.from_list('strata', _COLORS),
        vmin=0,
        vmax=top,
        linewidths=0,
        marker='s',
    )
    _add_color_bar(figure, drawn, left, top, unit)

    axes.set(xlim=(area[0], area[2]), ylim=(area[1], area[3]), aspect='equal')
    axes.set_title(caption, color=INK, fontsize=11, loc='left', pad=34)
    axes.tick_params(colors=FAINT, length=3, labelsize=9)
    for spine in axes.spines.values():
        spine.set_color('#2b3641')
    return axes


def _add_color_bar(
    figure: Figure, drawn: PathCollection, left: float, top: float, unit: str
) -> None:
    """Draw the scale from 0 to `top` above the map whose left edge is given."""
    axes = figure.add_axes((left, 603 / _HEIGHT, 200 / _WIDTH, 9 / _HEIGHT))
    figure.colorbar(drawn, cax=axes, orientation='horizontal', ticks=[0, top])

    axes.set_xticklabels([f'0 {unit}', f'{top:.3g} {unit}'], color=FAINT, fontsize=9)
    axes.xaxis.set_ticks_position('top')
    axes.tick_params(length=0, pad=1)

    first, last = axes.get_xticklabels()
    first.set_horizontalalignment('left')
    last.set_horizontalalignment('right')


def _mark_token(axes: Axes, place: np.ndarray) -> None:
    """Draw a star at the place of a token, [3]."""
    axes.plot(
        place[0],
        place[1],
        marker='*',
        markersize=17,
        color=_TOKEN_COLOR,
        markeredgecolor=BACKGROUND,
    )


def _mark_all_tokens(axes: Axes, strata: StrataLike) -> None:
    """Draw every token as a dot, the larger the more it is read, with its number where there is
    room."""
    share = strata.read.mean(0)
    x, y = strata.tokens[:, :2].T
    axes.scatter(
        x,
        y,
        s=12 + 80 * share / max(share.max(), 1e-9),
        c=_TOKEN_COLOR,
        alpha=0.85,
        edgecolors=BACKGROUND,
        linewidths=0.8,
    )

    spacing = np.ptp(strata.voxels[:, :2], axis=0).max() / 28
    numbered: list[np.ndarray] = []
    for i in np.argsort(-share, kind='stable'):
        place = strata.tokens[i, :2]
        if any(np.abs(place - other).max() <= spacing for other in numbered):
            continue
        numbered.append(place)
        axes.annotate(
            str(i),
            (place[0], place[1]),
            (5, 4),
            textcoords='offset points',
            color=INK,
            fontsize=8,
            path_effects=halo(),
            annotation_clip=True,
        )
