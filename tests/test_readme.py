"""Every command of the README: run on simulated data where it can be, resolved to its files and options elsewhere."""
import re
import shlex
import subprocess
import sys

import pytest
from mmengine.config import Config

# run elsewhere: set-up and suite by continuous integration, the quickstart's steps by tests/tools/test_quickstart.py
ELSEWHERE = {'bash tools/setup.sh', 'source .venv/bin/activate', 'bash tools/check.sh', 'bash tools/quickstart.sh'}


def blocks(root, language):
    return re.findall(rf'```{language}\n(.*?)```', (root / 'README.md').read_text(), re.DOTALL)


def commands(root):
    return [line for block in blocks(root, 'bash') for line in block.splitlines()]


def run(root, folder, line, *extra):
    words = [str(root / word) if word.startswith(('tools/', 'configs/', 'projects/')) else word
             for word in shlex.split(line)]
    assert words[0] == 'python'
    result = subprocess.run([sys.executable, '-W', 'ignore', *words[1:], *extra], cwd=folder, capture_output=True,
                            text=True, timeout=300)
    assert result.returncode == 0, line + result.stdout[-2000:] + result.stderr[-2000:]
    return result


@pytest.fixture(scope='module')
def folder(root, tmp_path_factory, prepared_set):
    """A working directory whose data/ holds the simulated set under the names that the README uses."""
    folder = tmp_path_factory.mktemp('readme')
    (folder / 'data').mkdir()
    for name in ('nuscenes', 'simulated'):
        (folder / 'data' / name).symlink_to(prepared_set)
    (folder / 'sweep.pcd.bin').symlink_to(next((prepared_set / 'samples/LIDAR_TOP').glob('*.bin')))
    (folder / 'configs').symlink_to(root / 'configs')
    return folder


def test_commands(root, folder):
    extra = {
        'python tools/overfit_frame.py': ['--iterations', '2'],
        'python tools/benchmark.py': ['--runs', '1'],
        'python -m stratified3d.doctor': [],
        'python tools/train.py projects/': [
            'train_cfg.max_epochs=1', 'train_cfg.val_interval=9', 'param_scheduler.0.total_steps=1'],
    }
    left = [line for line in commands(root) if line not in ELSEWHERE]
    assert len(left) >= 6
    for line in left:
        starts = [start for start in extra if line.startswith(start)]
        if starts:
            run(root, folder, line, *extra[starts[0]])
        else:  # the full data set and a GPU are needed: files and options must at least be real
            words = shlex.split(line)
            assert words[0] == 'python' and (root / words[1]).is_file(), line
            for word in words[2:]:
                if word.startswith(('configs/', 'projects/')):
                    assert Config.fromfile(root / word).model
            options = {word for word in words if word.startswith('--')}
            shown = run(root, folder, f'python {words[1]} --help').stdout
            assert all(option in shown for option in options), line


def test_python_block(root, folder, monkeypatch):
    block, = blocks(root, 'python')
    if not (folder / 'work_dirs/overfit_frame/checkpoint.pth').is_file():
        line, = (line for line in commands(root) if 'overfit_frame.py' in line)
        run(root, folder, line, '--iterations', '1')
    result = run(root, folder, 'python', '-c', block + '\nprint("detected", len(names))')
    assert 'detected' in result.stdout


def test_links_lead_somewhere(root):
    for page in ('README.md', 'ARCHITECTURE.md', 'CHANGELOG.md', 'projects/quickstart/README.md', 'docs/simulation.md'):
        for target in re.findall(r'\]\((?!http)([^)#]+)', (root / page).read_text()):
            assert ((root / page).parent / target).exists(), f'{page}: {target}'
