"""Convex primitives, the only geometry that rays are cast against, and shapes made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

BOX, TAPERED, FRUSTUM, ELLIPSOID = range(4)


class Primitives(NamedTuple):
    """P primitives in one frame, as arrays (a named tuple, because numba takes those as they are).

    A local point p lies at `center + rotation @ p`. What `half` and `taper` mean depends on `kind`:

        BOX        half-lengths along local x, y, z
        TAPERED    as BOX at its foot; its top is drawn in by taper = (front, rear, each side) m
        FRUSTUM    radius at the foot, radius at the top, half-height; its axis is local z
                   (cylinder, cone)
        ELLIPSOID  half-axes

    Attributes:
        kind: [P] int64.
        center: [P, 3] m.
        rotation: [P, 3, 3].
        half, taper: [P, 3] m.
        velocity: [P, 3] m/s in the same frame.
        material: [P] int64, row of `materials.TABLE`.
        shade: [P] factor on the material's reflectance (paint, clothes).
        owner: [P] int64, index of the object it belongs to, -1 for none.
    """

    kind: np.ndarray
    center: np.ndarray
    rotation: np.ndarray
    half: np.ndarray
    taper: np.ndarray
    velocity: np.ndarray
    material: np.ndarray
    shade: np.ndarray
    owner: np.ndarray


def no_primitives() -> Primitives:
    """Zero primitives, with the right shapes and types."""
    return Primitives(
        np.zeros(0, np.int64),
        np.zeros((0, 3)),
        np.zeros((0, 3, 3)),
        np.zeros((0, 3)),
        np.zeros((0, 3)),
        np.zeros((0, 3)),
        np.zeros(0, np.int64),
        np.zeros(0),
        np.zeros(0, np.int64),
    )


def join(parts: list[Primitives]) -> Primitives:
    """All primitives of several sets, in order."""
    parts = parts or [no_primitives()]
    return Primitives(*(np.ascontiguousarray(np.concatenate(columns)) for columns in zip(*parts)))


def move(
    primitives: Primitives, rotation: np.ndarray, translation: np.ndarray, owner: int
) -> Primitives:
    """The same primitives after `x -> rotation @ x + translation`, given to an owner.

    Args:
        rotation: [3, 3].
        translation: [3] m.
    """
    return primitives._replace(
        center=primitives.center @ rotation.T + translation,
        rotation=rotation @ primitives.rotation,
        velocity=primitives.velocity @ rotation.T,
        owner=np.full(len(primitives.kind), owner, np.int64),
    )


def rotate_z(angle: float) -> np.ndarray:
    """[3, 3] rotation by `angle` rad about z."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def rotate_y(angle: float) -> np.ndarray:
    """[3, 3] rotation by `angle` rad about y (positive tips x downwards)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def rotate_x(angle: float) -> np.ndarray:
    """[3, 3] rotation by `angle` rad about x (positive tips y upwards)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


@dataclass
class Shape:
    """One object made of primitives: x forward, y left, z up.

    Its origin lies on the ground below its center. The methods that add a primitive return the
    shape, so that calls can be chained.

    Args:
        category: nuScenes category name; None is clutter that nobody annotates.
        size: (length, width, height) of its annotation, m.
    """

    category: str | None
    size: tuple[float, float, float]
    parts: list[tuple] = field(default_factory=list)

    def _add(
        self,
        kind,
        center,
        half,
        material,
        shade=1.0,
        rotation=None,
        taper=(0.0, 0.0, 0.0),
        sway=0.0,
    ):
        rotation = np.eye(3) if rotation is None else rotation
        self.parts.append((kind, center, rotation, half, taper, material, shade, sway))
        return self

    def box(self, center, size, material, shade=1.0, rotation=None, sway=0.0) -> Shape:
        """Add a box of `size` (x, y, z) m around `center`.

        `sway` m is how far it swings along x while its owner walks.
        """
        half = tuple(s / 2 for s in size)
        return self._add(BOX, center, half, material, shade, rotation, sway=sway)

    def tapered(self, center, size, taper, material, shade=1.0, rotation=None) -> Shape:
        """Add a box whose top is drawn in by `taper` = (front, rear, each side) m.

        Negative insets make a tub, whose foot is the smaller end; none may be positive then.
        """
        if min(taper) < 0:
            # a tapered box upside down
            front, rear, sides = (-inset for inset in taper)
            x, y, z = center
            length, width, height = size
            center = (x + (front - rear) / 2, y, z)
            size = (length + front + rear, width + 2 * sides, height)
            taper = (front, rear, sides)
            upright = np.eye(3) if rotation is None else rotation
            rotation = upright @ rotate_x(np.pi)
        half = tuple(s / 2 for s in size)
        return self._add(TAPERED, center, half, material, shade, rotation, taper)

    def frustum(
        self, center, foot, top, height, material, shade=1.0, rotation=None, sway=0.0
    ) -> Shape:
        """Add a cylinder or cone with these two radii (m); its axis is z before `rotation`."""
        half = (foot, top, height / 2)
        return self._add(FRUSTUM, center, half, material, shade, rotation, sway=sway)

    def wheel(self, x, y, radius, width, material, shade=1.0) -> Shape:
        """Add a wheel that stands on the ground and rolls along x."""
        center = (x, y, radius)
        return self.frustum(center, radius, radius, width, material, shade, rotate_x(np.pi / 2))

    def ellipsoid(self, center, size, material, shade=1.0, sway=0.0) -> Shape:
        """Add an ellipsoid with these full axes (m)."""
        half = tuple(s / 2 for s in size)
        return self._add(ELLIPSOID, center, half, material, shade, sway=sway)

    def primitives(self) -> Primitives:
        """The shape as arrays, at rest in its own frame."""
        if not self.parts:
            return no_primitives()
        kind, center, rotation, half, taper, material, shade, _ = zip(*self.parts)
        count = len(kind)
        return Primitives(
            np.array(kind, np.int64),
            np.array(center, float),
            np.array(rotation, float),
            np.array(half, float),
            np.array(taper, float),
            np.zeros((count, 3)),
            np.array(material, np.int64),
            np.array(shade, float),
            np.full(count, -1, np.int64),
        )

    def sway(self) -> np.ndarray:
        """[P] amplitude of each primitive's swing along x, m."""
        return np.array([part[-1] for part in self.parts])
