"""The hook in real runs of mmdet3d's own scripts, without a display, on a tiny simulated set."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS
from PIL import Image

from stratified3d.visualization.hook import DetectionPictureHook
from stratified3d.visualization.scene import TRUTH, rgb


def run(root, folder, script, *arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ('DISPLAY', 'WAYLAND_DISPLAY')}
    return subprocess.run([sys.executable, '-W', 'ignore', str(root / 'tools' / script), 'config.py', *arguments],
                          cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_show_dir_writes_pictures_without_a_display(root, small_detector):
    result = run(root, small_detector, 'test.py', 'model.pth', '--work-dir', 'out', '--show-dir', 'pictures', '--task',
                 'lidar_det', '--score-thr', '0.05', '--cfg-options', 'default_hooks.visualization.interval=2')
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    folder, = (small_detector / 'out').glob('*/pictures')
    pictures = sorted(folder.glob('bev/*.png'))
    assert len(pictures) == 2  # of three frames
    for picture in pictures:
        assert (np.abs(np.asarray(Image.open(picture)) - 255 * rgb(TRUTH)) < 30).all(-1).any()
    assert len(list(folder.glob('perspective/*.png'))) == 2 or 'Open3D cannot draw here' in result.stderr


def test_tensorboard_gets_scalars_and_pictures(root, small_detector):
    event_accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    result = run(root, small_detector, 'train.py', '--work-dir', 'training', '--cfg-options',
                 'default_hooks.visualization.tensorboard=True', 'default_hooks.visualization.val_frames=1')
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    folder, = (small_detector / 'training').glob('*/vis_data')
    events = event_accumulator.EventAccumulator(str(folder), size_guidance=dict(images=0))
    events.Reload()
    lines = [json.loads(line) for line in (folder / 'scalars.json').read_text().splitlines()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    np.testing.assert_allclose([event.value for event in events.Scalars('loss')], losses, rtol=1e-5)
    assert events.Tags()['images'] == ['val_frame_0'] and events.Images('val_frame_0')[0].width == 1480


def test_without_tensorboard_the_switch_is_named_and_nothing_else_needs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    with pytest.raises(ImportError, match='tensorboard=True needs the package tensorboard'):
        DetectionPictureHook(tensorboard=True).before_run(None)
    DetectionPictureHook().before_run(None)


def test_what_cannot_be_drawn_is_refused(root):
    for settings, message in ((dict(show=True), r'--show: a window is opened by `tools/visualize.py'),
                              (dict(vis_task='mono_det'), 'this plugin draws lidar_det, not mono_det'),
                              (dict(draw=True), 'without test_out_dir'), (dict(interval=0), 'at least 1, not 0')):
        with pytest.raises(ValueError, match=message):
            HOOKS.build(dict(type='mmdet3d.DetectionPictureHook', **settings))
    hooks = Config.fromfile(root / 'configs/stratified/stratified-centerpoint_tiny_1xb2-cyclic-20e_nus-3d.py')
    assert hooks.default_hooks.visualization.type == 'DetectionPictureHook'
