"""The F1 of sim2real.py on hand-made cases, and the whole tool on simulated and real frames."""

import runpy
import sys

import numpy as np
import pytest

from stratified3d import apis
from stratified3d.datasets.nuscenes.frames import read_frame


@pytest.fixture
def tool(root):
    return str(root / 'projects/quickstart/sim2real.py')


def test_f1_by_hand(tool):
    names = runpy.run_path(tool)
    outcomes = [
        names['Outcome'](np.array([0.9, 0.2]), np.array([True, False]), 2),
        names['Outcome'](np.array([0.5]), np.array([True]), 1),
    ]
    scores, f1 = names['f1_over_scores'](outcomes)
    assert scores.tolist() == [0.9, 0.5, 0.2]
    # hits 1, 2, 2 of detections 1, 2, 3 and boxes 3
    np.testing.assert_allclose(f1, [2 / 4, 4 / 5, 4 / 6])


class Oracle:
    """Detects what is annotated, moved by `off` meters, and a ghost with a low score."""

    def __init__(self, info, off):
        self.frames, self.off = [read_frame(info, i) for i in range(3)], off

    def __call__(self, model, points):
        frame = next(f for f in self.frames if np.array_equal(f.points, points))
        boxes = np.vstack([frame.boxes, [[500, 0, 0, 1, 1, 1, 0, 0, 0]]]).astype(np.float32)
        boxes[:, 0] += self.off
        return apis.Detections(
            boxes, np.r_[np.full(len(frame.boxes), 0.8), 0.1], [*frame.names, 'car']
        )


@pytest.fixture
def sim2real(tool, small_detector, monkeypatch, capsys):
    """Run the tool with the small detector -> exit status, standard output."""

    def run(info, val):
        words = [info, '--val', val]
        words += ['--config', small_detector / 'config.py']
        words += ['--checkpoint', small_detector / 'model.pth']
        monkeypatch.setattr(sys, 'argv', ['sim2real.py', *map(str, words)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(tool, run_name='__main__')
        return end.value.code, capsys.readouterr().out

    return run


@pytest.mark.slow
@pytest.mark.parametrize('off, f1', [(0.3, '1.000'), (500.0, '0.000')])
def test_f1_of_an_oracle_on_simulated_frames(sim2real, prepared_set, monkeypatch, off, f1):
    info = prepared_set / 'nuscenes_infos_val.pkl'
    monkeypatch.setattr(apis, 'detect', Oracle(info, off))
    status, said = sim2real(info, info)
    assert status == 0 and said.count('best F1') == 1 and said.endswith(f'F1 {f1}\n')
    if off < 2:  # the ghost is below the score that was chosen
        assert 'at a score of 0.800' in said


@pytest.mark.slow
def test_f1_on_a_real_frame(sim2real, real_data, prepared_set):
    (info,) = (real_data / 'nuscenes_keyframe').glob('*.pkl')
    status, said = sim2real(info, prepared_set / 'nuscenes_infos_val.pkl')
    assert status == 0 and '1 frames, 26 boxes with 5 or more points' in said


def test_a_missing_file_is_named(sim2real):
    status, _ = sim2real('none.pkl', 'none.pkl')
    assert status.startswith('sim2real.py: ') and 'none.pkl' in status
