"""Strata maps: where the tokens of one block sit, what one of them collects and who reads it, from
above."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stratified3d.visualization.annotations import FAINT, INK, halo, picture
from stratified3d.visualization.drawing import BACKGROUND, StrataWeights

_SIZE, _DPI = (1860, 720), 100
_TOKEN = '#ff5fa2'


def chosen_token(weights: StrataWeights, token: int | None = None) -> int:
    """The token to look at: the given one, else the one that most is read of.

    Raises:
        ValueError: no such token.
    """
    if not len(weights.tokens):
        raise ValueError('the frame has no voxels and so no strata tokens')
    if token is None:
        return int(weights.read.sum(0).argmax())
    if not 0 <= token < len(weights.tokens):
        raise ValueError(f'there are {len(weights.tokens)} tokens, no token {token}')
    return token


def draw_strata(
    weights: StrataWeights,
    area: Sequence[float] = (-54.0, -54.0, 54.0, 54.0),
    token: int | None = None,
    title: str = '',
) -> np.ndarray:
    """Draw three maps: all tokens, the voxels that one token collects from, the voxels that read
    it.

    Args:
        weights: of one block and one cloud.
        area: x_min, y_min, x_max, y_max in meters.
        token: which one; None takes the one that most is read of.
        title: above the picture.
    Returns:
        The picture [height, width, 3] uint8.
    Raises:
        ValueError: no such token.
    """
    from matplotlib.figure import Figure

    token = chosen_token(weights, token)
    figure = Figure(figsize=np.array(_SIZE) / _DPI, dpi=_DPI, facecolor=BACKGROUND)
    total = 100 * weights.read.sum(1)
    relative = weights.collected[token] * len(weights.voxels)
    maps = [
        (
            total,
            f"all {len(weights.tokens)} tokens, numbered; color: share of\na voxel's attention to them",
            '%',
        ),
        (
            relative,
            f'token {token} collects from these voxels;\n1 would be the same from each',
            'x',
        ),
        (
            100 * weights.read[:, token],
            f"these voxels read token {token}; color: share of\na voxel's attention",
            '%',
        ),
    ]
    for i, (values, caption, unit) in enumerate(maps):
        axes = figure.add_axes(
            [(50 + 610 * i) / _SIZE[0], 50 / _SIZE[1], 540 / _SIZE[0], 540 / _SIZE[1]],
            facecolor=BACKGROUND,
        )
        _map(figure, axes, weights, values, unit, i)
        axes.set(xlim=(area[0], area[2]), ylim=(area[1], area[3]), aspect='equal')
        axes.set_title(caption, color=INK, fontsize=11, loc='left', pad=34)
        axes.tick_params(colors=FAINT, length=3, labelsize=9)
        for spine in axes.spines.values():
            spine.set_color('#2b3641')
        if i:
            axes.plot(
                *weights.tokens[token, :2],
                marker='*',
                markersize=17,
                color=_TOKEN,
                markeredgecolor=BACKGROUND,
            )
        else:
            _tokens(axes, weights)
    figure.text(50 / _SIZE[0], 1 - 36 / _SIZE[1], title, color=INK, fontsize=13)
    return picture(figure)


def _map(figure, axes, weights: StrataWeights, values: np.ndarray, unit: str, index: int) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list(
        'strata', ['#26394b', '#2f7f9e', '#8fd6a8', '#ffe08a', '#ffffff']
    )
    top = max(float(np.percentile(values, 99.5)), 1e-9)
    order = values.argsort()
    drawn = axes.scatter(
        *weights.voxels[order, :2].T,
        s=5,
        c=values[order],
        cmap=colors,
        vmin=0,
        vmax=top,
        linewidths=0,
        marker='s',
    )
    bar = figure.add_axes(
        [(50 + 610 * index) / _SIZE[0], 603 / _SIZE[1], 200 / _SIZE[0], 9 / _SIZE[1]]
    )
    figure.colorbar(drawn, cax=bar, orientation='horizontal', ticks=[0, top])
    bar.set_xticklabels([f'0 {unit}', f'{top:.3g} {unit}'], color=FAINT, fontsize=9)
    bar.xaxis.set_ticks_position('top')
    bar.tick_params(length=0, pad=1)
    bar.get_xticklabels()[0].set_ha('left')
    bar.get_xticklabels()[1].set_ha('right')


def _tokens(axes, weights: StrataWeights) -> None:
    """Every token as a dot whose area says how much is read of it, with its number where there is
    room."""
    share = weights.read.mean(0)
    axes.scatter(
        *weights.tokens[:, :2].T,
        s=12 + 80 * share / max(share.max(), 1e-9),
        c=_TOKEN,
        alpha=0.85,
        edgecolors=BACKGROUND,
        linewidths=0.8,
    )
    named: list[np.ndarray] = []
    reach = np.ptp(weights.voxels[:, :2], axis=0).max() / 28
    for i in np.argsort(-share, kind='stable'):
        place = weights.tokens[i, :2]
        if all(np.abs(place - other).max() > reach for other in named):
            named.append(place)
            axes.annotate(
                str(i),
                place,
                (5, 4),
                textcoords='offset points',
                color=INK,
                fontsize=8,
                path_effects=halo(),
                annotation_clip=True,
            )
