"""What the hook refuses; its pictures are tested with the commands of docs/visualization.md."""

import sys

import pytest
from mmengine.config import Config
from mmengine.registry import HOOKS

from stratified3d.visualization.hook import DetectionPictureHook


def test_hook_needs_tensorboard_only_if_it_is_switched_on(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    with pytest.raises(ImportError, match='needs the package tensorboard'):
        DetectionPictureHook(tensorboard=True).before_run(None)
    DetectionPictureHook().before_run(None)


def test_hook_refuses_what_it_cannot_draw(root):
    for settings, message in (
        (dict(show=True), '--show: '),
        (dict(vis_task='mono_det'), 'not mono_det'),
        (dict(draw=True), 'without test_out_dir'),
        (dict(interval=0), 'at least 1, not 0'),
    ):
        with pytest.raises(ValueError, match=message):
            HOOKS.build(dict(type='mmdet3d.DetectionPictureHook', **settings))
    hooks = Config.fromfile(
        root / 'configs/stratified/stratified-centerpoint_tiny_1xb2-cyclic-20e_nus-3d.py'
    )
    assert hooks.default_hooks.visualization.type == 'DetectionPictureHook'
