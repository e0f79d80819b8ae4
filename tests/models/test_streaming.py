"""Streams of frames: the same as clips, moved by poses, and forgotten when they must be."""

import copy
import io

import numpy as np
import pytest
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from scipy.spatial.transform import Rotation

from stratified3d.layers.strata import Strata
from stratified3d.layers.strata_record import record_strata
from stratified3d.models.streaming import StreamLimits, StreamState, recall, remember

STEP = 0.1  # s


def pose_of(angle=0.0, x=0.0, y=0.0, z=0.0):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler('z', angle).as_matrix()
    matrix[:3, 3] = x, y, z
    return matrix


def drive(count, seed=0, points=300):
    """(points, pose, time) of a car that turns: LiDAR frames of a world of random points."""
    generator = torch.Generator().manual_seed(seed)
    frames = []
    for i in range(count):
        cloud = torch.rand(points, 5, generator=generator) - 0.5
        cloud = cloud * torch.tensor([25.0, 25, 3.6, 200, 0])
        frames.append((cloud, pose_of(0.05 * i, 0.8 * i, 0.1 * i, 0.01 * i), 1e9 + STEP * i))
    return frames


@pytest.fixture
def with_memory(small_config, build):
    """Build a detector with a memory whose dates and weights are not those of the start."""

    def make(frames=2, reach=12.8, **settings):
        config = copy.deepcopy(small_config)
        config['point_cloud_range'] = (-reach, -reach, -2.0, reach, reach, 2.0)
        config['encoder']['mixer'].update(
            memory=dict(frames=frames, offset=4.0), strata_offset=0.0, **settings
        )
        model = build(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if 'memory.age' in name:
                    parameter.normal_()
        return model

    return make


def run(model, frames, state=None, **settings):
    """(scores and boxes of each frame, events, last state)."""
    found, events = [], []
    for points, pose, time in frames:
        sample, state = model.stream(points, pose, time, state, **settings)
        found.append(sample.pred_instances_3d)
        events.append(state.event)
    return found, events, state


def assert_same(found, expected, atol=1e-4):
    torch.testing.assert_close(found.scores_3d, expected.scores_3d, rtol=1e-4, atol=atol)
    ours, theirs = found.bboxes_3d.tensor, expected.bboxes_3d.tensor
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=10 * atol)


def is_same(found, expected):
    same_count = len(found) == len(expected)
    return same_count and torch.allclose(found.scores_3d, expected.scores_3d, atol=1e-6, rtol=0)


def as_clip(frames, length):
    """The last frame as a keyframe of a batch with the frames before it as its sweeps."""
    key_points, key_pose, key_time = frames[-1]
    parts, ages, poses = [key_points], [], []
    for points, pose, time in frames[-2::-1]:
        to_key = np.linalg.inv(key_pose) @ pose
        moved = points.clone()
        moved[:, :3] = (
            points[:, :3].double() @ torch.from_numpy(to_key[:3, :3].T)
            + torch.from_numpy(to_key[:3, 3])
        ).float()
        moved[:, 4] = key_time - time
        parts.append(moved)
        ages.append(key_time - time)
        poses.append(to_key)
    clip = dict(frames=length, ages=ages, poses=poses)
    sample = Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes, clip=clip))
    return torch.cat(parts), sample


@pytest.mark.parametrize('count', [1, 2, 3, 5])
def test_stream_finds_what_the_clip_of_the_same_frames_does(with_memory, count):
    model, frames = with_memory(), drive(count)
    found, events, _ = run(model, frames)
    assert events == ['first', *['next'] * (count - 1)]
    points, sample = as_clip(frames, max(count - 1, 1))
    (clip,) = model.predict(dict(points=[points]), [sample])
    assert len(clip.pred_instances_3d)
    assert_same(found[-1], clip.pred_instances_3d)
    if count > 1:
        assert not is_same(found[-1], run(model, frames[-1:])[0][0])


def test_samples_of_clips_of_different_lengths_do_not_mix(with_memory):
    model = with_memory()
    clips = [as_clip(drive(count, seed=count), 3) for count in (4, 1, 2)]
    together = model.predict(
        dict(points=[points for points, _ in clips]), [copy.deepcopy(s) for _, s in clips]
    )
    for (points, sample), result in zip(clips, together):
        (alone,) = model.predict(dict(points=[points]), [sample])
        assert_same(result.pred_instances_3d, alone.pred_instances_3d)


def test_memory_of_no_frames_is_the_detector_without(small_config, build):
    plain = build(small_config).eval()
    small_config['encoder']['mixer']['memory'] = dict(frames=0)
    none = build(small_config).eval()
    assert plain.state_dict().keys() == none.state_dict().keys()
    for frame, found in zip(drive(3), run(none, drive(3))[0]):
        sample = Det3DDataSample(metainfo=dict(box_type_3d=LiDARInstance3DBoxes))
        (expected,) = plain.predict(dict(points=[frame[0]]), [sample])
        assert torch.equal(found.scores_3d, expected.pred_instances_3d.scores_3d)
        assert torch.equal(found.bboxes_3d.tensor, expected.pred_instances_3d.bboxes_3d.tensor)
    assert run(none, drive(3))[2].frames == ()


def test_world_may_lie_anywhere(with_memory):
    model, frames = with_memory(), drive(4)
    elsewhere = pose_of(2.0, 2500.0, -1300.0, 40.0)
    moved = [(points, elsewhere @ pose, time) for points, pose, time in frames]
    for here, there in zip(run(model, frames)[0], run(model, moved)[0]):
        assert_same(here, there)


def test_poses_move_the_tokens(with_memory):
    model, frames = with_memory(), drive(3)
    standing = [(points, np.eye(4), time) for points, _, time in frames]
    assert not is_same(run(model, frames)[0][-1], run(model, standing)[0][-1])


def test_moved_tokens_are_those_collected_in_the_moved_frame(with_memory):
    """A car that has driven by whole windows: the grid of voxels is the same, only shifted.

    One token, because several are chunks of an order that starts at the grid's corner.
    """
    model = with_memory(num_strata=1)
    points = drive(1)[0][0]
    shift = torch.tensor([3.2, -3.2, 0.0])  # 8 voxels of 0.4 m, one window
    inner = points[(points[:, :2].abs() < 9).all(1)]
    moved = inner.clone()
    moved[:, :3] -= shift

    feats, coords = model.voxel_encoder([inner])
    moved_coords = coords.clone()
    moved_coords[:, 2] += 8
    moved_coords[:, 3] -= 8
    times = torch.zeros(1).double()
    poses = [torch.eye(4).double()[None], torch.from_numpy(pose_of(0, 3.2, -3.2))[None]]
    kept = []
    for voxels, pose in zip((coords, moved_coords), poses):
        kept.append(remember(model.encoder.encode(feats, voxels, 1)[1], pose, times))
    (first, *_), (second, *_) = (recall([frame], poses[1], times, 'cpu') for frame in kept)
    assert first.present.equal(second.present)
    torch.testing.assert_close(first.positions, second.positions, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(first.feats, second.feats, rtol=1e-3, atol=1e-3)


def test_tokens_turn_and_date_as_their_frames_do():
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(2, 5, 3, generator=generator) * 20
    tokens = Strata(torch.randn(2, 5, 4), places, torch.ones(2, 5, dtype=torch.bool))
    then = torch.from_numpy(np.stack([pose_of(0.3, 1, 2, 3), pose_of(-1.0, 900, 5)]))
    now = torch.from_numpy(np.stack([pose_of(0.7, 4, 2, 3), pose_of(-1.2, 903, 4)]))
    frame = remember([tokens], then, torch.tensor([1e9, 5.0], dtype=torch.float64))
    (past,) = recall(
        [frame, frame], now, torch.tensor([1e9 + 0.25, 5.5], dtype=torch.float64), 'cpu'
    )
    assert past.feats.equal(tokens.feats.repeat(1, 2, 1))
    torch.testing.assert_close(past.ages[:, 0], torch.tensor([0.25, 0.5]))
    for i in range(2):
        world = np.c_[places[i].numpy(), np.ones(5)] @ then[i].numpy().T
        expected = (world @ np.linalg.inv(now[i].numpy()).T)[:, :3]
        np.testing.assert_allclose(past.positions[i, 5:], expected, atol=1e-3)


def test_what_is_read_of_the_past_can_be_recorded(with_memory):
    model, reads = with_memory(), []
    with record_strata(model.encoder.mixers[-1], reads) as records:
        run(model, drive(3))
    for i, (record, read) in enumerate(zip(records, reads, strict=True)):
        assert read.shape == (len(record.voxels), 8 * i)
        frames = read.reshape(len(read), i, 8).sum(2)  # newest first
        assert (frames > 0).all() and (frames.sum(1) + record.read.sum(1) < 1).all()


def jump_in_time(frames):
    return [(points, pose, time + 5) for points, pose, time in frames]


def back_in_time(frames):
    return [(points, pose, time - 500) for points, pose, time in frames]


def jump_in_place(frames):
    return [(points, pose_of(0, 50) @ pose, time) for points, pose, time in frames]


def turn_round(frames):
    return [(points, pose @ pose_of(2.5), time) for points, pose, time in frames]


@pytest.mark.parametrize(
    'change, event',
    [
        (jump_in_time, 'gap'),
        (back_in_time, 'gap'),
        (jump_in_place, 'jump'),
        (turn_round, 'jump'),
    ],
)
def test_a_stream_that_breaks_starts_again(with_memory, change, event):
    model, frames = with_memory(), drive(5)
    late = change(frames[3:])
    found, events, _ = run(model, [*frames[:3], *late])
    assert events == ['first', 'next', 'next', event, 'next']
    fresh, _, _ = run(model, late)
    assert_same(found[3], fresh[0])
    assert_same(found[4], fresh[1])


def test_another_scene_starts_again_and_no_name_keeps_the_scene(with_memory):
    model, frames = with_memory(), drive(4)
    state, events = None, []
    for frame, scene in zip(frames, ('a', None, 'a', 'b')):
        sample, state = model.stream(*frame, state, scene=scene)
        events.append(state.event)
    assert events == ['first', 'next', 'next', 'new scene'] and state.scene == 'b'
    assert_same(sample.pred_instances_3d, run(model, frames[3:])[0][0])


@pytest.mark.parametrize('change', [jump_in_time, jump_in_place])
def test_the_scene_is_known_after_a_break_without_a_name(with_memory, change):
    model, frames = with_memory(), drive(3)
    frames[1:] = change(frames[1:])
    state, scenes = None, []
    for frame, scene in zip(frames, ('a', None, 'b')):
        sample, state = model.stream(*frame, state, scene=scene)
        scenes.append(state.scene)
    assert scenes == ['a', 'a', 'b'] and state.event == 'new scene'
    assert_same(sample.pred_instances_3d, run(model, frames[2:])[0][0])


def test_late_frames_see_what_came_before_them_and_change_nothing(with_memory):
    model, frames = with_memory(frames=3), drive(5)
    _, _, state = run(model, frames[:2])
    expected, _, _ = run(model, frames[2:3], state)
    _, _, newer = run(model, frames[3:4], state)
    for frame in (frames[2], frames[3]):
        sample, after = model.stream(*frame, newer)
        assert after.event == 'late' and after.frames == newer.frames
        assert after.timestamp == newer.timestamp
        assert (frame is frames[2]) == is_same(sample.pred_instances_3d, expected[0])
    in_order, _, _ = run(model, frames[4:], newer)
    after_late, _, _ = run(model, frames[4:], after)
    assert_same(after_late[0], in_order[0])


def test_a_dropped_frame_only_ages_the_others(with_memory):
    model, frames = with_memory(), drive(5)
    kept = frames[:3] + frames[4:]
    found, events, _ = run(model, kept)
    assert events == ['first', 'next', 'next', 'next']
    points, sample = as_clip(kept, 3)
    assert_same(found[-1], model.predict(dict(points=[points]), [sample])[0].pred_instances_3d)


@pytest.mark.slow
def test_memory_stays_as_large_over_200_frames(with_memory):
    model, ((points, pose, _),) = with_memory(frames=3, reach=3.2), drive(1)
    state, sizes = None, []
    for i in range(200):
        _, state = model.stream(points, pose, 0.1 * i, state)
        content = io.BytesIO()
        torch.save(state.as_dict(), content)
        sizes.append(len(content.getvalue()))
    assert state.event == 'next' and len(state.frames) == 3
    assert sizes[0] < sizes[1] < sizes[2] and set(sizes[2:]) == {sizes[-1]}


def test_frames_that_come_too_soon_are_not_remembered(with_memory):
    model, frames = with_memory(frames=4), drive(6)
    _, _, state = run(model, frames, limits=StreamLimits(min_spacing=0.15))
    times = [round((float(frame.times) - 1e9) / STEP) for frame in state.frames]
    assert times == [4, 2, 0] and state.timestamp == frames[-1][2]


@pytest.mark.parametrize('empty', [0, 1, 2])
def test_empty_frames_have_no_detections_and_break_nothing(with_memory, empty):
    model, frames = with_memory(), drive(3)
    frames[empty] = (frames[empty][0][:0], *frames[empty][1:])
    found, events, _ = run(model, frames)
    assert [len(one) > 0 for one in found] == [i != empty for i in range(3)]
    assert events == ['first', 'next', 'next']
    assert all(one.bboxes_3d.tensor.isfinite().all() for one in found)
    if empty == 1:
        without = run(model, [frames[0], frames[2]])[0]
        assert_same(found[2], without[1])


@pytest.mark.parametrize('selection', ['pool', 'topk'])
def test_state_survives_a_safe_load(with_memory, selection):
    model, frames = with_memory(selection=selection), drive(4)
    _, _, state = run(model, frames[:3], scene='a')
    content = io.BytesIO()
    torch.save(state.as_dict(), content)
    content.seek(0)
    again = StreamState.from_dict(torch.load(content, weights_only=True))
    assert (again.scene, again.event, again.timestamp) == ('a', 'next', frames[2][2])
    assert_same(run(model, frames[3:], again)[0][0], run(model, frames[3:], state)[0][0], atol=0)
    with pytest.raises(ValueError, match='not the state of a stream'):
        StreamState.from_dict(dict(frames=[]))


@pytest.mark.parametrize(
    'pose, time, message',
    [
        (np.eye(3), 0.0, r'\[4, 4\]'),
        (2 * np.eye(4), 0.0, 'rotation'),
        (np.diag([1, 1, -1, 1]), 0.0, 'rotation'),
        (np.full((4, 4), np.nan), 0.0, 'rotation'),
        (np.eye(4), float('nan'), 'timestamp'),
    ],
)
def test_impossible_poses_and_times_are_refused(with_memory, pose, time, message):
    with pytest.raises(ValueError, match=message):
        with_memory().stream(torch.zeros(1, 5), pose, time)


def test_the_state_of_another_model_is_refused(with_memory):
    *_, state = run(with_memory(), drive(1))
    with pytest.raises(ValueError, match='another model'):
        with_memory(num_strata=5).stream(*drive(2)[1], state)


@pytest.mark.parametrize('settings', [dict(max_gap=0), dict(min_spacing=-1), dict(max_speed=-3)])
def test_impossible_limits_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        StreamLimits(**settings)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_stream_moves_between_devices(with_memory):
    model, frames = with_memory(), drive(3)
    expected, _, state = run(model, frames[:2])
    on_gpu, _, _ = run(model.cuda(), [(frames[2][0].cuda(), *frames[2][1:])], state)
    alone, _, _ = run(model.cpu(), frames[2:], state)
    assert_same(on_gpu[0].to('cpu'), alone[0], atol=1e-2)
