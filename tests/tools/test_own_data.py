"""Every command of docs/own_data.md, on the KITTI frame and on simulated ones, and the converter's
answers."""

import csv
import json
import pickle
import re
import runpy
import shlex
import sys

import numpy as np
import pytest
from mmdet3d.structures import Box3DMode, CameraInstance3DBoxes

from stratified3d.simulation.frame import simulate_frame

pytestmark = pytest.mark.slow

SMALL = [
    'model.voxel_size=(1.2,1.2,0.5)',
    'model.encoder.channels=16',
    'model.encoder.mixer.num_strata=8',
    'model.voxel_encoder.hidden_channels=8',
    'model.voxel_encoder.out_channels=16',
    'model.backbone.channels=(16,16)',
    'model.backbone.out_channels=16',
    'model.head.shared_channels=16',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
]


def simulated(folder):
    """Frames of the simulator, by their names; the first one is called as the page's."""
    for name, seed in (('000008', 3), ('000009', 5)):
        frame = simulate_frame(seed)
        frame['points'][:, :4].astype(np.float32).tofile(folder / 'points' / f'{name}.bin')
        yield from (
            (name, label, *box[:2], box[2] + box[5] / 2, *box[3:7])
            for label, box in zip(frame['names'], frame['boxes'])
        )


def kitti(folder, real_data):
    """The real frame, and its mirror image as a second one."""
    info = pickle.loads((real_data / 'kitti_frame/000008.pkl').read_bytes())['data_list'][0]
    points = np.fromfile(real_data / 'kitti_frame/000008.bin', np.float32).reshape(-1, 4)
    points[:, 3] *= 255
    points.tofile(folder / 'points/000008.bin')
    (points * [1, -1, 1, 1]).astype(np.float32).tofile(folder / 'points/000009.bin')
    boxes = CameraInstance3DBoxes(
        np.array([row['bbox_3d'] for row in info['instances'] if row['bbox_label_3d'] >= 0])
    )
    boxes = boxes.convert_to(
        Box3DMode.LIDAR, np.linalg.inv(info['images']['CAM2']['lidar2cam'])
    ).tensor.numpy()
    for i, (x, y, z, dx, dy, dz, yaw) in enumerate(boxes):
        label = ('car', 'pedestrian')[i == 4]  # the frame holds cars only
        yield '000008', label, x, y, z + dz / 2, dx, dy, dz, yaw
        yield '000009', label, x, -y, z + dz / 2, dx, dy, dz, -yaw


@pytest.fixture(params=['simulated', 'kitti'])
def raw(request, tmp_path, monkeypatch):
    """A working directory with what the page calls raw/."""
    (tmp_path / 'raw/points').mkdir(parents=True)
    rows = (
        simulated(tmp_path / 'raw')
        if request.param == 'simulated'
        else kitti(tmp_path / 'raw', request.getfixturevalue('real_data'))
    )
    with (tmp_path / 'raw/boxes.csv').open('w', newline='') as file:
        csv.writer(file).writerows(
            [('frame', 'name', 'x', 'y', 'z', 'dx', 'dy', 'dz', 'yaw'), *rows]
        )
    (tmp_path / 'raw/train.txt').write_text('000008\n')
    (tmp_path / 'raw/val.txt').write_text('000009\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_page(root, raw, tool_process, request):
    page = (root / 'docs/own_data.md').read_text()
    commands = [
        line
        for block in re.findall(r'```bash\n(.*?)```', page, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(commands) == 6
    output = []
    if request.node.callspec.params['raw'] == 'kitti':
        commands = commands[:4]  # pictures are alike
    for i, line in enumerate(commands):
        words = [
            str(root / word) if word.startswith(('tools/', 'projects/')) else word
            for word in shlex.split(line)
        ]
        words = [word.replace('epoch_20', 'epoch_1') for word in words]
        if 'projects/' in line:
            words += ['--cfg-options', *SMALL]
        if 'train.py' in line:
            words += ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
        status, said = tool_process(words[1:], raw / 'output' / f'{i}.txt').wait()
        assert status == 0, line + said[-3000:]
        output.append(said)
    assert '1 frames' in output[0] and 'CAUTION' not in output[0] + output[1]
    assert 'AP within' in output[2] and 'AP within' in output[3]  # train.py scores on the way
    scores = json.loads(
        next((raw / 'work_dirs/own_data').glob('*/*.json')).read_text().splitlines()[-1]
    )
    assert {'center/car_AP', 'center/mAP'} <= scores.keys()
    for picture in (
        () if len(commands) == 4 else ('pictures/bev/frame_0000.png', 'new/bev/000008.png')
    ):
        assert (raw / 'work_dirs' / picture).is_file()


@pytest.fixture
def convert(root, monkeypatch, capfd):
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['convert_custom.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(root / 'tools/convert_custom.py'), run_name='__main__')
        return left.value.code, capfd.readouterr().out

    return run


@pytest.mark.parametrize('raw', ['simulated'], indirect=True)
def test_the_converter_cautions_and_refuses(raw, convert):
    table = (raw / 'raw/boxes.csv').read_text().splitlines()
    moved = [table[0]] + [
        ','.join([*row[:4], '40', *row[5:]]) for row in (line.split(',') for line in table[1:])
    ]
    (raw / 'moved.csv').write_text('\n'.join(moved))
    code, out = convert('raw/points', '--boxes', 'moved.csv', '--out', 'moved', '--split', 'train')
    assert code == 0 and 'CAUTION' in out and 'contain no points' in out
    for arguments, message in (
        (['none'], 'there is no folder none'),
        (['raw/points', '--boxes', 'none.csv'], 'there is no box file none.csv'),
        (['raw/points', '--frames', 'none.txt'], 'none.txt'),
        (['raw/points', '--boxes', 'raw/boxes.csv', '--classes', 'tram'], 'no box is named tram'),
        (['raw/points', '--load-dim', '5'], 'not a whole number of points of 5'),
    ):
        code, _ = convert(*arguments, '--out', 'other', '--split', 'train')
        assert str(code).startswith('convert_custom.py: ') and message in str(code)
