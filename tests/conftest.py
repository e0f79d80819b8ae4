"""Fixtures shared by the whole suite.

Only torch is imported at the top, so that tests of plain torch modules run without OpenMMLab.
"""

import gc
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope='session', autouse=True)
def heeds_ctrl_c():
    """Started in the background, a suite ignores SIGINT, and so would all commands it tests."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope='session')
def root() -> Path:
    """The repository."""
    return Path(__file__).parents[1]


@pytest.fixture(scope='session')
def real_data() -> Path:
    """Folder of licensed sample frames that cannot be shipped: named by STRATIFIED3D_REAL_DATA."""
    folder = os.environ.get('STRATIFIED3D_REAL_DATA')
    if not folder:
        pytest.skip(
            'STRATIFIED3D_REAL_DATA is unset: it names a folder with nuscenes_keyframe/ and others'
        )
    return Path(folder)


@pytest.fixture(scope='session')
def tiny_set(tmp_path_factory):
    """One training and one validation scene of three keyframes with all their sweeps."""
    from stratified3d.simulation import NuScenesSettings, simulate_dataset

    root = tmp_path_factory.mktemp('simulated') / 'tiny'
    simulate_dataset(root, NuScenesSettings(train=1, val=1, keyframes=3), workers=1)
    return root


@pytest.fixture(scope='session')
def prepared_set(tiny_set, tmp_path_factory):
    """The tiny set with its info files and its ground-truth database, apart from it so that the
    simulator's tests find it as it was."""
    root = tmp_path_factory.mktemp('prepared')
    for part in tiny_set.iterdir():
        (root / part.name).symlink_to(part)
    from stratified3d.datasets.nuscenes.database import create_database
    from stratified3d.datasets.nuscenes.infos import create_infos

    create_infos(root, 'v1.0-mini')
    create_database(root)
    return root


@pytest.fixture(scope='session')
def waymo_set(tmp_path_factory):
    """A simulated Waymo: two training segments and one for validation, of two frames."""
    from stratified3d.simulation.waymo.dataset import WaymoSettings, simulate_waymo

    root = tmp_path_factory.mktemp('waymo') / 'v2'
    simulate_waymo(root, WaymoSettings(train=2, val=1, frames=2), workers=1)
    return root


@pytest.fixture(scope='session')
def converted_set(waymo_set, tmp_path_factory):
    """The simulated Waymo after tools/waymo_convert.py; objects of every frame are in its
    database."""
    from stratified3d.datasets.waymo.conversion import ConversionSettings, convert_waymo

    out = tmp_path_factory.mktemp('waymo') / 'converted'
    convert_waymo(waymo_set, out, settings=ConversionSettings(database_every=1))
    return out


def _released_as(source, root, version, scenes, annotated=True):
    """Give a set's scenes other names under another version."""
    for part in ('samples', 'sweeps', 'maps'):
        (root / part).symlink_to(source / part)
    (root / version).mkdir()
    for path in (source / 'v1.0-mini').glob('*.json'):
        rows = json.loads(path.read_bytes())
        if path.stem in ('sample_annotation', 'instance') and not annotated:
            rows = []
        if path.stem == 'scene':
            rows = [dict(row, name=name) for row, name in zip(rows, scenes)]
        (root / version / path.name).write_text(json.dumps(rows))
    return root


@pytest.fixture(scope='session')
def unannotated_set(tiny_set, tmp_path_factory):
    """The tiny set's two scenes as nuScenes publishes its test split, v1.0-test: without
    annotations."""
    from nuscenes.utils.splits import test

    return _released_as(
        tiny_set, tmp_path_factory.mktemp('unannotated'), 'v1.0-test', test, annotated=False
    )


@pytest.fixture(scope='session')
def trainval_set(tiny_set, tmp_path_factory):
    """The tiny set's two scenes as v1.0-trainval."""
    from nuscenes.utils.splits import train, val

    return _released_as(
        tiny_set, tmp_path_factory.mktemp('trainval'), 'v1.0-trainval', [train[0], val[0]]
    )


@pytest.fixture(scope='session')
def small_detector(root, prepared_set, tmp_path_factory):
    """A folder with config.py, the quickstart at a size of a few thousand parameters, and
    model.pth, random weights; one epoch, no worker processes, and no score: results are dumped."""
    from mmengine.config import Config

    from stratified3d.apis import init_detector

    folder = tmp_path_factory.mktemp('small_detector')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('NUSCENES_ROOT', str(prepared_set))
        config = Config.fromfile(root / 'projects/quickstart/configs/quickstart.py')
    model = dict(
        voxel_size=(1.2, 1.2, 1.0),
        voxel_encoder=dict(hidden_channels=8, out_channels=16),
        encoder=dict(channels=16, mixer=dict(num_strata=8)),
        backbone=dict(channels=(16, 16), depths=(1, 1), strides=(2, 2), out_channels=16),
        head=dict(shared_channels=16, score_threshold=0.0, post_max_size=20),
    )
    config.merge_from_dict(
        dict(
            model=model,
            param_scheduler=[
                dict(type='OneCycleLR', eta_max=1e-3, total_steps=1, convert_to_iter_based=True)
            ],
        )
    )
    pipeline = config.train_dataloader.dataset.pipeline
    config.train_dataloader.dataset.pipeline = [
        t for t in pipeline if t.type != 'ObjectSample'
    ]  # needs a database
    config.train_cfg.update(max_epochs=1, val_interval=1)
    config.default_hooks.logger.interval = 1
    for name in ('train', 'val', 'test'):
        loader = config[f'{name}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        if name != 'train':
            config[f'{name}_evaluator'] = dict(
                type='DumpResults', out_file_path=str(folder / 'results.pkl')
            )
    config.dump(folder / 'config.py')
    torch.manual_seed(0)
    torch.save(
        dict(state_dict=init_detector(config, device='cpu').state_dict()), folder / 'model.pth'
    )
    return folder


def _forget_runs(kind):
    """mmengine hands the visualizer and message hub of an earlier run in the process to the next
    one."""
    for inheriting in kind.__subclasses__():
        inheriting._instance_dict.clear()
        _forget_runs(inheriting)


class ToolProcess:
    """A command line in a process of its own; forked, so that it need not import everything again.

    Its output goes to `log`; `before` is called in it first.
    """

    def __init__(self, words, log, before=lambda: None):
        from mmengine.utils import ManagerMixin

        self.log = log
        log.parent.mkdir(exist_ok=True)

        def main():
            os.setsid()
            gc.freeze()  # what this process has left to collect is not the new one's to finalize
            torch.set_num_threads(1)
            with log.open('w') as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            sys.stdout, sys.stderr, sys.argv = os.fdopen(1, 'w'), os.fdopen(2, 'w'), words
            _forget_runs(ManagerMixin)
            before()
            runpy.run_path(words[0], run_name='__main__')

        self.process = multiprocessing.get_context('fork').Process(target=main)
        self.process.start()

    def wait(self):
        """(exit status, what it printed)."""
        self.process.join(500)
        status = self.process.exitcode
        if status is None:
            self.kill()
        return status, self.log.read_text()

    def kill(self):
        """SIGKILL to it and to its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()


@pytest.fixture(scope='session')
def tool_process():
    """The class that runs a command line in a forked process."""
    import stratified3d.plugin  # noqa: F401  (registers the parts of configs)

    return ToolProcess


_BLOCKER = """
import functools
import os
from importlib.machinery import PathFinder

find = PathFinder.find_spec
blocked = os.environ['BLOCKED_PACKAGES'].split(',')


def find_spec(name, path=None, target=None):
    return None if name.partition('.')[0] in blocked else find(name, path, target)


PathFinder.find_spec = functools.partial(find_spec)
"""


@pytest.fixture
def run_without(root, tmp_path):
    """Runs Python with these arguments where OpenMMLab's packages, spconv and others of these names
    are not installed."""
    (tmp_path / 'sitecustomize.py').write_text(_BLOCKER)
    always = ('mmdet3d', 'mmengine', 'mmcv', 'mmdet', 'spconv', 'cumm')

    def run(others, *arguments, **variables):
        environment = dict(os.environ, PYTHONPATH=str(tmp_path), **variables)
        environment['BLOCKED_PACKAGES'] = ','.join((*always, *others))
        return subprocess.run(
            [sys.executable, '-W', 'ignore', *map(str, arguments)],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )

    return run
