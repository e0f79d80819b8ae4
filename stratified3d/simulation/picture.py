"""A bird's-eye picture of simulated frames; needs matplotlib.

python -m stratified3d.simulation.picture out.png [--layouts boulevard junction] [--seed 3]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from stratified3d.simulation.frame import simulate_frame
from stratified3d.simulation.layouts.catalog import LAYOUTS

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


def draw_frames(path: Path, layouts: list[str], seed: int, reach: float = 50.0) -> None:
    """Draw one frame per layout side by side, boxes by class, points by height.

    Args:
        path: of the picture. reach: m shown in each direction.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0 * len(layouts), 7.2), facecolor='#101418', layout='tight')
    FigureCanvasAgg(figure)
    for axes, layout in zip(figure.subplots(1, len(layouts), squeeze=False)[0], layouts):
        frame = simulate_frame(seed, layout)
        x, y, z = frame['points'][:, :3].T
        axes.set_facecolor('#101418')
        axes.scatter(x, y, s=0.6, c=np.clip(z, -3.5, 3.0), cmap='viridis', linewidths=0)
        for box, name in zip(frame['boxes'], frame['names']):
            cos, sin = np.cos(box[6]), np.sin(box[6])
            corners = np.array(
                [(1, 1), (1, -1), (-1, -1), (-1, 1), (1, 1), (1, 0), (0, 0)]
            )  # and the heading
            along, across = corners.T * box[3:5, None] / 2
            axes.plot(
                box[0] + cos * along - sin * across,
                box[1] + sin * along + cos * across,
                color=COLORS[name],
                lw=0.9,
            )
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect='equal', xticks=[], yticks=[])
        axes.set_title(
            f'{layout}: {len(x)} points, {len(frame["names"])} boxes', color='white', fontsize=10
        )
    shown = [axes.plot([], [], color=color, label=name)[0] for name, color in COLORS.items()]
    figure.legend(
        handles=shown,
        ncol=10,
        loc='lower center',
        fontsize=7,
        facecolor='#101418',
        labelcolor='white',
    )
    figure.savefig(path, dpi=90)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path)
    parser.add_argument(
        '--layouts', nargs='+', default=['boulevard', 'junction'], choices=list(LAYOUTS)
    )
    parser.add_argument('--seed', type=int, default=3)
    args = parser.parse_args()
    draw_frames(args.out, args.layouts, args.seed)
