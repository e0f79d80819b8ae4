"""Clips: a keyframe and earlier sweeps of its batch, each as a frame of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmdet3d.structures import Det3DDataSample
from torch import Tensor

from stratified3d.models.streaming import move_positions

# seconds by which the age of a point may differ from that of its sweep
_TOLERANCE = 0.02


class ClipFrame(NamedTuple):
    """One step of the clips of B samples.

    Attributes:
        points: B tensors [P, C] x, y, z (m), intensity, age (0), in the LiDAR frame of that time.
        poses: [B, 4, 4] float64, on the CPU, from that frame to the keyframe's.
        times: [B] float64, on the CPU, seconds; 0 is the keyframe.
    """

    points: list[Tensor]
    poses: Tensor
    times: Tensor


def split_clip(
    points: Sequence[Tensor], samples: Sequence[Det3DDataSample] | None
) -> list[ClipFrame]:
    """Split aligned sweeps by their age, and move each back into its own LiDAR frame.

    A point belongs to the sweep of the nearest age, and to none that is more than 0.02 s off.
    A sample that has fewer sweeps than the longest clip has empty frames in their place, so that
    all processes of a training run equally often over the encoder.

    Args:
        points: one [P, >= 5] per sample, in the keyframe's LiDAR frame, with ages (s) in column 4.
        samples: their metainfo `clip` comes from the transform `PackClip`.
    Returns:
        The steps, the oldest first; the last is the keyframe, of the points of age 0.
    Raises:
        ValueError: samples without `clip`.
    """
    clips = [sample.metainfo['clip'] for sample in samples or [] if 'clip' in sample.metainfo]
    if not clips or len(clips) != len(points):
        raise ValueError(
            f'the encoder has a memory of earlier frames, but {len(points) - len(clips)} samples '
            'of the batch have none: end the pipeline with dict(type="PackClip", frames=...) '
            'instead of Pack3DDetInputs'
        )
    length = max(clip['frames'] for clip in clips)
    return [_take_step(points, clips, step) for step in range(length, -1, -1)]


def _take_step(points: Sequence[Tensor], clips: Sequence[dict[str, Any]], step: int) -> ClipFrame:
    """The frames of all samples so many steps before the keyframe."""
    frames = [_cut_frame(x, clip, step) for x, clip in zip(points, clips)]
    cut, poses, times = zip(*frames)
    own_times = torch.tensor(times, dtype=torch.float64)
    return ClipFrame(list(cut), torch.stack(poses), own_times)


def has_clips(samples: Sequence[Det3DDataSample] | None) -> bool:
    """Whether some of the samples come from `PackClip`."""
    return any('clip' in sample.metainfo for sample in samples or [])


def oldest_age(points: Sequence[Tensor]) -> float:
    """Return the largest age (s) of points, either sign; 0.0 for single sweeps.

    Args:
        points: one [P, C] per sample, with ages in column 4, if there is one.
    """
    ages = torch.cat([x[:, 4:5] for x in points]).abs()
    # points with others are left out; not by an index, which would wait for the device once more
    ages = ages.nan_to_num(0.0, posinf=0.0)
    return float(ages.max()) if ages.numel() else 0.0


def _cut_frame(points: Tensor, clip: dict[str, Any], step: int) -> tuple[Tensor, Tensor, float]:
    """Points [P, C] of one step of a clip in their own frame, its pose and time."""
    ages = [0.0, *clip['ages']]
    if step >= len(ages):
        return points[:0], torch.eye(4, dtype=torch.float64), 0.0
    distance, nearest = (points[:, 4:5] - points.new_tensor(ages)).abs().min(1)
    points = points[(nearest == step) & (distance <= _TOLERANCE)]
    points[:, 4] = 0
    if not step:
        return points, torch.eye(4, dtype=torch.float64), 0.0

    pose = torch.as_tensor(clip['poses'][step - 1], dtype=torch.float64)
    points[:, :3] = move_positions(points[:, :3], torch.linalg.inv(pose).to(points))
    return points, pose, -ages[step]
