"""Tokens of earlier frames: how they are kept, dated, moved by the ego pose, and when forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stratified3d.layers.strata import Strata
from stratified3d.layers.strata_memory import PastTokens

# meters and radians by which a pose may be off without being a jump
_POSE_NOISE = 1.0
_TURN_NOISE = 0.2
# largest entry of R^T R - 1 of a rotation R
_RIGID = 1e-3


class RememberedFrame(NamedTuple):
    """What is kept of one frame of B samples.

    Attributes:
        tokens: the strata that every block of the encoder left, without gradient.
        poses: [B, 4, 4] float64, on the CPU: from the frame of the points to a frame that all
            frames of the sample share.
        times: [B] float64, on the CPU, seconds.
    """

    tokens: tuple[Strata, ...]
    poses: Tensor
    times: Tensor


def remember(tokens: Sequence[Strata | None], poses: Tensor, times: Tensor) -> RememberedFrame:
    """Return what is kept of a frame; no gradient flows into it.

    Args:
        tokens: of every block, from the encoder.
        poses, times: see `RememberedFrame`.
    """
    kept = [_detach(strata) for strata in tokens if strata is not None]
    return RememberedFrame(tuple(kept), poses, times)


def _detach(strata: Strata) -> Strata:
    """The tokens without gradients and without the scores that they were chosen by."""
    feats, positions, present, _ = strata
    return Strata(feats.detach(), positions.detach(), present)


def recall(
    memory: Sequence[RememberedFrame], poses: Tensor, times: Tensor, device: torch.device
) -> list[PastTokens] | None:
    """Move and date the tokens of earlier frames for a frame of these poses and times.

    Args:
        memory: the earlier frames, of the same B samples.
        poses, times: of the present frame, see `RememberedFrame`.
        device: of the result.
    Returns:
        The tokens for each block, P = frames * m; None without frames.
    """
    if not memory:
        return None
    frame_poses = torch.stack([frame.poses for frame in memory], 1)  # [B, K, 4, 4]
    moves = torch.linalg.solve(poses.unsqueeze(1), frame_poses)
    moves = moves.to(device, torch.float32)

    frame_times = torch.stack([frame.times for frame in memory], 1)  # [B, K]
    ages = times.unsqueeze(1) - frame_times
    ages = ages.to(device, torch.float32)

    blocks = zip(*(frame.tokens for frame in memory))
    return [_join_frames(frames, moves, ages) for frames in blocks]


def _join_frames(frames: Sequence[Strata], moves: Tensor, ages: Tensor) -> PastTokens:
    """Tokens of one block in K frames, moved by matrices [B, K, 4, 4], of ages [B, K]."""
    parts = zip(*(tokens[:3] for tokens in frames))
    stacks = [torch.stack([x.to(moves.device) for x in part], 1) for part in parts]
    feats, positions, present = stacks  # [B, K, m, ...]
    positions = move_positions(positions, moves)
    dates = ages.unsqueeze(-1).expand(present.shape)
    return PastTokens(
        feats.flatten(1, 2), positions.flatten(1, 2), present.flatten(1, 2), dates.flatten(1, 2)
    )


def move_positions(positions: Tensor, moves: Tensor) -> Tensor:
    """Return positions [..., N, 3] moved by matrices [..., 4, 4].

    Sums of products, because matrix products may be rounded to TF32: centimeters at 50 m.
    """
    rotation = moves[..., None, :3, :3]
    return (positions.unsqueeze(-2) * rotation).sum(-1) + moves[..., None, :3, 3]


@dataclass(frozen=True)
class StreamLimits:
    """When a stream goes on, and when it starts again.

    Attributes:
        max_gap: seconds between two frames, in either direction; beyond it the stream starts again.
        max_speed: m/s; a sensor that has moved further (and 1 m) has jumped to another place.
        max_turn: rad/s; the same for a turn (and 0.2 rad).
        min_spacing: seconds; a frame that follows the newest remembered one sooner is detected in,
            but not remembered. For a stream of more frames a second than the model learned from.
    Raises:
        ValueError: a limit that is not above 0, a negative spacing.
    """

    max_gap: float = 1.0
    max_speed: float = 70.0
    max_turn: float = 3.0
    min_spacing: float = 0.0

    def __post_init__(self):
        for name in ('max_gap', 'max_speed', 'max_turn'):
            if not getattr(self, name) > 0:
                raise ValueError(f'{name} is above 0, not {getattr(self, name)}')
        if not self.min_spacing >= 0:
            raise ValueError(f'min_spacing is 0 s or more, not {self.min_spacing}')


@dataclass(frozen=True)
class StreamState:
    """What a stream carries from one frame to the next; its size does not depend on the past.

    Attributes:
        frames: the remembered frames, the newest first; at most as many as the model's memory has.
        pose: [4, 4] float64 of the newest frame, on the CPU.
        timestamp: of the newest frame, seconds.
        scene: name of the scene, if one was given.
        event: what the last frame was: 'first' of a stream; 'next'; 'late', not newer than the
            newest, so that it changed nothing here; or the reason why the stream started again:
            'new scene', 'gap' in time or 'jump' of the pose.
    """

    frames: tuple[RememberedFrame, ...]
    pose: Tensor
    timestamp: float
    scene: str | None
    event: str

    def as_dict(self) -> dict[str, Any]:
        """Return dicts, lists, numbers and tensors: `torch.save` and a safe load take them."""
        frames: list[dict[str, Any]] = [
            dict(tokens=[list(x[:3]) for x in frame.tokens], poses=frame.poses, times=frame.times)
            for frame in self.frames
        ]
        return dict(
            frames=frames,
            pose=self.pose,
            timestamp=self.timestamp,
            scene=self.scene,
            event=self.event,
        )

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> StreamState:
        """Return the state whose `as_dict` this is.

        Raises:
            ValueError: other content.
        """
        try:
            frames = tuple(
                RememberedFrame(
                    tuple(Strata(*parts) for parts in frame['tokens']),
                    frame['poses'].cpu(),
                    frame['times'].cpu(),
                )
                for frame in content['frames']
            )
            return cls(**{**content, 'frames': frames, 'pose': content['pose'].cpu()})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'not the state of a stream: {error!r}') from error


def check_pose(pose: Any) -> Tensor:
    """Return the pose as a float64 tensor [4, 4] on the CPU.

    Raises:
        ValueError: it is not a rigid motion in homogeneous coordinates.
    """
    matrix = torch.as_tensor(pose, dtype=torch.float64, device='cpu')
    if matrix.shape != (4, 4):
        raise ValueError(f'pose is [4, 4], LiDAR to a fixed frame, not {list(matrix.shape)}')
    rotation = matrix[:3, :3]
    off = float((rotation.T @ rotation - torch.eye(3, dtype=torch.float64)).abs().max())
    is_affine = matrix[3].tolist() == [0, 0, 0, 1] and bool(matrix.isfinite().all())
    if not (is_affine and off <= _RIGID and float(torch.linalg.det(rotation)) > 0):
        raise ValueError(
            f'pose is a rotation (R^T R is off 1 by {off:.1g}, at most {_RIGID:g}) and a '
            f'translation, with a last row of 0, 0, 0, 1 (not {matrix[3].tolist()})'
        )
    return matrix


def classify_frame(
    state: StreamState | None,
    pose: Tensor,
    timestamp: float,
    scene: str | None,
    limits: StreamLimits,
) -> str:
    """Return how a frame follows the newest one of a state: an event of `StreamState`.

    Args:
        pose: [4, 4] float64; timestamp, scene: of the frame.
    """
    if state is None:
        return 'first'
    if scene is not None and scene != state.scene and state.scene is not None:
        return 'new scene'
    step = timestamp - state.timestamp
    if abs(step) > limits.max_gap:
        return 'gap'

    move = torch.linalg.solve(state.pose, pose)
    cosine = (move.diagonal()[:3].sum() - 1) / 2
    turn = float(cosine.clamp(-1, 1).acos())
    distance = float(move[:3, 3].norm())
    is_far = distance > limits.max_speed * abs(step) + _POSE_NOISE
    if is_far or turn > limits.max_turn * abs(step) + _TURN_NOISE:
        return 'jump'
    return 'next' if step > 0 else 'late'


def frames_before(
    state: StreamState | None, event: str, timestamp: float
) -> tuple[RememberedFrame, ...]:
    """Return the remembered frames that a frame with this event and time (s) may look at."""
    if state is None or event not in ('next', 'late'):
        return ()
    return tuple(frame for frame in state.frames if float(frame.times) < timestamp)


def next_state(state: StreamState | None, new: StreamState) -> StreamState:
    """Return the state after a frame, of which `new` is the state had it come in time.

    A late frame changes nothing but the event. A stream keeps its scene until another one is named,
    also where a gap or a jump starts it again.
    """
    if state is None:
        return new
    if new.event == 'late':
        return replace(state, event=new.event)
    return replace(new, scene=state.scene) if new.scene is None else new


def check_fits(memory: Sequence[RememberedFrame], encoder: Any) -> None:
    """Raise ValueError for frames that another model remembered.

    Args:
        memory: of one stream.
        encoder: of the model that is to look at it.
    """
    if not memory:
        return
    own = [_token_shape(mixer) for mixer in encoder.mixers]
    for frame in memory:
        found = [tuple(strata.feats.shape) for strata in frame.tokens]
        if found != own:
            raise ValueError(
                f'the state is of another model: its tokens [1, m, C] are {found}, those of this '
                f'model {own}'
            )


def _token_shape(mixer: Any) -> tuple[int, ...]:
    """[1, m, C] of the tokens of one frame."""
    return (1, mixer.num_strata, mixer.num_heads * mixer.head_dim)
