"""Bird's-eye-view pictures by matplotlib, on any machine."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

# class colours of the nuScenes devkit's spirit: vehicles warm, people blue, two-wheelers red, static grey
_COLOURS = dict(car='#ff9e00', truck='#ff6347', bus='#ff7f50', trailer='#ff8c00', construction_vehicle='#e9967a',
                pedestrian='#4aa3ff', motorcycle='#ff3d63', bicycle='#dc143c', traffic_cone='#b0c4de',
                barrier='#8fa3b0')
_TRUTH = '#38e07b'


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """Outlines in the ground plane: boxes [K, >= 7] (x, y, z, dx, dy, dz, yaw) -> [K, 4, 2], front edge first."""
    signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2
    local = signs * boxes[:, None, 3:5]
    cos, sin = np.cos(boxes[:, 6:7]), np.sin(boxes[:, 6:7])
    x, y = local[..., 0], local[..., 1]
    return np.stack([x * cos - y * sin, x * sin + y * cos], -1) + boxes[:, None, :2]


def draw_bev(path: str | Path, points: np.ndarray, *, truth: np.ndarray | None = None,
             boxes: np.ndarray | None = None, scores: np.ndarray | None = None, names: Sequence[str] | None = None,
             extent: float = 54.0, title: str = '') -> None:
    """Draw points from above with true and predicted boxes.

    Args:
        path: of the picture; the suffix decides its format.
        points: [P, >= 3] metres.
        truth: [K, >= 7] true boxes, drawn in green.
        boxes: [J, >= 7] predictions; scores: [J], written beside; names: J classes, which choose the colours.
        extent: half of the side of the square shown, metres.
        title: above the picture.
    """
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    names = ['object'] * (0 if boxes is None else len(boxes)) if names is None else list(names)
    figure = Figure(figsize=(10, 10), dpi=120, facecolor='#101418')
    axes = figure.add_axes([0.06, 0.05, 0.9, 0.9], facecolor='#101418')
    shown = points[(np.abs(points[:, :2]) < extent).all(1)]
    axes.scatter(shown[:, 0], shown[:, 1], s=0.35, c=np.clip(shown[:, 2], -3, 3), cmap='viridis', linewidths=0)
    if truth is not None:
        for corners in box_corners(truth):
            axes.fill(*corners.T, fill=False, edgecolor=_TRUTH, linewidth=2.2, alpha=0.9)
    for i, corners in enumerate(() if boxes is None else box_corners(boxes)):
        colour = _COLOURS.get(names[i], '#d0a0ff')
        axes.fill(*corners.T, fill=False, edgecolor=colour, linewidth=1.2)
        front = corners[:2].mean(0)
        axes.plot(*np.stack([corners.mean(0), front]).T, color=colour, linewidth=1.0)
        if scores is not None and (np.abs(corners[0]) < extent).all():
            axes.annotate(f'{scores[i]:.2f}', corners[0], color=colour, fontsize=6)
    used = sorted(set(names))
    handles = [axes.plot([], [], color=_COLOURS.get(n, '#d0a0ff'), label=f'{n} ({names.count(n)})')[0]
               for n in used]
    if truth is not None:
        handles.insert(0, axes.plot([], [], color=_TRUTH, linewidth=2.2, label=f'truth ({len(truth)})')[0])
    if handles:
        axes.legend(handles=handles, loc='upper right', fontsize=8, facecolor='#101418', labelcolor='white')
    axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect='equal')
    axes.set_xlabel('x (m)', color='white')
    axes.set_ylabel('y (m)', color='white')
    axes.tick_params(colors='white')
    axes.set_title(title, color='white', fontsize=11)
    figure.savefig(path, facecolor=figure.get_facecolor())
