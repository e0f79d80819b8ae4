import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from safetensors.torch import save_file

from stratified3d.apis import detect, detect_next, init_detector
from stratified3d.detections import Detections, drop_own_vehicle, points_with_dt
from stratified3d.sensors import SENSORS, FrameChange, Sensor
from stratified3d.simulation.frame import simulate_frame

TINY = 'configs/stratified/stratified-centerpoint_tiny_1xb2-cyclic-20e_nus-3d.py'


@pytest.fixture(scope='module')
def config(root):
    return Config.fromfile(root / TINY)


@pytest.fixture(scope='module')
def model(config):
    torch.manual_seed(0)
    return init_detector(config, device='cpu')


@pytest.fixture(scope='module')
def points():
    rng = np.random.default_rng(0)
    return np.hstack(
        [
            rng.normal(0, 15, (4000, 2)),
            rng.uniform(-2, 1, (4000, 1)),
            rng.uniform(0, 255, (4000, 1)),
        ]
    ).astype(np.float32)


@pytest.mark.slow
def test_detections_of_arrays_tensors_and_files_are_the_same(model, points, tmp_path):
    path = tmp_path / 'sweep.bin'
    points.tofile(path)
    results = [
        detect(model, p)
        for p in (
            points,
            torch.from_numpy(points),
            path,
            str(path),
            np.hstack([points, np.zeros((len(points), 1), np.float32)]),
        )
    ]
    first = results[0]
    assert first.boxes.shape == (len(first.scores), 9) and len(first.names) == len(first.scores) > 0
    assert (np.diff(first.scores) <= 0).all() and set(first.names) <= set(model.class_names)
    for other in results[1:]:
        np.testing.assert_array_equal(other.boxes, first.boxes)
        assert other.names == first.names


@pytest.mark.slow
@pytest.mark.parametrize('forward', ['x', '-y'])
def test_detections_come_back_in_the_frame_of_the_file(model, points, forward):
    """Numbers are such that the way there and back is exact."""
    points = np.round(points * 64) / 64
    sensor = Sensor(forward, 1.84 + 0.5, 255 / 256)
    to_file = FrameChange(SENSORS['nuscenes'], sensor)
    found = detect(model, to_file.points_to_model(points), sensor)
    expected = detect(model, points)
    assert found.names == expected.names
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    difference = found.boxes - to_file.boxes_to_model(expected.boxes)
    difference[:, 6] = np.sin(difference[:, 6] / 2)
    np.testing.assert_allclose(difference, 0, atol=1e-4)


def test_frames_of_other_sensors_warn_once_for_each_sign(model):
    points = simulate_frame(0)['points']
    turned = FrameChange(SENSORS['nuscenes'], SENSORS['waymo']).points_to_model(points)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        detect(model, points)
        detect(model, turned, 'waymo')
        detect(model, turned, sensor='auto')
        assert not found
        detect(model, turned)
    assert {warning.category for warning in found} == {UserWarning}
    said = sorted(str(warning.message) for warning in found)
    for message, key in zip(said, ('intensity_max=1', 'above the ground', 'is free')):
        assert key in message
    assert len(said) == 3


@pytest.mark.parametrize('width', [7, 9])
def test_a_box_around_the_sensor_is_left_out(width):
    """Turned by 45 degrees, a box of 4 x 2 m reaches 1.1 m (with its margin) to its sides."""
    centers = [(0, 0), (1.3, 1.3), (0.7, -0.7), (1.6, 1.6), (0.9, -0.9), (-30, 0)]
    boxes = np.array([[x, y, -1.8, 4, 2, 1.5, np.pi / 4, 3, 3][:width] for x, y in centers])
    scores = np.linspace(0.9, 0.4, len(boxes))
    found = drop_own_vehicle(Detections(boxes, scores, list('abcdef')))
    assert found.names == ['d', 'e', 'f']
    np.testing.assert_array_equal(found.boxes, boxes[3:])
    np.testing.assert_array_equal(found.scores, scores[3:])
    nothing = drop_own_vehicle(Detections(boxes[:0], scores[:0], []))
    assert nothing.boxes.shape == (0, width) and nothing.names == []


def test_own_vehicle_is_kept_on_demand(config, model, points, monkeypatch):
    points = np.concatenate([points, points * np.array([0.02, 0.02, 1, 1], np.float32)])
    own_frame = SENSORS['nuscenes']
    everything = detect(model, points, replace(own_frame, drop_own=False))
    for found in (
        detect(model, points),
        detect(model, points, own_frame),
        detect_next(model, points, np.eye(4), 0.0)[0],
    ):
        expected = drop_own_vehicle(everything)
        assert found.names == expected.names and len(found.names) < len(everything.names)
        np.testing.assert_array_equal(found.boxes, expected.boxes)

    above_others = dict(forward='y', height=1.84, intensity_max=255.0, drop_own=False)
    monkeypatch.setattr(model, 'cfg', Config(dict(config, sensor=above_others)))
    assert detect(model, points).names == everything.names


def test_an_unknown_sensor_is_named(model, points):
    with pytest.raises(ValueError, match="no sensor 'velodyne'"):
        detect(model, points, 'velodyne')


@pytest.mark.parametrize(
    'points', [np.zeros((0, 4)), np.full((3, 4), np.nan), np.full((2, 4), 900.0)]
)
@pytest.mark.filterwarnings('ignore:.* points have NaN')
def test_points_that_are_not_usable_give_no_detections(model, points):
    found = detect(model, points)
    assert found.boxes.shape == (0, 9) and found.names == []


def test_one_point_is_enough_to_run(model):
    assert np.isfinite(detect(model, np.array([[1.0, 2, -1, 30]])).scores).all()


@pytest.mark.parametrize(
    'points, message',
    [
        (
            np.zeros((5, 3)),
            r'not \[5, 3\]',
        ),
        (np.zeros(5), r'not \[5\]'),
        (
            np.full((5, 5), 31.0),
            r'up to 31: .* points\[:, :4\]',
        ),
    ],
)
def test_points_with_wrong_columns_are_named(model, points, message):
    with pytest.raises(ValueError, match=message):
        detect(model, points)


def test_truncated_point_file_is_named(model, points, tmp_path):
    path = tmp_path / 'sweep.pcd.bin'
    path.write_bytes(points.tobytes()[:1001])
    with pytest.raises(ValueError, match='sweep.pcd.bin: 1001 bytes .*points of 5'):
        detect(model, path)


def test_saved_weights_give_the_same_detections(config, model, points, tmp_path):
    torch.save(
        dict(
            state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=model.class_names))
        ),
        tmp_path / 'a.pth',
    )
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / 'a.safetensors'
    )
    expected = detect(model, points)
    for name in ('a.pth', 'a.safetensors'):
        found = detect(init_detector(config, tmp_path / name, 'cpu'), points)
        np.testing.assert_array_equal(found.boxes, expected.boxes)


def test_weights_of_another_model_are_named(config, model, tmp_path):
    state = dict(model.state_dict())
    state['extra.weight'] = torch.zeros(1)
    state['head.shared_conv.conv.weight'] = torch.zeros(3, 3)
    del state['encoder.input_proj.bias']
    torch.save(dict(state_dict=state), tmp_path / 'b.pth')
    with pytest.raises(ValueError) as error:
        init_detector(config, tmp_path / 'b.pth', 'cpu')
    for part in (
        'b.pth: weights of another model',
        '1 missing (encoder.input_proj.bias)',
        '1 unknown (extra.weight)',
        'head.shared_conv.conv.weight (3, 3), not',
    ):
        assert part in str(error.value)
    torch.save(
        dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=['car']))),
        tmp_path / 'c.pth',
    )
    with pytest.raises(ValueError, match=r"c.pth: trained on classes \['car'\]"):
        init_detector(config, tmp_path / 'c.pth', 'cpu')


def test_missing_files_are_named(config):
    with pytest.raises(FileNotFoundError, match='no config nowhere.py'):
        init_detector('nowhere.py')
    with pytest.raises(FileNotFoundError, match='no checkpoint nowhere.pth'):
        init_detector(config, 'nowhere.pth')


@pytest.mark.parametrize(
    'change',
    [
        lambda points: points[::-1],
        lambda points: points[:, [3, 2, 1, 0]][:, ::-1],
        lambda points: points.astype('>f4'),
        lambda points: points.astype(np.float64),
    ],
)
def test_arrays_may_lie_in_memory_as_they_like(points, change):
    changed = change(points)
    found = points_with_dt(changed)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found[:, :4], changed.astype(np.float32))
    assert points_with_dt(np.full((1, 4), 1e300)).isinf().any()


def test_missing_devices_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    with pytest.raises(ValueError, match='no device cuda: torch .* finds 0 CUDA devices'):
        init_detector('nowhere.py', device='cuda')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(ValueError, match='no device cuda:2'):
        init_detector('nowhere.py', device=torch.device('cuda:2'))
    with pytest.raises(ValueError, match="not 'gpu'"):
        init_detector('nowhere.py', device='gpu')


def frames_of_a_drive(points, count=3):
    """(points, pose, time): the same cloud from a car that drives along y and turns."""
    poses = []
    for i in range(count):
        pose = np.eye(4)
        angle = 0.05 * i
        pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        pose[:3, 3] = 100, 0.5 * i, 0.1
        poses.append(pose)
    return [(points, pose, 0.1 * i) for i, pose in enumerate(poses)]


@pytest.fixture(scope='module')
def remembering(config):
    config = copy.deepcopy(config)
    memory = dict(frames=2, offset=4.0)
    config.model.encoder.mixer = dict(memory=memory, strata_offset=0.0)
    torch.manual_seed(0)
    return init_detector(config, device='cpu')


def follow(model, frames, **settings):
    state, results = None, []
    for points, pose, time in frames:
        found, state = detect_next(model, points, pose, time, state, **settings)
        results.append(found)
    return results, state


def test_first_frame_of_a_stream_is_a_single_frame_and_later_ones_are_not(remembering, points):
    results, state = follow(remembering, frames_of_a_drive(points))
    alone = detect(remembering, points)
    assert np.array_equal(results[0].scores, alone.scores) and len(alone.scores)
    assert not np.array_equal(results[2].scores, alone.scores)
    assert state.event == 'next' and len(state.frames) == 2


def test_a_model_without_memory_detects_in_a_stream_as_in_single_frames(model, points):
    results, state = follow(model, frames_of_a_drive(points, 2))
    assert np.array_equal(results[1].boxes, detect(model, points).boxes) and not state.frames


def test_streams_of_another_sensor_find_the_same_objects(remembering, points):
    """The frame of the file is turned and lifted; its poses lead from there to the map."""
    sensor = Sensor('x', 1.0, 255.0)
    change = FrameChange(sensor, SENSORS['nuscenes'])
    frames = frames_of_a_drive(points)
    expected, _ = follow(remembering, frames)

    to_file = np.eye(4)
    to_file[:3, 3] = change.positions_to_file(np.zeros((1, 3)))[0]
    to_file[:3, :3] = (change.positions_to_file(np.eye(3)) - to_file[:3, 3]).T
    of_file = points.copy()
    of_file[:, :3] = change.positions_to_file(points[:, :3])
    turned = [(of_file, pose @ np.linalg.inv(to_file), time) for _, pose, time in frames]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        results, _ = follow(remembering, turned, sensor=sensor)
    for found, wanted in zip(results, expected):
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)
        boxes = change.boxes_to_model(found.boxes)
        np.testing.assert_allclose(boxes[:20, :2], wanted.boxes[:20, :2], atol=0.05)
