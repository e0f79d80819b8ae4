"""Every command of docs/waymo.md, on simulated data: simulate, convert, train, score."""

import json
import re
import shlex

import pytest
from mmdet3d.registry import METRICS

pytestmark = pytest.mark.slow

MODEL = [
    'model.voxel_size=(1.44,1.44,0.1875)',
    'model.voxel_encoder.hidden_channels=8',
    'model.voxel_encoder.out_channels=16',
    'model.encoder.channels=16',
    'model.encoder.num_heads=2',
    'model.encoder.mixer.num_strata=8',
    'model.encoder.stem_depth=1',
    'model.backbone.channels=(8,8,8)',
    'model.backbone.depths=(1,1,1)',
    'model.backbone.out_channels=8',
    'model.head.shared_channels=8',
    'model.head.post_max_size=50',
    'model.head.score_threshold=0.0',
]
LOADERS = [
    f'{name}_dataloader.{option}'
    for name in ('train', 'val', 'test')
    for option in ('num_workers=0', 'persistent_workers=False')
]
SHORT = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'default_hooks.logger.interval=1']
STANDS_FOR = {
    '/datasets/': 'datasets/',
    '--scenes 6+2 --keyframes 20': '--scenes 1+1 --keyframes 2 --workers 1',
    '--workers 2': '--workers 1',
    'epoch_24': 'epoch_1',
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').mkdir()
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_waymo_page(root, workplace, tool_process):
    page = (root / 'docs/waymo.md').read_text()
    lines = [
        line
        for block in re.findall(r'```bash\n(.*?)```', page, re.DOTALL)
        for line in block.splitlines()
    ]
    output = []
    for i, line in enumerate(lines):
        for old, new in STANDS_FOR.items():
            line = line.replace(old, new)
        words = [
            str(root / word) if word.startswith(('tools/', 'configs/')) else word
            for word in shlex.split(line)
        ]
        if 'configs/' in line:
            words += ['--cfg-options', *MODEL, *LOADERS, *(SHORT if 'train.py' in line else [])]
        status, said = tool_process(words[1:], workplace / 'output' / f'{i}.txt').wait()
        assert status == 0, line + said[-3000:]
        output.append(said)
    tools = [re.search(r'tools/(\w+)[.]py', line)[1] for line in lines]
    assert tools == ['simulate', 'waymo_convert', 'train', 'test']
    assert 'waymo_infos_val.pkl' in output[1]
    losses = re.findall(r'loss: ([0-9.naif]+)', output[2])
    assert len(losses) == 1 and float(losses[0]) < 1e6  # an epoch is one step
    for said in output[2:]:
        assert 'mAP' in said
    work = workplace / 'work_dirs/stratified-centerpoint_voxel032_8xb2-cyclic-24e_waymo-3d'
    scores = json.loads(next(work.glob('*/*.json')).read_text().splitlines()[-1])
    assert any('AP' in key for key in scores)


def test_waymo_metric_is_registered():
    assert METRICS.get('WaymoLevelMetric') is not None
