"""What a picture shows, apart from how: points, boxes, their outlines and colors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

BACKGROUND, GT_COLOR = '#0e1319', '#3ee07f'
# differ in hue and in lightness; green belongs to the ground truth, gray-blue to the points
_COLORS = dict(
    car='#ffb01f',
    truck='#ff6a3d',
    bus='#e858d6',
    trailer='#a98bff',
    construction_vehicle='#fff07a',
    pedestrian='#3db8ff',
    motorcycle='#ff4d6d',
    bicycle='#ffa8c9',
    traffic_cone='#4ff0ff',
    barrier='#6f8cff',
)
_ALIASES = dict(
    Car='car',
    Van='trailer',
    Truck='truck',
    Pedestrian='pedestrian',
    Cyclist='bicycle',
    Tram='bus',
    vehicle='car',
    cyclist='bicycle',
    sign='traffic_cone',
)
_OTHERS = (
    '#ffb01f',
    '#3db8ff',
    '#ff4d6d',
    '#a98bff',
    '#fff07a',
    '#4ff0ff',
    '#e858d6',
    '#ff6a3d',
    '#ffa8c9',
    '#6f8cff',
)
# from the ground to what rises above it: unsaturated, so that boxes stand out
_RAMP = np.array([[52, 68, 86], [86, 119, 145], [150, 182, 202], [240, 246, 250]]) / 255
COLORINGS = ('height', 'intensity')
_HEIGHT_SHOWN = 4.0  # m above the ground that the ramp spans


class StrataLike(Protocol):
    """Strata tokens of one block: the fields of `StrataRecord` in `stratified3d.layers`.

    Attributes:
        voxels: [N, 3] meters.
        tokens: [M, 3] meters.
        collected: [M, N], the attention of a token to the voxels.
        read: [N, M], the part of a voxel's attention that goes to each token.
    """

    @property
    def voxels(self) -> np.ndarray: ...

    @property
    def tokens(self) -> np.ndarray: ...

    @property
    def collected(self) -> np.ndarray: ...

    @property
    def read(self) -> np.ndarray: ...


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 9), np.float32)


@dataclass
class Drawing:
    """One frame to draw, everything in the LiDAR frame, in meters, m/s and radians.

    Args:
        points: [P, >= 3] x, y, z, intensity.
        boxes: [J, 7 or 9] bottom center x, y, z, dx, dy, dz, yaw, vx, vy.
        scores: [J].
        names: J class names; 'object' for all of them where it is empty.
        gt_boxes: [K, 7 or 9] like `boxes`; None where they are unknown.
        title: above the picture.
        strata: tokens of one block.
    Raises:
        ValueError: boxes, scores and names differ in number.
    """

    points: np.ndarray
    boxes: np.ndarray = field(default_factory=_no_boxes)
    scores: np.ndarray | None = None
    names: Sequence[str] = ()
    gt_boxes: np.ndarray | None = None
    title: str = ''
    strata: StrataLike | None = None

    def __post_init__(self):
        count = len(self.boxes)
        if not len(self.names):
            self.names = ['object'] * count
        if self.scores is not None and len(self.scores) != count:
            raise ValueError(f'{count} boxes, but {len(self.scores)} scores')
        if len(self.names) != count:
            raise ValueError(f'{count} boxes, but {len(self.names)} names')


def class_color(name: str) -> str:
    """The color of a class, '#rrggbb'.

    Classes of nuScenes, KITTI and Waymo have fixed colors; others get one by the letters of their
    name.
    """
    name = _ALIASES.get(name, name)
    return _COLORS.get(name) or _OTHERS[sum(name.encode()) % len(_OTHERS)]


def rgb(color: str) -> np.ndarray:
    """'#rrggbb' as [3] numbers in 0 to 1."""
    channels = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return np.array(channels) / 255


def ramp(values: np.ndarray) -> np.ndarray:
    """Colors [P, 3] of the points' ramp at [P] values in 0 to 1; others are clipped."""
    places = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(values, places, channel) for channel in _RAMP.T], -1)


def ground_height(points: np.ndarray) -> float:
    """z of the ground near the sensor, robust to outliers: the tenth percentile within 20 m."""
    distance = np.linalg.norm(points[:, :2], axis=1)
    heights = points[distance < 20, 2]
    heights = heights[np.isfinite(heights)]
    return float(np.percentile(heights, 10)) if len(heights) else 0.0


def point_values(points: np.ndarray, coloring: str) -> tuple[np.ndarray, str, tuple[float, float]]:
    """Where each point stands on the ramp.

    Args:
        points: [P, >= 3]; `intensity` needs a fourth column.
        coloring: a name in COLORINGS.
    Returns:
        [P] in 0 to 1, what it means, and the values at the two ends.
    Raises:
        ValueError: unknown coloring, points without intensity.
    """
    if coloring not in COLORINGS:
        raise ValueError(f'points are colored by {" or ".join(COLORINGS)}, not {coloring!r}')

    if coloring == 'height':
        values = (points[:, 2] - ground_height(points)) / _HEIGHT_SHOWN
        return np.clip(values, 0, 1), 'height above ground (m)', (0.0, _HEIGHT_SHOWN)

    if points.shape[1] < 4:
        raise ValueError(
            f'points have {points.shape[1]} columns, none of them intensity: color them by height'
        )
    # most returns are dark: the square root spreads them
    top = max(float(np.percentile(points[:, 3], 99)), 1e-6) if len(points) else 1.0
    values = np.sqrt(np.clip(points[:, 3] / top, 0, 1))
    return values, 'intensity (square-root scale)', (0.0, top)


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """Corners in the ground plane, the front edge first.

    Args:
        boxes: [K, >= 7] x, y, z, dx, dy, dz, yaw.
    Returns:
        [K, 4, 2].
    """
    signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2
    local = signs * boxes[:, None, 3:5]
    x, y = local[..., 0], local[..., 1]

    yaw = boxes[:, 6:7]
    cos, sin = np.cos(yaw), np.sin(yaw)
    rotated = np.stack([x * cos - y * sin, x * sin + y * cos], -1)
    return rotated + boxes[:, None, :2]


def box_lines(boxes: np.ndarray) -> np.ndarray:
    """Edges in space, with a mark of the heading on the roof.

    Args:
        boxes: [K, >= 7] x, y, z, dx, dy, dz, yaw.
    Returns:
        [K, 14, 2, 3] segments.
    """
    flat = box_corners(boxes)
    ground = np.repeat(boxes[:, None, 2:3], 4, 1)
    bottom = np.concatenate([flat, ground], -1)  # [K, 4, 3]
    top = bottom + np.array([0, 0, 1.0]) * boxes[:, None, 5:6]
    middle = top.mean(1)

    pairs = []
    for corners in (bottom, top):
        pairs += [(corners[:, i], corners[:, (i + 1) % 4]) for i in range(4)]
    pairs += [(bottom[:, i], top[:, i]) for i in range(4)]
    pairs += [(middle, top[:, 0]), (middle, top[:, 1])]
    return np.stack([np.stack(pair, 1) for pair in pairs], 1)


def velocity_arrows(boxes: np.ndarray, seconds: float = 1.0, least: float = 0.5) -> np.ndarray:
    """Arrows to where the boxes will be, a shaft and two barbs each.

    Args:
        boxes: [K, >= 7]; those without columns 7 and 8 (m/s), and those slower than `least`, have
            no arrow.
        seconds: of motion that an arrow shows.
        least: m/s.
    Returns:
        [A, 3, 2, 3] segments.
    """
    if boxes.shape[1] < 9:
        return np.zeros((0, 3, 2, 3))

    speed = np.linalg.norm(boxes[:, 7:9], axis=1)
    boxes = boxes[speed >= least]
    begin = boxes[:, :3] + np.array([0, 0, 0.5]) * boxes[:, 5:6]
    end = begin + np.pad(boxes[:, 7:9] * seconds, ((0, 0), (0, 1)))

    along = end - begin
    across = np.stack([-along[:, 1], along[:, 0], along[:, 2]], -1)
    shaft = np.stack([begin, end], 1)
    barbs = [np.stack([end, end - 0.25 * along + side * 0.12 * across], 1) for side in (1, -1)]
    return np.stack([shaft, *barbs], 1)
