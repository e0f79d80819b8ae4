"""Every command of the README and of docs/: run on simulated data where it can be, resolved to its
files and options elsewhere."""

import functools
import json
import re
import runpy
import shlex
import subprocess
import sys
import tarfile

import pytest
from mmengine.config import Config

from stratified3d.datasets.io.point_files import read_points
from stratified3d.sensors import SENSORS, FrameChange

pytestmark = pytest.mark.slow

# run elsewhere: set-up and suite by continuous integration, the quickstart's steps by
# tests/tools/test_quickstart.py
ELSEWHERE = {
    'bash tools/setup.sh',
    'source .venv/bin/activate',
    'pip install ".[cpu]"',  # tests/test_wheel.py
    'stratified3d quickstart',
}
PAGES = ('README.md', 'docs/install.md', 'docs/detection.md', 'docs/training.md', 'docs/results.md')


def blocks(root, language, page='README.md'):
    return re.findall(rf'```{language}\n(.*?)```', (root / page).read_text(), re.DOTALL)


def commands(root, page='README.md'):
    return [line for block in blocks(root, 'bash', page) for line in block.splitlines()]


def run(root, folder, line, *extra):
    words = [
        str(root / word) if word.startswith(('tools/', 'configs/', 'projects/')) else word
        for word in shlex.split(line)
    ]
    assert words[0] in ('python', 'stratified3d')
    if words[0] == 'stratified3d':
        words[1:1] = ['-m', 'stratified3d.cli']
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', *words[1:], *extra],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, line + result.stdout[-2000:] + result.stderr[-2000:]
    return result


@pytest.fixture(scope='module')
def folder(root, tmp_path_factory, prepared_set):
    """A working directory whose data/ holds the simulated set under the names that the README
    uses."""
    folder = tmp_path_factory.mktemp('readme')
    (folder / 'data').mkdir()
    for name in ('nuscenes', 'simulated'):
        (folder / 'data' / name).symlink_to(prepared_set)
    (folder / 'sweep.pcd.bin').symlink_to(next((prepared_set / 'samples/LIDAR_TOP').glob('*.bin')))
    points = read_points(folder / 'sweep.pcd.bin')
    turned = FrameChange(SENSORS['nuscenes'], SENSORS['kitti']).points_to_model(points)
    turned.tofile(folder / '000008.bin')
    (folder / 'configs').symlink_to(root / 'configs')
    return folder


def test_commands(root, folder):
    extra = {
        'python tools/overfit_frame.py': ['--iterations', '2'],
        'python tools/benchmark.py': ['--runs', '1'],
        'stratified3d doctor': [],
        'stratified3d detect': ['--device', 'cpu'],
        'python tools/train.py projects/': [
            'train_cfg.max_epochs=1',
            'train_cfg.val_interval=9',
            'param_scheduler.0.total_steps=1',
        ],
    }
    lines = [line for page in PAGES for line in commands(root, page)]
    left = [line for line in dict.fromkeys(lines) if line not in ELSEWHERE]
    assert len(left) >= 9
    for line in left:
        starts = [start for start in extra if line.startswith(start)]
        if starts:
            run(root, folder, line, *extra[starts[0]])
        else:  # the full dataset and a GPU are needed
            resolve(root, folder, line)


def resolve(root, folder, line):
    """Files and options of a command that cannot be run here must at least be real."""
    words = shlex.split(line)
    tool = next(i for i, word in enumerate(words) if word.startswith('tools/'))
    assert words[0] == 'python' and (root / words[tool]).is_file(), line
    for word in words[tool + 1 :]:
        if word.startswith(('configs/', 'projects/')):
            assert (root / word).is_file(), word
            assert not word.endswith('.py') or Config.fromfile(root / word).model
    for program, arguments in ((words[:tool], words[1:tool]), ([words[tool]], words[tool + 1 :])):
        options = {word for word in arguments if word.startswith('--')}
        if options:
            shown = explanation(
                root, folder, *(program[:3] if program[0] == 'python' else ['python', *program])
            )
            assert all(option.replace('-', '_') in shown for option in options), line


@functools.cache
def explanation(root, folder, *program):
    """--help of a program, with underscores: torch's takes options spelt either way."""
    return run(root, folder, shlex.join([*program, '--help'])).stdout.replace('-', '_')


@pytest.fixture
def downloads(tmp_path, prepared_set, trainval_set, unannotated_set):
    """A working directory with the archives that nuScenes offers, of simulated scenes."""
    for name, source in (
        ('v1.0-mini.tgz', prepared_set),
        ('v1.0-trainval_meta.tgz', trainval_set),
        ('v1.0-test_meta.tgz', unannotated_set),
    ):
        parts = [path for path in source.iterdir() if path.name.startswith('v1.0-')]
        blobs = [source / part for part in ('samples', 'sweeps', 'maps')]
        archives = (
            [(name, parts + blobs)]
            if 'mini' in name
            else [(name, parts), (name.replace('_meta', '01_blobs'), blobs)]
        )
        for archive, content in archives:
            with tarfile.open(
                tmp_path / archive, 'w:gz', compresslevel=0, dereference=True
            ) as file:
                for path in content:
                    file.add(path, path.name)
    return tmp_path


def test_nuscenes_page(root, downloads, monkeypatch):
    """The page from top to bottom: /datasets is elsewhere, training takes one step, the tiny model
    stands for both."""
    stands_for = {
        '/datasets/': f'{downloads}/datasets/',
        'voxel03_8xb4': 'tiny_1xb2',
        '--workers 8': '--workers 1',
    }
    short = [
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'train_dataloader.num_batch_per_epoch=1',
        'train_dataloader.batch_size=2',
        'optim_wrapper.accumulative_counts=8',
        'model.encoder.with_cp=True',
    ]
    ran = []
    for line in commands(root, 'docs/nuscenes.md'):
        if '--nproc_per_node' in line:
            resolve(root, downloads, line)
            continue
        for old, new in stands_for.items():
            line = line.replace(old, new)
        if not line.startswith('python '):
            subprocess.run(['bash', '-ec', line], cwd=downloads, check=True)
            continue
        ran.append(line.split()[1])
        if 'tools/create_data.py' in line:  # in this process, which has imported everything
            monkeypatch.setattr(sys, 'argv', line.split()[1:])
            with pytest.raises(SystemExit, match='^0$'):
                runpy.run_path(str(root / 'tools/create_data.py'), run_name='__main__')
            continue
        result = run(root, downloads, line, *(short if 'tools/train.py' in line else []))
        if 'tools/train.py' in line:
            folder = downloads / 'work_dirs/stratified-centerpoint_tiny_1xb2-cyclic-20e_nus-3d'
            (folder / 'epoch_1.pth').rename(folder / 'epoch_20.pth')
            assert 'NuScenes/NDS' in result.stdout + result.stderr  # scored after the last epoch
    assert ran == ['tools/create_data.py'] * 2 + [
        'tools/train.py',
        'tools/test.py',
        'tools/create_data.py',
        'tools/test.py',
    ]
    score = json.loads(
        (downloads / 'work_dirs/nuscenes_val/pred_instances_3d/metrics_summary.json').read_text()
    )
    assert 0 <= score['mean_ap'] <= 1
    submission = json.loads(
        (downloads / 'work_dirs/nuscenes_test/pred_instances_3d/results_nusc.json').read_text()
    )
    tokens = {
        row['token']
        for row in json.loads((downloads / 'datasets/nuscenes/v1.0-test/sample.json').read_text())
    }
    assert submission['results'].keys() == tokens and submission['meta']['use_lidar']
    assert not (
        downloads / 'work_dirs/nuscenes_test/pred_instances_3d/metrics_summary.json'
    ).exists()


def test_python_blocks(root, folder):
    code = '\n'.join(block for page in PAGES for block in blocks(root, 'python', page))
    assert "sensor='kitti'" in code and 'Config.fromfile' in code
    result = run(root, folder, 'python', '-c', code + '\nprint("detected", len(names))')
    assert 'detected' in result.stdout


def test_links_lead_somewhere(root):
    pages = subprocess.run(
        ['git', 'ls-files', '*.md'], cwd=root, capture_output=True, text=True, check=True
    )
    for page in pages.stdout.split():
        for target in re.findall(r'\]\((?!http)([^)#]+)', (root / page).read_text()):
            assert ((root / page).parent / target).exists(), f'{page}: {target}'
