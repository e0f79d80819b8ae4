"""Keyframes with their earlier sweeps as clips, for detectors with a memory of earlier frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet3d.datasets.transforms import Pack3DDetInputs
from mmdet3d.models.layers.fusion_layers import apply_3d_transformation
from mmdet3d.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PackClip(Pack3DDetInputs):
    """mmdet3d's Pack3DDetInputs, which also says how to tell the sweeps of the points apart.

    The points stay one tensor in the keyframe's LiDAR frame, with ages in column 4, so that all
    augmentations and `ObjectSample` work as they do on stacked sweeps. The detector takes the
    sweeps apart and moves each back into its own LiDAR frame, turned, scaled, flipped and tilted as
    the keyframe was. A stream sees nearly that: what crops or thins points here does so about the
    keyframe's sensor or with all sweeps together (docs/streaming.md, Training).

    `LoadAlignedSweeps` must come before. The metainfo `clip` is a dict: frames; ages, seconds, and
    poses [4, 4], from the LiDAR frame of a sweep to the keyframe's, both with the nearest sweep
    first, and fewer than frames where a scene starts.

    Args:
        keys: as in Pack3DDetInputs.
        frames: earlier sweeps of a clip; those that a model remembers at once, or more.
    Raises:
        ValueError: frames below 1; in `transform`, points without loaded sweeps.
    """

    def __init__(self, keys: Sequence[str], frames: int, **settings: Any):
        super().__init__(tuple(keys), **settings)
        if frames < 1:
            raise ValueError(f'a clip has at least 1 earlier frame, not {frames}')
        self.frames = frames

    def pack_single_results(self, results: dict) -> dict:
        """Pack a sample, see Pack3DDetInputs; its metainfo has `clip`."""
        if 'sweep_ages' not in results:
            raise ValueError('PackClip: no sweeps were loaded; put LoadAlignedSweeps before it')
        augmentation = _augmentation(results)
        undo = np.linalg.inv(augmentation)
        poses = [augmentation @ pose @ undo for pose in results['sweep_poses'][: self.frames]]
        clip = dict(frames=self.frames, ages=results['sweep_ages'][: self.frames], poses=poses)
        packed = super().pack_single_results(results)
        packed['data_samples'].set_metainfo(dict(clip=clip))
        return packed


def _augmentation(results: dict) -> np.ndarray:
    """[4, 4] of what moved the points since they were loaded: mmdet3d's transforms and tilts."""
    flow = results.get('transformation_3d_flow', [])
    matrix, done = np.eye(4), 0
    for before, tilt in results.get('tilts', []):
        matrix = tilt @ _recorded(results, flow[done:before]) @ matrix
        done = before
    return _recorded(results, flow[done:]) @ matrix


def _recorded(results: dict, flow: Sequence[str]) -> np.ndarray:
    """[4, 4] of so much of the turns, scales, flips and shifts that mmdet3d recorded."""
    corners = torch.cat([torch.zeros(1, 3), torch.eye(3)])
    part = {**results, 'transformation_3d_flow': flow}
    moved = apply_3d_transformation(corners, 'LIDAR', part).double().numpy()
    matrix = np.eye(4)
    matrix[:3, 3] = moved[0]
    matrix[:3, :3] = (moved[1:] - moved[0]).T
    return matrix
