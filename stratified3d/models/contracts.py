"""What the parts of a detector must offer each other, and one clear sentence where one does not.

`StratifiedCenterPoint` is made of a voxel encoder, an encoder, a BEV backbone and a head. A part of
your own fits if it has the attributes and methods of the protocol here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import InstanceData
from torch import Tensor


class VoxelEncoder(Protocol):
    """Points to voxel features; built with voxel_size and point_cloud_range (meters)."""

    out_channels: int

    def __call__(self, points: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Points, one [P, >= 3] per sample -> feats [N, out_channels], coords [N, 4] int32."""


class Encoder(Protocol):
    """Voxels to a BEV feature map; built with voxel_size, point_cloud_range and in_channels.

    One with a true attribute `scores_voxels` is given a list `scores` in training, for pairs of
    `VoxelScores` and voxel size, see `StratifiedEncoder`; the detector adds their loss.
    """

    out_channels: int
    spatial_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]

    def __call__(self, feats: Tensor, coords: Tensor, batch_size: int, **asked: list) -> Tensor:
        """feats [N, C], coords [N, 4] -> [B, out_channels, Y, X]; shapes are (z, y, x) voxels."""


class BEVBackbone(Protocol):
    """Dense 2D network on the BEV feature map; built with in_channels."""

    out_channels: int
    stride: int

    def __call__(self, bev: Tensor) -> tuple[Tensor, ...]:
        """[B, in_channels, Y, X] -> feature maps, the first [B, out_channels, Y / stride, ...]."""


class Head(Protocol):
    """Feature maps to losses or boxes.

    Built with voxel_size, point_cloud_range, in_channels and stride (voxels per cell of the map).
    """

    class_names: Sequence[Sequence[str]]

    def __call__(self, feature_maps: Sequence[Tensor]) -> tuple[list[dict]]:
        """Return the outputs of all cells."""

    def loss_by_feat(self, outputs: tuple[list[dict]], gt: list[InstanceData]) -> dict[str, Tensor]:
        """Return named losses of the outputs against one InstanceData per sample."""

    def predict(
        self, feature_maps: Sequence[Tensor], samples: list[Det3DDataSample]
    ) -> list[InstanceData]:
        """Return detections: bboxes_3d, scores_3d, labels_3d per sample."""


class Contract(NamedTuple):
    """protocol: what a part must have; needs: its attributes by name; ours: types that fit."""

    protocol: type
    needs: tuple[str, ...]
    ours: tuple[str, ...]


CONTRACTS = {
    'voxel_encoder': Contract(VoxelEncoder, ('out_channels',), ('DynamicVoxelEncoder',)),
    'encoder': Contract(
        Encoder, ('out_channels', 'spatial_shape', 'out_shape'), ('StratifiedEncoder',)
    ),
    'backbone': Contract(BEVBackbone, ('out_channels', 'stride'), ('ResidualBEVBackbone',)),
    'head': Contract(
        Head,
        ('class_names', 'loss_by_feat', 'predict'),
        ('StratifiedCenterHead', 'StratifiedTransFusionHead'),
    ),
}


def build_part(name: str, config: dict, **offered: Any) -> Any:
    """Build a part of the detector from its config and see that it fits.

    Args:
        name: 'voxel_encoder', 'encoder', 'backbone' or 'head'.
        config: dict(type=..., settings).
        offered: settings that follow from the parts before; those of the config win.
    Returns:
        The module.
    Raises:
        ValueError: a part that does not take what it is offered, or lacks what others need of it.
    """
    contract = CONTRACTS[name]
    kind = config.get('type')
    label = kind if isinstance(kind, str) else getattr(kind, '__name__', kind)
    advice = f'use {" or ".join(contract.ours)}, or a part of your own that fits {__name__}'
    try:
        part = MODELS.build({**offered, **config})
    except (TypeError, AssertionError) as error:
        given = ', '.join(sorted({*offered, *config} - {'type'}))
        raise ValueError(
            f'model.{name}: {label} cannot be built with {given} ({_reason(error)}); {advice}'
        ) from error

    missing = [attribute for attribute in contract.needs if not hasattr(part, attribute)]
    if missing:
        raise ValueError(
            f'model.{name}: {label} does not fit: it has no {", ".join(missing)}; {advice}'
        )
    return part


def _reason(error: Exception) -> str:
    """Return the message of an error without mmengine's prefix."""
    text = str(error).split(': ', 1)[-1].strip()
    return text or type(error).__name__
