"""The tool, and the hook in mmdet3d's scripts, on a prepared simulated set, with a small model of
random weights."""

import json
import re
import runpy
import shlex
import sys
import warnings
from ctypes.util import find_library

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from stratified3d.apis import init_detector, inspect_strata
from stratified3d.sensors import SENSORS, FrameChange
from stratified3d.simulation.frame import simulate_frame
from stratified3d.visualization.drawing import GT_COLOR, rgb

pytestmark = pytest.mark.slow


@pytest.fixture
def visualize(root, small_detector, monkeypatch, capfd):
    """Run the tool in this process (it starts faster) -> exit status, standard output, standard
    error."""

    def run(*arguments):
        script = root / 'tools/visualize.py'
        monkeypatch.setattr(
            sys,
            'argv',
            [
                str(script),
                'config.py',
                'model.pth',
                '--score',
                '0.05',
                '--device',
                'cpu',
                *map(str, arguments),
            ],
        )
        monkeypatch.chdir(small_detector)
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(script), run_name='__main__')
        out, err = capfd.readouterr()
        return left.value.code, out, err + str(left.value)

    return run


@pytest.mark.slow
def test_every_command_of_the_page_on_visualization(
    root, small_detector, prepared_set, tool_process, monkeypatch, tmp_path
):
    """docs/visualization.md without a display: the small detector stands for the quickstart's."""
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for path in small_detector.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / 'sweep.pcd.bin').symlink_to(
        next((prepared_set / 'samples/LIDAR_TOP').glob('*.bin'))
    )
    stands_for = {
        'projects/quickstart/configs/quickstart.py': 'config.py',
        'tools/': f'{root}/tools/',
        '--score-thr 0.3': '--score-thr 0.05 --cfg-options default_hooks.visualization.interval=2',
        '--dataset': '--dataset --score 0.05',
    }
    page = (root / 'docs/visualization.md').read_text()
    commands = [
        line
        for block in re.findall(r'```bash\n(.*?)```', page, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(commands) == 6
    said = {}
    for line in commands:
        for old, new in stands_for.items():
            assert old in page
            line = line.replace(old, new)
        line = re.sub(r'work_dirs/quickstart/epoch_\d+\.pth', 'model.pth', line)
        status, said[line] = tool_process(shlex.split(line)[1:], tmp_path / 'log/output.txt').wait()
        assert status == 0, line + said[line][-3000:]
    work, frames = tmp_path / 'work_dirs', [f'frame_{i:04d}.png' for i in range(3)]
    draws = not any('Open3D cannot draw here' in text for text in said.values())
    assert draws == (find_library('vulkan') is not None)
    for kind in ('bev', 'perspective') if draws else ('bev',):
        assert sorted(path.name for path in (work / 'pictures' / kind).iterdir()) == frames
        assert len(list((work / 'sweep' / kind).iterdir())) == 1
        assert (work / f'video/{kind}.mp4').stat().st_size > 10000
        assert len(list((work / 'config').glob(f'*/pictures/{kind}/*.png'))) == 2  # of three frames
    assert (work / 'strata/strata/frame_0001.png').is_file() and not (
        work / 'strata/perspective'
    ).exists()
    for path in work.glob('config/*/pictures/bev/*.png'):
        assert (np.abs(np.asarray(Image.open(path)) - 255 * rgb(GT_COLOR)) < 30).all(-1).any()
    check_tensorboard(next(work.glob('config/*/vis_data/events*')).parent)


def check_tensorboard(folder):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = accumulator.EventAccumulator(str(folder), size_guidance=dict(images=0))
    events.Reload()
    lines = [json.loads(line) for line in (folder / 'scalars.json').read_text().splitlines()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    np.testing.assert_allclose([event.value for event in events.Scalars('loss')], losses, rtol=1e-5)
    assert events.Tags()['images'] == [f'val_frame_{i}' for i in range(3)]
    assert events.Images('val_frame_0')[0].width == 1480


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'give either --dataset or point files'),
        (['a.bin', '--dataset'], 'give either --dataset or point files'),
        (['a.bin'], 'visualize.py: there is no point file a.bin'),
        (['--dataset', '--index', '7'], 'the dataset has frames 0 to 2, not [7]'),
        (['a.bin', '--index', 'first'], 'argument --index'),
        (['a.bin', '--camera', '1', '2', '3', '4', '5'], '--camera is at most four'),
        (
            ['--dataset', '--strata', '7'],
            'there is no block -1 of stage 7; the stages have [2] blocks',
        ),
        (['--dataset', '--out', 'model.pth/a'], 'model.pth/a'),
        (['--dataset', '--sensor', 'kitti'], '--sensor is for point files'),
        (['a.bin', '--intensity-max', '0'], 'intensity_max is above 0'),
    ],
)
def test_bad_arguments_are_named(visualize, arguments, message):
    code, _, err = visualize('--no-perspective', *arguments)
    assert code != 0 and message in err and 'Traceback' not in err


def test_columns_of_a_bin_can_be_given(visualize, tmp_path):
    (tmp_path / 'a.bin').write_bytes(bytes(80))
    code, _, err = visualize(tmp_path / 'a.bin', '--load-dim', '6')
    assert code != 0 and 'points of 6' in err and 'Traceback' not in err


def test_one_bad_file_costs_no_picture_of_others(visualize, tmp_path):
    names = [tmp_path / f'{name}.npy' for name in 'abc']
    for path in (names[0], names[2]):
        np.save(path, simulate_frame(0)['points'])
    names[1].write_bytes(b'no array')
    code, out, err = visualize(*names, '--no-perspective', '--out', tmp_path / 'out')
    assert code != 0 and '1 of 3 frames could not be drawn, see above' in err
    assert str(names[1]) in err and 'bev: 2 pictures' in out and 'Traceback' not in err
    assert sorted(path.name for path in (tmp_path / 'out/bev').iterdir()) == ['a.png', 'c.png']


def test_pictures_of_another_sensor(visualize, tmp_path):
    """A frame of KITTI's sensor, with strata: no sign of another frame."""
    points = FrameChange(SENSORS['nuscenes'], SENSORS['kitti']).points_to_model(
        simulate_frame(0)['points']
    )
    points[:, :4].tofile(tmp_path / 'turned.bin')
    words = [tmp_path / 'turned.bin', '--no-perspective', '--strata', '--out', tmp_path / 'out']
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        code, _, _ = visualize(*words, '--sensor', 'kitti')
        assert code == 0 and not [each for each in found if 'Sensor(' in str(each.message)]
        assert (tmp_path / 'out/bev/turned.png').is_file()
        code, _, _ = visualize(*words)
    said = ' '.join(str(each.message) for each in found)
    assert code == 0 and 'Sensor(intensity_max=1)' in said and 'Sensor(forward=' in said


def test_a_window_without_a_display_is_refused(visualize, monkeypatch):
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    code, _, err = visualize('--dataset', '--show')
    assert code != 0 and 'there is no display' in err


def test_inspect_strata_of_a_whole_detector(small_detector):
    model = init_detector(small_detector / 'config.py', small_detector / 'model.pth', 'cpu')
    record = inspect_strata(
        model, torch.rand(3000, 4) * torch.tensor([40, 40, 3, 200]) - torch.tensor([20, 20, 2, 0])
    )
    assert record.read.shape == record.collected.T.shape and record.read.max() > 0
    assert abs(record.voxels[:, :2]).max() <= 20.4 and record.tokens.shape == (8, 3)


def test_pictures_look_where_the_sensor_has_its_front(root):
    from stratified3d.cli.drawing import camera_behind
    from stratified3d.sensors import SENSORS, Sensor

    config = Config.fromfile(root / 'projects/quickstart/configs/any_sensor.py')
    sensors = (None, SENSORS['nuscenes'], SENSORS['kitti'], Sensor(forward='-x'))
    assert [camera_behind(config, s).azimuth for s in sensors] == [90, 90, 0, 180]
