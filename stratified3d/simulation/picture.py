"""Draw simulated frames from above; needs matplotlib.

python -m stratified3d.simulation.picture out.png [--layouts boulevard junction] [--seed 3]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stratified3d.simulation.frame import simulate_frame
from stratified3d.simulation.layouts.catalog import LAYOUTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {
    'car': '#ff9f1c',
    'truck': '#e71d36',
    'bus': '#c77dff',
    'trailer': '#9d4edd',
    'construction_vehicle': '#ffea00',
    'pedestrian': '#2ec4b6',
    'motorcycle': '#ff5d8f',
    'bicycle': '#80ed99',
    'traffic_cone': '#f8961e',
    'barrier': '#adb5bd',
}


BACKGROUND = '#101418'
# corners of a box in units of its half-size, then a line from its front to its center
OUTLINE = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1), (1, 1), (1, 0), (0, 0)])


def draw_frames(path: Path, layouts: list[str], seed: int, reach: float = 50.0) -> None:
    """Draw one frame per layout side by side, boxes by class, points by height.

    Args:
        path: of the picture.
        reach: m shown in each direction.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0 * len(layouts), 7.2), facecolor=BACKGROUND, layout='tight')
    FigureCanvasAgg(figure)
    for axes, layout in zip(figure.subplots(1, len(layouts), squeeze=False)[0], layouts):
        _draw_frame(axes, layout, seed)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect='equal', xticks=[], yticks=[])
    shown = [axes.plot([], [], color=color, label=name)[0] for name, color in COLORS.items()]
    figure.legend(
        handles=shown,
        ncol=10,
        loc='lower center',
        fontsize=7,
        facecolor=BACKGROUND,
        labelcolor='white',
    )
    figure.savefig(path, dpi=90)


def _draw_frame(axes: Axes, layout: str, seed: int) -> None:
    frame = simulate_frame(seed, layout)
    x, y, z = frame['points'][:, :3].T
    axes.set_facecolor(BACKGROUND)
    axes.scatter(x, y, s=0.6, c=np.clip(z, -3.5, 3.0), cmap='viridis', linewidths=0)
    for box, name in zip(frame['boxes'], frame['names']):
        cos, sin = np.cos(box[6]), np.sin(box[6])
        along, across = OUTLINE.T * box[3:5, None] / 2
        xs = box[0] + cos * along - sin * across
        ys = box[1] + sin * along + cos * across
        axes.plot(xs, ys, color=COLORS[name], lw=0.9)
    title = f'{layout}: {len(x)} points, {len(frame["names"])} boxes'
    axes.set_title(title, color='white', fontsize=10)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path)
    parser.add_argument(
        '--layouts', nargs='+', default=['boulevard', 'junction'], choices=list(LAYOUTS)
    )
    parser.add_argument('--seed', type=int, default=3)
    args = parser.parse_args()
    draw_frames(args.out, args.layouts, args.seed)
