"""The tool on a prepared simulated set, with a small model of random weights."""
import runpy
import sys

import pytest
import torch

from stratified3d.apis import init_detector, inspect_strata


@pytest.fixture
def visualize(root, small_detector, monkeypatch, capfd):
    """Run the tool in this process (it starts faster) -> exit status, standard output, standard error."""

    def run(*arguments):
        script = root / 'tools/visualize.py'
        monkeypatch.setattr(sys, 'argv', [str(script), 'config.py', 'model.pth', '--score', '0.05', '--device', 'cpu',
                                          *map(str, arguments)])
        monkeypatch.chdir(small_detector)
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(script), run_name='__main__')
        out, err = capfd.readouterr()
        return left.value.code, out, err + str(left.value)

    return run


def test_frames_of_the_data_set(visualize, small_detector):
    code, out, err = visualize('--dataset', '--index', '0-1', '--out', 'set', '--strata', '0', '--token', '3',
                               '--video', 'gif', '--no-perspective')
    assert code == 0, err
    for kind in ('bev', 'strata'):
        names = sorted(path.name for path in (small_detector / 'set' / kind).iterdir())
        assert names == ['frame_0000.png', 'frame_0001.png']
        assert (small_detector / f'set/{kind}.gif').stat().st_size > 10000
    assert not (small_detector / 'set/perspective').exists() and 'bev: 2 pictures' in out


def test_point_files(visualize, small_detector, prepared_set):
    sweep = next((prepared_set / 'samples/LIDAR_TOP').glob('*.bin'))
    code, out, err = visualize('--out', 'files', '--colour', 'intensity', sweep, '--camera', '0', '50')
    assert code == 0, err
    assert (small_detector / 'files/bev').is_dir() and len(list((small_detector / 'files/bev').iterdir())) == 1
    assert 'perspective: 1 pictures' in out or 'Open3D cannot draw here' in err


@pytest.mark.parametrize('arguments, message', [
    ([], 'give either --dataset or point files'),
    (['a.bin', '--dataset'], 'give either --dataset or point files'),
    (['a.bin'], 'visualize.py: there is no point file a.bin'),
    (['--dataset', '--index', '7'], 'the data set has frames 0 to 2, not [7]'),
    (['a.bin', '--index', 'first'], 'argument --index'),
    (['a.bin', '--camera', '1', '2', '3', '4', '5'], '--camera at most four numbers'),
    (['--dataset', '--strata', '7'], 'there is no block -1 of stage 7; the stages have [2] blocks'),
    (['--dataset', '--out', 'model.pth/a'], 'model.pth/a'),
])
def test_bad_arguments_are_named(visualize, arguments, message):
    code, _, err = visualize('--no-perspective', *arguments)
    assert code != 0 and message in err and 'Traceback' not in err


def test_a_window_without_a_display_is_refused(visualize, monkeypatch):
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    code, _, err = visualize('--dataset', '--show')
    assert code != 0 and 'there is no display' in err


def test_strata_of_a_whole_detector(small_detector):
    model = init_detector(small_detector / 'config.py', small_detector / 'model.pth', 'cpu')
    record = inspect_strata(model, torch.rand(3000, 4) * torch.tensor([40, 40, 3, 200]) - torch.tensor([20, 20, 2, 0]))
    assert record.read.shape == record.collected.T.shape and record.read.max() > 0
    assert abs(record.voxels[:, :2]).max() <= 20.4 and record.tokens.shape == (8, 3)
