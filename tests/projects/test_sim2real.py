"""The F1 of sim2real.py on hand-made cases, and the whole tool on simulated and real frames."""

import runpy
import sys

import numpy as np
import pytest
import torch
from mmcv.ops import points_in_boxes_cpu
from mmdet3d.structures import LiDARInstance3DBoxes

from stratified3d import apis
from stratified3d.simulation.physics.scanners import MOUNTINGS


@pytest.fixture
def tool(root):
    return str(root / 'projects/quickstart/sim2real.py')


def test_f1_by_hand(tool):
    names = runpy.run_path(tool)
    outcomes = [
        names['Outcome'](
            np.array([0.9, 0.2]),
            np.array([True, False]),
            np.array(['car', 'car']),
            np.array(['car', 'car']),
        ),
        names['Outcome'](
            np.array([0.5]), np.array([True]), np.array(['barrier']), np.array(['barrier'])
        ),
    ]
    scores, f1 = names['f1_over_scores'](outcomes)
    assert scores.tolist() == [0.9, 0.5, 0.2]
    # hits 1, 2, 2 of detections 1, 2, 3 and boxes 3
    np.testing.assert_allclose(f1, [2 / 4, 4 / 5, 4 / 6])


@pytest.mark.parametrize('mirror', [None, 'horizontal', 'vertical'])
def test_a_turned_frame_keeps_points_in_their_boxes(tool, mirror):
    names = runpy.run_path(tool)
    (frame,) = names['simulate_frames']('kitti', 1)
    before = frame.points.copy(), frame.boxes.copy()
    turned = names['turn_frame'](frame, 0.3, mirror)

    inside = [
        points_in_boxes_cpu(
            torch.from_numpy(each.points[None, :, :3].copy()),
            LiDARInstance3DBoxes(each.boxes[:, :7]).enlarged_box(0.02).tensor[None],
        )
        for each in (frame, turned)
    ]
    assert inside[0].sum() > 100
    # only points at the very faces may change sides
    assert (inside[0] != inside[1]).sum() <= 0.002 * inside[0].sum()
    np.testing.assert_array_equal(frame.points, before[0])
    np.testing.assert_array_equal(frame.boxes, before[1])
    speed = [np.linalg.norm(each.boxes[:, 7:], axis=1) for each in (frame, turned)]
    np.testing.assert_allclose(speed[1], speed[0], atol=1e-4)
    assert not np.allclose(turned.points, frame.points)


class Oracle:
    """Detects what is annotated, moved by `off` meters, and a ghost with a low score."""

    def __init__(self, frames, off):
        self.frames, self.off = frames, off

    def __call__(self, model, points, sensor):
        frame = next(f for f in self.frames if np.array_equal(f.points, points))
        boxes = np.vstack([frame.boxes, [[500, 0, 0, 1, 1, 1, 0, 0, 0]]]).astype(np.float32)
        boxes[:, 0] += self.off
        return apis.Detections(
            boxes, np.r_[np.full(len(frame.boxes), 0.8), 0.1], [*frame.names, 'car']
        )


@pytest.fixture
def sim2real(tool, small_detector, monkeypatch, capsys):
    """Run the tool with the small detector -> exit status, standard output."""

    def run(*words):
        words = [*words, '--config', small_detector / 'config.py']
        words += ['--checkpoint', small_detector / 'model.pth', '--frames', 1]
        monkeypatch.setattr(sys, 'argv', ['sim2real.py', *map(str, words)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(tool, run_name='__main__')
        return end.value.code, capsys.readouterr().out

    return run


@pytest.mark.parametrize('off, f1', [(0.3, '1.000'), (500.0, '0.000')])
def test_f1_of_an_oracle_on_every_simulated_sensor(sim2real, tool, monkeypatch, off, f1):
    simulate = runpy.run_path(tool)['simulate_frames']
    frames = [frame for sensor in MOUNTINGS for frame in simulate(sensor, 1)]
    monkeypatch.setattr(apis, 'detect', Oracle(frames, off))
    status, said = sim2real()
    rows = [line for line in said.splitlines() if line.startswith('| ')][1:]
    assert status == 0
    assert [row.split(' | ')[0][2:] for row in rows] == list(MOUNTINGS)
    assert all(f'| {f1} |' in row for row in rows)
    if off < 2:  # the ghost is below the score that was chosen
        assert 'score threshold 0.800' in said


@pytest.mark.slow
def test_f1_on_frames_of_an_info_file(sim2real, prepared_set):
    info = prepared_set / 'nuscenes_infos_val.pkl'
    status, said = sim2real(info)
    assert status == 0
    assert f'| {info.name} | ' in said


@pytest.mark.slow
def test_f1_on_a_real_frame(sim2real, real_data):
    (info,) = (real_data / 'nuscenes_keyframe').glob('*.pkl')
    status, said = sim2real(info, '--turned')
    assert status == 0
    assert f'| {info.name} | 1 | 26 | ' in said
    assert f'F1 in 12 turned and mirrored copies of {info.name}: ' in said


def test_only_given_frames_are_turned(sim2real):
    status, _ = sim2real('--turned')
    assert status == 2


def test_a_missing_file_is_named(sim2real):
    status, _ = sim2real('none.pkl')
    assert status.startswith('sim2real.py: ') and 'none.pkl' in status
